"""Whether relevance arrives: balance of each call, completeness, a report."""
