"""What is in a data set, and what is wrong with it: one pass over its images, before a model is trained on them."""
