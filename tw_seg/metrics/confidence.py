"""Calibration: whether pixels that a model is sure of to 80 % are right in 80 % of cases.

Counts of images may be added. The calibration error is the mean difference of confidence and accuracy over bins of
equal width, weighted by their pixels (Naeini et al., AAAI 2015).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tw_seg.types import IGNORE_INDEX

BINS = 15
"""Bins of the confidence, from 0 to 1."""


def count_confidences(probabilities: Tensor, mask: Tensor) -> np.ndarray:
    """Sums over the labelled pixels of one image in each bin of confidence: of pixels, of those right, of confidence.

    Args:
        probabilities: Of each class, shape (K, h, w); the confidence of a pixel is the largest.
        mask: Class ids and 255, int64, shape (h, w).

    Returns:
        float64, shape (BINS, 3).
    """
    confidence, predicted = probabilities.max(0)
    labelled = mask != IGNORE_INDEX
    sure, right = confidence[labelled].double(), (predicted == mask)[labelled].double()
    bins = (sure * BINS).ceil().long().clamp(1, BINS) - 1  # each bin with its upper limit
    sums = [torch.bincount(bins, values, BINS) for values in (torch.ones_like(sure), right, sure)]
    return torch.stack(sums, 1).cpu().numpy()


def calibration_error(counts: np.ndarray) -> np.ndarray:
    """The calibration error of counts (..., BINS, 3): shape (...), NaN without a pixel."""
    pixels, right, sure = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    with np.errstate(invalid="ignore"):
        return np.abs(right - sure).sum(-1) / pixels.sum(-1)
