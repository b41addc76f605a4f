"""What makes a student smaller besides distillation: quantisation, pruning, vocabulary."""
