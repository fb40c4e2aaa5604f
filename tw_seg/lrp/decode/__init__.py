"""From coefficients at the logits to heatmaps."""
