"""Text: tokenizers, token caches, alignment of unlike tokenizers, synthetic text."""
