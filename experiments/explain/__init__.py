"""Explanations of segmentations, measured."""
