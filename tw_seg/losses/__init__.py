"""Losses: torch only. ``masked.py`` is the one place that divides by the number of labelled pixels."""

from tw_seg.losses.classification import multilabel_bce
from tw_seg.losses.masked import masked_mean
from tw_seg.losses.pixels import cross_entropy, dice
from tw_seg.losses.segmentation import SegmentationLoss

__all__ = ["SegmentationLoss", "cross_entropy", "dice", "masked_mean", "multilabel_bce"]
