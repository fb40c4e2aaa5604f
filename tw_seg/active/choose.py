"""Choose images by what their masks may teach, by what classes need, and far from each other in feature space."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.metrics import pairwise_distances
from sklearn.preprocessing import normalize

from tw_seg.active.evidence import Evidence
from tw_seg.errors import InputError


class Choice(NamedTuple):
    """An image to mask.

    Attributes:
        row: Its place among the candidates.
        gain: What its mask may teach, when it was chosen; comparable within a list only.
        distance: Of its features from those of all images that have a mask or were chosen before it, from 0 to 2.
    """

    row: int
    gain: float
    distance: float


def choose_images(
    evidence: Evidence,
    features: np.ndarray,
    count: int,
    *,
    masked_features: np.ndarray | None = None,
    masks: np.ndarray | None = None,
) -> list[Choice]:
    """Choose images one after the other.

    Each time the image is taken with the largest product of two numbers. The *gain* is the evidence of an image summed
    over classes, weighted by their need: the mean doubt of a class over all candidates that may show it, divided by
    one more than the masks that show it already, those that were chosen included by their probability. The *distance*
    is that of k-center greedy [1], from the nearest image that has a mask or was chosen: no two images that are alike.

    [1] Sener, Savarese: Active Learning for Convolutional Neural Networks: A Core-Set Approach, ICLR 2018.

    Args:
        evidence: Of the N candidates.
        features: Their features (N, F); directions are compared, not lengths.
        count: How many images to choose.
        masked_features: Features of the images that have a mask, (M, F); ``None``: there are none.
        masks: How many masks show each object class, (K - 1,); ``None``: none does.

    Raises:
        InputError: If there are fewer candidates, or the shapes do not fit.
    """
    if not 1 <= count <= len(evidence):
        raise InputError(
            f"count must be a number of images from 1 to the {len(evidence)} candidates, got {count}: ask for fewer "
            "(--count), or give more pictures"
        )
    if len(features) != len(evidence):
        raise InputError(f"expected features of {len(evidence)} candidates, got {features.shape}")
    directions = normalize(features)
    near = np.full(len(evidence), 2.0)
    if masked_features is not None and len(masked_features):
        near = pairwise_distances(directions, normalize(masked_features)).min(axis=1)
    shown = np.zeros(evidence.presence.shape[1]) if masks is None else np.asarray(masks, dtype=np.float64).copy()
    teaches, doubt = evidence.add_up(), find_mean_doubt(evidence)
    free = np.ones(len(evidence), dtype=bool)
    choices = []
    for _ in range(count):
        gains = teaches @ (doubt / (1 + shown))
        # Copies have the distance 0: they come last, in the order of their gain.
        order = np.lexsort((gains, gains * near, free))
        row = int(order[-1])
        choices.append(Choice(row, float(gains[row]), float(near[row])))
        free[row] = False
        shown += evidence.presence[row]
        near = np.minimum(near, pairwise_distances(directions, directions[row : row + 1])[:, 0])
    return choices


def find_mean_doubt(evidence: Evidence) -> np.ndarray:
    """The doubt of each class over all images, weighted by the probability that they show it; (K - 1,)."""
    total = evidence.presence.sum(axis=0)
    doubt: np.ndarray = (evidence.presence * evidence.doubt).sum(axis=0) / np.maximum(total, 1e-12)
    return doubt
