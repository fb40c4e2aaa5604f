"""Training-free segmentation: attributions of an image-level classifier, cut at a calibrated threshold."""
