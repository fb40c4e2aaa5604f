"""From what a model says of windows to the files that a prediction leaves."""
