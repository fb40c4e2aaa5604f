"""Average precision of image-level scores, of many bootstrap samples at once."""

from __future__ import annotations

import numpy as np


def average_precision(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of one class for each of R weightings of N images, as scikit-learn's with ``sample_weight``.

    Args:
        scores: Of the N images, higher where the class is likelier.
        labels: Whether each shows it, bool, shape (N,).
        weights: How often each counts, shape (R, N).

    Returns:
        Shape (R,); NaN where no image counts that shows it.

    Examples:
        >>> scores, labels = np.array([0.9, 0.2, 0.4]), np.array([True, True, False])
        >>> average_precision(scores, labels, np.ones((1, 3))).round(4).tolist()
        [0.8333]
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # equal scores are one threshold
    hits = np.cumsum(weights[:, order] * labels[order], axis=1)[:, ends]
    taken = np.cumsum(weights[:, order], axis=1)[:, ends]
    with np.errstate(invalid="ignore"):
        precision = np.where(taken > 0, hits / taken, 0.0)
        recall = hits / hits[:, -1:]
    return (np.diff(recall, axis=1, prepend=0) * precision).sum(1)
