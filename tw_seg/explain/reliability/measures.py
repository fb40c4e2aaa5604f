"""How good a score of masks is: does it find the bad ones, and does it mean what it says?

Scores are of N masks, larger for better ones; ``dice`` says how good each is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score

from tw_seg.arguments import check_counts
from tw_seg.errors import InputError


class Detection(NamedTuple):
    """How well low scores find masks that are not good enough; NaN where all are, or none.

    Attributes:
        auroc: Probability that such a mask has a lower score than another one.
        aupr: Average precision; that of chance is the share of such masks.
    """

    auroc: float
    aupr: float


class RiskCurve(NamedTuple):
    """What is left when masks with low scores are put aside.

    Attributes:
        coverages: Shares of the masks that are kept, 1/N to 1, shape (N,).
        risks: Mean of 1 - Dice of those, shape (N,).
        area: Mean of the risks: the area under the curve.
    """

    coverages: np.ndarray
    risks: np.ndarray
    area: float


def measure_detection(scores: ArrayLike, dice: ArrayLike, min_dice: float) -> Detection:
    """AUROC and AUPR of "Dice below min_dice", scikit-learn's.

    Raises:
        InputError: Lengths differ, or a number is not finite.

    Examples:
        >>> measure_detection([0.9, 0.8, 0.1], [0.95, 0.4, 0.3], 0.7)
        Detection(auroc=1.0, aupr=1.0)
    """
    values, quality = _check(scores, dice)
    bad = quality < min_dice
    if bad.all() or not bad.any():
        return Detection(np.nan, np.nan)
    return Detection(float(roc_auc_score(bad, -values)), float(average_precision_score(bad, -values)))


def trace_risk(scores: ArrayLike, dice: ArrayLike) -> RiskCurve:
    """The risk-coverage curve (El-Yaniv and Wiener 2010); masks of one score are kept in an order drawn at random.

    So the risk within a group of equal scores is its expectation.

    Raises:
        InputError: Lengths differ, a number is not finite, or there is no mask.

    Examples:
        >>> trace_risk([0.9, 0.1], [1.0, 0.5]).area  # nothing is lost with the first alone, a quarter with both
        0.125
    """
    values, quality = _check(scores, dice)
    if len(values) == 0:
        raise InputError("a risk-coverage curve needs a mask or more, got none")
    _, group, counts = np.unique(-values, return_inverse=True, return_counts=True)
    losses = np.bincount(group, weights=1 - quality) / counts  # the mean of each group, best scores first
    kept = np.arange(1, len(values) + 1)
    risks = np.repeat(losses, counts).cumsum() / kept
    return RiskCurve(kept / len(values), risks, float(risks.mean()))


def measure_calibration_error(scores: ArrayLike, good: ArrayLike, *, bins: int = 10) -> float:
    """The expected calibration error (Naeini et al. 2015): how far scores are from the share of good masks.

    Scores are put into bins of equal width, the upper end included; the error is the mean over the masks of the
    difference between the mean score and the share of good masks of their bin.

    Args:
        scores: Probabilities in [0, 1], N.
        good: Whether each mask is good enough, N.
        bins: Number of bins.

    Raises:
        InputError: Lengths differ, there is no mask, or a score is no probability.

    Examples:
        >>> measure_calibration_error([0.75, 0.75, 0.75, 0.75], [True, True, False, False])
        0.25
    """
    check_counts(1, bins=bins)
    values, hits = _check(scores, np.asarray(good, dtype=np.float64))
    if len(values) == 0 or values.min() < 0 or values.max() > 1:
        raise InputError("a calibration error needs probabilities in [0, 1], one or more")
    places = np.clip(np.ceil(values * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, weights=values, minlength=bins) - np.bincount(places, weights=hits, minlength=bins)
    return float(np.abs(gaps).sum() / len(values))


def compare_detection(
    first: ArrayLike,
    second: ArrayLike,
    dice: ArrayLike,
    min_dice: float,
    *,
    units: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """AUROC of one score less that of another on the same masks, with its 95 % interval (percentile bootstrap).

    Args:
        first: Scores, N.
        second: The others.
        dice: Of the masks.
        min_dice: What is good enough.
        units: What each mask is drawn with, such as the group of pictures of one thing; ``None``: alone.
        resamples: Draws; those in which all masks are good enough, or none, are left out.
        seed: Of the draws.

    Returns:
        The difference, and the ends of its interval; NaN where it is undefined.
    """
    one, quality = _check(first, dice)
    two, _ = _check(second, dice)
    difference = measure_detection(one, quality, min_dice).auroc - measure_detection(two, quality, min_dice).auroc
    _, unit_of = np.unique(np.arange(len(one)) if units is None else np.asarray(units), return_inverse=True)
    members = [np.flatnonzero(unit_of == unit) for unit in range(unit_of.max(initial=-1) + 1)]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples if len(members) > 1 else 0):
        rows = np.concatenate([members[unit] for unit in rng.integers(len(members), size=len(members))])
        bad = quality[rows] < min_dice
        found.append(_rank(one[rows], bad) - _rank(two[rows], bad))
    kept = np.array([value for value in found if not np.isnan(value)])
    low, high = np.percentile(kept, [2.5, 97.5]) if len(kept) else (np.nan, np.nan)
    return float(difference), float(low), float(high)


def _rank(scores: np.ndarray, bad: np.ndarray) -> float:
    """The AUROC by ranks: a tenth of the time of scikit-learn's, of which a bootstrap takes thousands."""
    count = int(bad.sum())
    others = len(bad) - count
    if count == 0 or others == 0:
        return np.nan
    return float((rankdata(-scores)[bad].sum() - count * (count + 1) / 2) / (count * others))


def _check(scores: ArrayLike, dice: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values, quality = np.asarray(scores, dtype=np.float64), np.asarray(dice, dtype=np.float64)
    if values.shape != quality.shape or values.ndim != 1:
        raise InputError(f"expected a score and a Dice for each mask, got {values.shape} and {quality.shape}")
    if not (np.isfinite(values).all() and np.isfinite(quality).all()):
        raise InputError("scores and Dice must be finite: leave out masks without a labelled pixel")
    return values, quality
