"""Where to cut a map when no mask says so: rules that look at the values of one map alone.

Each rule is a function from the values of a map, in [0, 1] and of any shape, to a threshold; the region is what lies
above it. A map whose values are all the same says nothing about where: its region is empty by every rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tw_seg.arguments import is_number
from tw_seg.errors import InputError

CALIBRATED = "calibrated"
"""Name of the rule that is none of these: one threshold for all maps, chosen on masks."""


class ThresholdRule(NamedTuple):
    """A rule and its number.

    Attributes:
        find: The function; takes the number as its second argument if there is one.
        default: The number in [0, 1] unless another is given; ``None`` for a rule without a number.
    """

    find: Callable[..., float]
    default: float | None = None


def find_share(values: np.ndarray, share: float) -> float:
    """A share of the maximum.

    Examples:
        >>> find_share(np.array([0.0, 0.5, 1.0]), 0.3)
        0.3
    """
    return share * float(values.max())


def find_otsu(values: np.ndarray) -> float:
    """Otsu's threshold (1979), which separates two groups of least variance; scikit-image's."""
    from skimage.filters import threshold_otsu  # here, as in find_mixture: every model's start would wait for a second

    # In double precision: values that differ by rounding alone have no 256 bins between them in single.
    return float(threshold_otsu(values.astype(np.float64)))


def find_quantile(values: np.ndarray, share: float) -> float:
    """The value that a share of the pixels does not exceed: the region holds the rest of them, whatever they hold.

    Examples:
        >>> find_quantile(np.array([0.0, 0.2, 0.4, 1.0]), 0.5)
        0.30000000000000004
    """
    return float(np.quantile(values, share))


def find_mass(values: np.ndarray, share: float) -> float:
    """The largest value outside the smallest region that holds a share of the sum.

    Pixels of one value are in the region together or not at all.

    Examples:
        >>> find_mass(np.array([0.1, 0.2, 0.3, 0.4]), 0.65)  # 0.4 and 0.3 hold 0.7 of it
        0.2
    """
    descending = np.sort(values, axis=None)[::-1].astype(np.float64)
    held = descending.cumsum()
    last = descending[np.searchsorted(held, share * held[-1])]
    outside = descending[descending < last]
    return float(outside[0]) if len(outside) else 0.0


def find_mixture(values: np.ndarray) -> float:
    """The border of two normal distributions fitted to the values: scikit-learn's ``GaussianMixture``.

    It is the largest value, not above the mean of the brighter one, that more probably belongs to the darker one.
    """
    from sklearn.mixture import GaussianMixture

    flat = np.sort(values, axis=None).astype(np.float64)[:, None]
    mixture = GaussianMixture(2, max_iter=1000, random_state=0).fit(flat)
    bright = int(mixture.means_.argmax())
    below = flat[flat[:, 0] <= mixture.means_[bright, 0]]
    dark = below[mixture.predict(below) != bright] if len(below) else below
    return float(dark[-1, 0]) if len(dark) else 0.0


THRESHOLD_RULES: dict[str, ThresholdRule] = {
    "share": ThresholdRule(find_share, 0.3),
    "otsu": ThresholdRule(find_otsu),
    "quantile": ThresholdRule(find_quantile, 0.9),
    "mass": ThresholdRule(find_mass, 0.5),
    "mixture": ThresholdRule(find_mixture),
}
"""Every rule that needs no mask, by name."""


def check_rule(name: str, value: float | None) -> None:
    """Check a rule's name and number.

    Raises:
        InputError: The name is unknown, or the number does not belong to the rule or is outside [0, 1].
    """
    if name not in (*THRESHOLD_RULES, CALIBRATED):
        raise InputError(f"threshold_rule must be one of {', '.join((*THRESHOLD_RULES, CALIBRATED))}, got {name!r}")
    if value is None:
        return
    numbered = [key for key, rule in THRESHOLD_RULES.items() if rule.default is not None]
    if name not in numbered:
        raise InputError(
            f"threshold_value={value!r} has no meaning for threshold_rule={name!r}: leave it out, or use one of "
            f"{', '.join(numbered)}"
        )
    if not is_number(value) or not 0 <= value <= 1:
        raise InputError(f"threshold_value must be a number in [0, 1], got {value!r}")


def find_threshold(values: np.ndarray, name: str, value: float | None = None) -> float:
    """The threshold of a map by the rule of that name.

    Args:
        values: The map, in [0, 1], any shape, not empty.
        name: A key of `THRESHOLD_RULES`.
        value: Its number; ``None`` for the rule's default.

    Examples:
        >>> find_threshold(np.array([[0.0, 0.2], [0.6, 1.0]]), "share", 0.5)
        0.5
    """
    rule = THRESHOLD_RULES[name]
    if values.min() == values.max():
        return float(values.max())
    return rule.find(values) if rule.default is None else rule.find(values, rule.default if value is None else value)
