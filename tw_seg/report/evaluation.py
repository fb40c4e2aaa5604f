"""What is counted of every test image, and the scores of all of them with intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import DegenerateDataWarning, bootstrap
from torch import Tensor

from tw_seg.errors import DataError
from tw_seg.metrics import (
    confusion_matrix,
    dice_per_class,
    iou_per_class,
    pixel_accuracy,
    precision_per_class,
    recall_per_class,
)
from tw_seg.metrics.boundary import boundary_f, count_boundaries
from tw_seg.metrics.confidence import BINS, calibration_error, count_confidences
from tw_seg.metrics.ranking import average_precision
from tw_seg.types import BACKGROUND

OVERALL = ("miou", "dice", "pixel_acc", "boundary_f", "calibration_error", "map")
"""Scores of all classes together, in the order of tables."""
PER_CLASS = ("iou", "dice", "precision", "recall", "boundary_f", "ap")
"""Scores of each class; ``ap`` is of image-level probabilities, and NaN of the background."""

_CHUNK = 100  # bootstrap samples at a time


class Score(NamedTuple):
    """A score and its 95 % interval; NaN where undefined, the interval also where there is nothing to draw from.

    Attributes:
        value: The score of all images.
        low: Lower end of the interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


class Results(NamedTuple):
    """Scores of a data set.

    Attributes:
        overall: By the names in `OVERALL`.
        per_class: By the names in `PER_CLASS`, one for each class.
        confusion: Pixels of each class (row) by predicted class, int64, (K, K).
        confidences: See `tw_seg.metrics.confidence.count_confidences`.
        image_miou: Mean IoU of each image with a mask over its own classes, (M,), NaN without a labelled pixel.
        lost_miou: How much of ``1 - miou`` each of these images makes up, (M,); the sum is ``1 - miou``.
    """

    overall: dict[str, Score]
    per_class: dict[str, list[Score]]
    confusion: np.ndarray
    confidences: np.ndarray
    image_miou: np.ndarray
    lost_miou: np.ndarray


