"""Which images to mask next: what a model is unsure of, where its two answers differ, and what is unlike the rest."""
