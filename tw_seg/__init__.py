"""tw_seg: turn an image classifier into a segmentation model by unrolling its relevance propagation."""
