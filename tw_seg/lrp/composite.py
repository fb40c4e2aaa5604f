"""Which rule for which call. A composite is data; presets stand in one dict under zennit's names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tw_seg.errors import InputError
from tw_seg.lrp.graph import Call
from tw_seg.lrp.rules import Epsilon, Flat, InputRule, Rule, WSquare, ZBox


@dataclass(frozen=True)
class Composite:
    """A rule for every linear call, and one for the calls that read the images.

    Attributes:
        layer: Rule of the convolutions, linear layers and average pools.
        input: Rule of the convolutions and linear layers that read the images themselves, when the heatmap is
            read at the input; ``None``: as every other layer.
    """

    layer: Rule = field(default_factory=Epsilon)
    input: InputRule | None = None

    def rule(self, call: Call) -> Rule:
        """The rule of a call."""
        return self.layer


def epsilon(epsilon: float = 0.0) -> Composite:
    """LRP-epsilon everywhere; with ``epsilon = 0`` and ReLUs this is input x gradient."""
    return Composite(Epsilon(epsilon))


def epsilon_flat(epsilon: float = 0.0, stabilizer: float = 1e-6) -> Composite:
    """LRP-epsilon, with the flat rule at the input."""
    return Composite(Epsilon(epsilon), Flat(stabilizer))


def epsilon_wsquare(epsilon: float = 0.0, stabilizer: float = 1e-6) -> Composite:
    """LRP-epsilon, with the w-square rule at the input."""
    return Composite(Epsilon(epsilon), WSquare(stabilizer))


def epsilon_box(
    low: float | tuple[float, ...],
    high: float | tuple[float, ...],
    *,
    epsilon: float = 0.0,
    stabilizer: float = 1e-6,
) -> Composite:
    """LRP-epsilon, with the z-box rule at the input for images normalised into ``[low, high]``."""
    return Composite(Epsilon(epsilon), ZBox(low, high, stabilizer))


COMPOSITES: dict[str, Callable[..., Composite]] = {
    "epsilon": epsilon,
    "epsilon_flat": epsilon_flat,
    "epsilon_wsquare": epsilon_wsquare,
    "epsilon_box": epsilon_box,
}
"""Name -> preset; its arguments are numbers, so that it can be written in YAML."""


def create_composite(name: str, kwargs: dict[str, Any] | None = None) -> Composite:
    """Build a preset from names and numbers.

    Raises:
        InputError: For an unknown name or unknown numbers.
    """
    if name not in COMPOSITES:
        raise InputError(f"unknown composite {name!r}; there are {', '.join(COMPOSITES)}")
    try:
        return COMPOSITES[name](**(kwargs or {}))
    except TypeError as error:
        raise InputError(f"composite {name!r} does not take {kwargs}: {error}") from error
