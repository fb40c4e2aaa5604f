"""A page in the browser: look at what a checkpoint sees in a photograph, correct it, let it learn from that."""
