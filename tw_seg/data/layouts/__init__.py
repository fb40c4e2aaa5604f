"""How a data set lies on disk: one reader for each layout."""
