"""From a classifier to the graph of its calls."""
