"""The commands of `jaxdistill`: one file for each, with the name of the command."""
