"""A user's own files as a data set: tables, folders of images, and data sets of the package `datasets`."""
