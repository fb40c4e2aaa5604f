"""Metrics: one confusion matrix of a data set, pure functions of it, and what training keeps over an epoch."""

from tw_seg.metrics.collection import SegmentationMetrics
from tw_seg.metrics.confusion import (
    confusion_matrix,
    dice_per_class,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
    precision_per_class,
    recall_per_class,
)
from tw_seg.metrics.masks import predict_masks

__all__ = [
    "SegmentationMetrics",
    "confusion_matrix",
    "dice_per_class",
    "iou_per_class",
    "mean_iou",
    "pixel_accuracy",
    "precision_per_class",
    "predict_masks",
    "recall_per_class",
]
