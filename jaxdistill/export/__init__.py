"""Use trained models, export them for other libraries, and measure the files."""
