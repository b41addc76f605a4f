"""Text: tokenizers, token caches, alignment of two tokenizers, synthetic text."""
