"""What a classifier is to the decoder: a graph of calls, their linear maps, the tape of one run, one backward pass."""
