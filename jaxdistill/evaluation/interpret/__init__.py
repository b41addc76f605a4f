"""What inside a model matters, and what of a teacher was transferred."""
