"""Text corpora, masks, and language models on them."""
