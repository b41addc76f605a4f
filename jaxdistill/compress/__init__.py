"""Make models smaller without distillation: quantisation and reduced vocabularies."""
