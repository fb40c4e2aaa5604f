"""Groups of images that belong together: near-duplicates, or those of one value in a column of a table."""
