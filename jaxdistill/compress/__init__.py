"""Make models smaller: quantisation, pruning, vocabularies."""
