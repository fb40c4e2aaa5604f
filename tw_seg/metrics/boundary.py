"""The boundary F-score: how well the outlines of masks are met, up to a distance.

A pixel of class k is on the boundary of k if one of its four neighbours inside the image is of another class. Ignored
pixels are of no class: they have no boundary, and make none. A boundary pixel of a prediction counts as met if the mask
has one of the same class within the distance, and the other way round. Counts of images may be added; from them come
precision, recall and their harmonic mean, as in Csurka et al., What is a good evaluation measure for semantic
segmentation?, BMVC 2013.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

from tw_seg.types import IGNORE_INDEX

DISTANCE = 0.0075
"""Largest distance at which an outline is met, as a share of the image's diagonal, at least one pixel."""


def count_boundaries(mask: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count boundary pixels of one image by class: those of the prediction, of them met, of the mask, of them met.

    Args:
        mask: Class ids and 255, shape (h, w).
        predicted: Class ids, shape (h, w).
        num_classes: K.

    Returns:
        int64, shape (K, 4).
    """
    distance = max(1.0, DISTANCE * float(np.hypot(*mask.shape)))
    found = np.where(mask == IGNORE_INDEX, IGNORE_INDEX, predicted)
    outlines = [find_boundary(found), find_boundary(mask)]
    counts = np.zeros((num_classes, 4), dtype=np.int64)
    for k in range(num_classes):
        ours, theirs = outlines[0] & (found == k), outlines[1] & (mask == k)
        counts[k] = ours.sum(), _count_met(ours, theirs, distance), theirs.sum(), _count_met(theirs, ours, distance)
    return counts


def find_boundary(mask: np.ndarray) -> np.ndarray:
    """Which pixels have a neighbour of another class, bool, shape (h, w).

    Examples:
        >>> find_boundary(np.array([[0, 0, 1, 255]])).tolist()
        [[False, True, True, False]]
    """
    found = np.zeros(mask.shape, dtype=bool)
    for ids, marked in ((mask, found), (mask.T, found.T)):  # views
        differ = (ids[1:] != ids[:-1]) & (ids[1:] != IGNORE_INDEX) & (ids[:-1] != IGNORE_INDEX)
        marked[1:] |= differ
        marked[:-1] |= differ
    return found


def boundary_f(counts: np.ndarray) -> np.ndarray:
    """The boundary F-score of counts (..., 4): shape (...), NaN without any outline.

    Examples:
        >>> float(boundary_f(np.array([4, 2, 5, 5])))
        0.6666666666666666
    """
    found, right, there, met = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = np.where(found > 0, right / found, 0.0), np.where(there > 0, met / there, 0.0)
        score = np.where(precision + recall > 0, 2 * precision * recall / (precision + recall), 0.0)
    return np.where(found + there > 0, score, np.nan)


def _count_met(outline: np.ndarray, other: np.ndarray, distance: float) -> int:
    """How many pixels of an outline have one of another within a distance."""
    if not outline.any() or not other.any():
        return 0
    return int((distance_transform_edt(~other)[outline] <= distance).sum())
