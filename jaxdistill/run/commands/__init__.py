"""The commands of `jaxdistill`: one file each, named like the command."""
