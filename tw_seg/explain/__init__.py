"""Why a model segments an image as it does, and whether its mask can be trusted. Works on any segmentation model."""