class Evaluation:
    """Counts of the images of a data set.

    Args:
        classes: The class names.

    Attributes:
        names: All images, in order.
        masked: Those of them that have a mask, by index.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.names: list[str] = []
        self.masked: list[int] = []
        self._probabilities: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._confusions: list[np.ndarray] = []
        self._boundaries: list[np.ndarray] = []
        self._confidences: list[np.ndarray] = []

    def add(
        self, name: str, logits: Tensor, labels: Tensor, *, mask_logits: Tensor | None, mask: Tensor | None
    ) -> np.ndarray | None:
        """Count an image.

        Args:
            name: Its name.
            logits: Image-level logits, (K,).
            labels: Image-level labels, (K,); NaN where unknown.
            mask_logits: Mask logits at the size of its mask, (K, h, w); ``None`` of a model without masks.
            mask: Its mask, int64, (h, w); ``None`` without one.

        Returns:
            The predicted mask, uint8, (h, w), if there are mask logits.
        """
        predicted = None if mask_logits is None else mask_logits.argmax(0)
        self._probabilities.append(logits.double().sigmoid().cpu().numpy())
        self._labels.append(labels.double().cpu().numpy())
        if mask is not None and mask_logits is not None and predicted is not None:
            k = len(self.classes)
            self.masked.append(len(self.names))
            self._confusions.append(confusion_matrix(mask, predicted, k).cpu().numpy())
            self._boundaries.append(count_boundaries(mask.cpu().numpy(), predicted.cpu().numpy(), k))
            self._confidences.append(count_confidences(mask_logits.float().softmax(0), mask))
        self.names.append(name)
        return None if predicted is None else predicted.to(torch.uint8).cpu().numpy()

    def compute(self, groups: Mapping[str, str] | None = None, *, resamples: int = 1000, seed: int = 0) -> Results:
        """Scores of all images, with bootstrap intervals (percentiles).

        Args:
            groups: What each image is drawn together with, by name; ``None``: every image by itself.
            resamples: Bootstrap samples; 0 for no intervals.
            seed: Of the draws.

        Raises:
            DataError: An image has no group.
        """
        lacking = [] if groups is None else [name for name in self.names if name not in groups]
        if lacking:
            raise DataError(f"{len(lacking)} test images have no group, {lacking[0]!r} first; add them to the table")
        units = self.names if groups is None else [groups[name] for name in self.names]
        unit_of = np.unique(np.asarray(units), return_inverse=True)[1]
        count = int(unit_of.max(initial=-1)) + 1
        values = self._score(np.ones((1, len(self.names))))[:, 0]
        low = high = np.full(len(values), np.nan)
        if count > 1 and resamples:
            with warnings.catch_warnings(action="ignore", category=DegenerateDataWarning):  # of undefined scores
                drawn = bootstrap(
                    (np.arange(count),),
                    lambda draws, axis: self._score(_count_draws(draws, count)[:, unit_of]),
                    n_resamples=resamples,
                    batch=_CHUNK,
                    vectorized=True,
                    method="percentile",
                    random_state=np.random.default_rng(seed),
                ).bootstrap_distribution
            defined = ~np.isnan(drawn).all(axis=1) & ~np.isnan(values)
            low, high = low.copy(), high.copy()
            low[defined], high[defined] = np.nanpercentile(drawn[defined], [2.5, 97.5], axis=1)
        scores = [Score(*map(float, row)) for row in zip(values, low, high, strict=True)]
        k, first = len(self.classes), len(OVERALL)
        confusions = self._stack(self._confusions, (k, k))
        return Results(
            overall=dict(zip(OVERALL, scores, strict=False)),
            per_class={name: scores[first + i * k : first + (i + 1) * k] for i, name in enumerate(PER_CLASS)},
            confusion=confusions.sum(0),
            confidences=self._stack(self._confidences, (BINS, 3)).sum(0),
            image_miou=iou_per_class(torch.from_numpy(confusions).double()).nanmean(-1).numpy(),
            lost_miou=share_losses(confusions),
        )

    def _score(self, weights: np.ndarray) -> np.ndarray:
        """All scores for each of R weightings of the images (R, N): shape (len(OVERALL) + len(PER_CLASS) * K, R)."""
        masks, k = weights[:, self.masked], len(self.classes)
        confusion = torch.from_numpy(_sum(masks, self._stack(self._confusions, (k, k)))).double()
        boundary = boundary_f(_sum(masks, self._stack(self._boundaries, (k, 4))))
        confidence = _sum(masks, self._stack(self._confidences, (BINS, 3)))
        iou, dice = iou_per_class(confusion), dice_per_class(confusion)
        precision, recall = precision_per_class(confusion), recall_per_class(confusion)
        ap = np.full((len(weights), k), np.nan)
        probabilities, labels = np.array(self._probabilities), np.array(self._labels)
        for column in range(BACKGROUND + 1, k):
            known = ~np.isnan(labels[:, column])
            if known.any():
                ap[:, column] = average_precision(
                    probabilities[known, column], labels[known, column] > 0, weights[:, known]
                )
        overall = [
            iou.nanmean(-1).numpy(),
            dice.nanmean(-1).numpy(),
            pixel_accuracy(confusion).numpy(),
            _mean_of_defined(boundary),
            calibration_error(confidence),
            _mean_of_defined(ap),
        ]
        each = [iou.numpy(), dice.numpy(), precision.numpy(), recall.numpy(), boundary, ap]
        return np.concatenate([np.stack(overall), *(scores.T for scores in each)])

    def _stack(self, counts: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
        return np.stack(counts) if counts else np.zeros((0, *shape), dtype=np.int64)


def share_losses(confusions: np.ndarray) -> np.ndarray:
    """How much of ``1 - mean IoU`` each image makes up.

    The mean IoU lacks, of each class that occurs, its wrong pixels divided by its union: these are shared out to the
    images that hold them.

    Args:
        confusions: Of M images, (M, K, K).

    Returns:
        Shape (M,); the sum is ``1 - miou``.
    """
    hits = np.diagonal(confusions, axis1=-2, axis2=-1)
    unions = confusions.sum(-1) + confusions.sum(-2) - hits
    total = unions.sum(0)
    occurs = total > 0
    return ((unions - hits)[:, occurs] / total[occurs]).sum(-1) / max(1, occurs.sum())


def _count_draws(draws: np.ndarray, count: int) -> np.ndarray:
    """How often each of ``count`` units was drawn, (R, count), from draws (R, count) or (count,)."""
    draws = np.atleast_2d(draws)
    flat = draws + count * np.arange(len(draws))[:, None]
    return np.bincount(flat.ravel(), minlength=len(draws) * count).reshape(len(draws), count)


def _sum(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weighted sums over images: (R, M) and (M, a, b) to (R, a, b)."""
    shape = counts.shape[1:]
    return (weights @ counts.reshape(len(counts), math.prod(shape))).reshape(len(weights), *shape)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN; NaN where all are."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(-1) / defined.sum(-1)
