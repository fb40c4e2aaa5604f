"""Relevance rules: frozen dataclasses, each with pure functions.

What a rule must be able to do is said in `tw_seg.lrp.core.rule`: one of a linear map ``z = W a + b``
(convolution, linear layer, average pool, BatchNorm) and one of an activation give the ``coefficient`` at the input, so
that relevance is the input times it; one of the images gives ``relevance`` itself. Names and values follow zennit.

A stabiliser of 0 divides by the denominator as it is, where that is not 0: exact, and finite as long as its inverse
is. Coefficients have K*S rows along the batch axis, classes outermost; activations have S rows.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.lrp.core.linear_map import LinearMap, per_channel, stabilize, times
from tw_seg.lrp.core.rule import ActivationRule, InputRule, LinearRule, Rule

Weight = Tensor | float
"""A modified weight, or a multiple of the matrix of a map that has no weight (a pool)."""


class TermsRule(InputRule):
    """A rule of the images by what each input adds to a denominator, see `terms`."""

    stabilizer: float

    @abstractmethod
    def terms(self, a: Tensor, layer: LinearMap) -> list[tuple[Tensor | None, Tensor]]:
        """Pairs (x, W'): input i gets ``sum x_i W'_ji`` shares of neuron j's relevance; ``None`` for x = 1."""

    def bias(self, layer: LinearMap) -> Tensor | None:
        """The bias's own share."""
        return None

    def relevance(self, c: Tensor, a: Tensor, z: Tensor, layer: LinearMap) -> Tensor:
        terms = self.terms(a, layer)
        share = times(c, _ratio(z, self._denominator(a, layer, terms), self.stabilizer), layer.out_axis)
        spread = [(x, layer.adjoint(share, weight)) for x, weight in terms]
        return _sum([part if x is None else times(part, x, layer.in_axis) for x, part in spread])

    def balance(self, c: Tensor, a: Tensor, z: Tensor, layer: LinearMap) -> tuple[Tensor, Tensor]:
        denominator = self._denominator(a, layer, self.terms(a, layer))
        share = times(c, _ratio(z, denominator, self.stabilizer), layer.out_axis)
        bias = self.bias(layer)
        absorbed = torch.zeros_like(share) if bias is None else share * bias
        return absorbed, times(c, z, layer.out_axis) - times(share, denominator, layer.out_axis)

    def _denominator(self, a: Tensor, layer: LinearMap, terms: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor:
        """What each neuron's relevance is divided by, before it is stabilised; one row if it has no x."""
        one = torch.ones_like(a.narrow(layer.in_axis, 0, 1))
        total = _sum([layer.forward(one if x is None else x, weight, None) for x, weight in terms])
        bias = self.bias(layer)
        return total if bias is None else total + bias


@dataclass(frozen=True)
class Part:
    """One part of a rule of the form ``c_in = scale * W'^T (c * z / d)`` with ``d = W' a + b'``.

    ``W'`` is one matrix for positive inputs and another for negative ones.

    Attributes:
        scale: Factor of the part.
        mask: Outputs that the part acts on, bool of the shape of z; ``None`` for all.
        positive: Weight of inputs >= 0.
        negative: Weight of inputs < 0.
        bias: Bias in the denominator, ``None`` for none.
    """

    scale: float
    mask: Tensor | None
    positive: Weight
    negative: Weight
    bias: Tensor | None


class PartsRule(LinearRule):
    """A rule that is a sum of parts, see `Part`."""

    stabilizer: float
    zero_bias: bool

    @abstractmethod
    def split(self, weight: Weight, bias: Tensor | None, z: Tensor) -> list[Part]:
        """The parts for a weight and the bias that takes part."""

    def coefficient(self, c: Tensor, a: Tensor, z: Tensor, layer: LinearMap) -> Tensor:
        positive, negative = [], []
        for part, ratio, _ in self._ratios(a, z, layer):
            share = times(c, part.scale * ratio, layer.out_axis)
            if not _is_zero(part.positive):
                positive.append(_adjoint(layer, share, part.positive))
            if not layer.nonnegative and not _is_zero(part.negative):
                negative.append(_adjoint(layer, share, part.negative))
        if layer.nonnegative:
            return _sum(positive)
        return _by_sign(a, positive, negative, layer.in_axis)

    def balance(self, c: Tensor, a: Tensor, z: Tensor, layer: LinearMap) -> tuple[Tensor, Tensor]:
        rest = times(c, z, layer.out_axis)
        absorbed = torch.zeros_like(rest)
        for part, ratio, denominator in self._ratios(a, z, layer):
            share = times(c, part.scale * ratio, layer.out_axis)
            rest = rest - times(share, denominator, layer.out_axis)
            if part.bias is not None:
                absorbed = absorbed + share * part.bias
        return absorbed, rest

    def _ratios(self, a: Tensor, z: Tensor, layer: LinearMap) -> list[tuple[Part, Tensor, Tensor]]:
        """Each part that can hand on something, with ``z / stabilize(d)`` and ``d``."""
        weight: Weight = 1.0 if layer.weight is None else layer.weight
        up = a if layer.nonnegative else a.clamp(min=0)
        found = []
        for part in self.split(weight, None if self.zero_bias else layer.bias, z):
            terms = [] if _is_zero(part.positive) else [_forward(layer, up, part.positive)]
            if not layer.nonnegative and not _is_zero(part.negative):
                terms.append(_forward(layer, a - up, part.negative))
            if not terms:
                continue
            d = _sum(terms) if part.bias is None else _sum(terms) + part.bias
            found.append((part, _ratio(z, d, self.stabilizer, part.mask), d))
        return found


@dataclass(frozen=True)
class Epsilon(LinearRule):
    """LRP-epsilon: ``c_in = W^T (c * z / (z + epsilon * sign(z)))`` (Bach et al. 2015, eq. 58).

    With ``epsilon = 0`` the factor is exactly 1 and is not computed: no division.

    Attributes:
        epsilon: Stabiliser added to the magnitude of each pre-activation, in its units; >= 0.

    Examples:
        >>> from tw_seg.lrp.core import linear_map
        >>> layer = linear_map.linear(torch.tensor([[2.0, -1.0]]), None)
        >>> Epsilon().coefficient(torch.ones(1, 1), torch.ones(1, 2), torch.ones(1, 1), layer).tolist()
        [[2.0, -1.0]]
    """

    acts_on: ClassVar[tuple[str, ...]] = (*LinearRule.acts_on, "interpolate", "addition", "product")
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        _check(self, "epsilon")

    def coefficient(self, c: Tensor, a: Tensor, z: Tensor, layer: LinearMap) -> Tensor:
        return layer.adjoint(self.stabilize_terms(c, z, layer.out_axis), layer.weight)

    @property
    def is_plain(self) -> bool:
        return self.epsilon == 0

    def stabilize_terms(self, c: Tensor, z: Tensor, axis: int = 0) -> Tensor:
        return times(c, _ratio(z, z, self.epsilon), axis) if self.epsilon else c

    def balance(self, c: Tensor, a: Tensor, z: Tensor, layer: LinearMap) -> tuple[Tensor, Tensor]:
        share = self.stabilize_terms(c, z, layer.out_axis)
        absorbed = torch.zeros_like(c) if layer.bias is None else share * layer.bias
        return absorbed, times(c - share, z, layer.out_axis)


@dataclass(frozen=True)
class ZPlus(PartsRule):
    """LRP-z+: in proportion to positive contributions (Montavon et al. 2017, eq. 13; Bach et al. 2015, eq. 60).

    The same as ``AlphaBeta(alpha=1, beta=0)``. Inputs may have both signs.

    Attributes:
        stabilizer: Added to the magnitude of the denominator, in units of z; >= 0.
        zero_bias: Leave the bias out of the denominator: it absorbs nothing.
    """

    stabilizer: float = 1e-6
    zero_bias: bool = False

    def __post_init__(self) -> None:
        _check(self, "stabilizer")

    def split(self, weight: Weight, bias: Tensor | None, z: Tensor) -> list[Part]:
        return [_positive(1.0, weight, bias)]


@dataclass(frozen=True)
class AlphaBeta(PartsRule):
    """LRP-alpha-beta: positive contributions times alpha, negative ones times beta (Bach et al. 2015, eq. 60).

    A neuron that has contributions of one sign only hands on alpha times its relevance, or -beta times it.

    Attributes:
        alpha: Factor of positive contributions.
        beta: Factor of negative contributions; alpha - beta = 1. With 0 nothing is computed for them.
        stabilizer: Added to the magnitude of both denominators, in units of z; >= 0.
        zero_bias: Leave the bias out of the denominators: it absorbs nothing.
    """

    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float = 1e-6
    zero_bias: bool = False

    def __post_init__(self) -> None:
        _check(self, "alpha", "beta", "stabilizer")
        if abs(self.alpha - self.beta - 1) > 1e-9:
            raise InputError(
                f"AlphaBeta needs alpha - beta = 1, got alpha={self.alpha!r} and beta={self.beta!r}; "
                f"for this beta alpha is {self.beta + 1!r}"
            )

    def split(self, weight: Weight, bias: Tensor | None, z: Tensor) -> list[Part]:
        positive = _positive(self.alpha, weight, bias)
        return [positive, _negative(-self.beta, weight, bias)] if self.beta else [positive]


@dataclass(frozen=True)
class Gamma(PartsRule):
    """LRP-gamma: contributions of the sign of z count ``1 + gamma`` times (Montavon et al. 2019, table 1).

    Generalised to inputs of both signs (Andeol et al. 2021). A neuron with ``z = 0`` hands on nothing.

    Attributes:
        gamma: How much such contributions are favoured; 0 is LRP-epsilon, infinity tends to LRP-z+.
        stabilizer: Added to the magnitude of the denominator, in units of z; >= 0.
        zero_bias: Leave the bias out of the denominator: it absorbs nothing.
    """

    gamma: float = 0.25
    stabilizer: float = 1e-6
    zero_bias: bool = False

    def __post_init__(self) -> None:
        _check(self, "gamma", "stabilizer")

    def split(self, weight: Weight, bias: Tensor | None, z: Tensor) -> list[Part]:
        plus, minus = weight + self.gamma * _plus(weight), weight + self.gamma * _minus(weight)
        up = down = None
        if bias is not None:
            up, down = bias + self.gamma * _plus(bias), bias + self.gamma * _minus(bias)
        return [Part(1.0, z > 0, plus, minus, up), Part(1.0, z < 0, minus, plus, down)]


@dataclass(frozen=True)
class Contrast(PartsRule):
    """Rule of the head for CLRP2: z+ of a class less z+ of the same class with its weights negated.

    ``R_i = R_k (a_i w+_ik / z+_k - a_i w-_ik / z-_k)``: what speaks for the class less what speaks against it, each
    of them normalised. Where both kinds of contributions exist the total is 0 (Gu et al. 2018, arXiv 1812.02100).

    Attributes:
        stabilizer: Added to the magnitude of both denominators, in units of z; >= 0.
        zero_bias: Leave the bias out of the denominators: it absorbs nothing.
    """

    stabilizer: float = 1e-6
    zero_bias: bool = False

    def __post_init__(self) -> None:
        _check(self, "stabilizer")

    def split(self, weight: Weight, bias: Tensor | None, z: Tensor) -> list[Part]:
        return [_positive(1.0, weight, bias), _negative(-1.0, weight, bias)]


@dataclass(frozen=True)
class Flat(TermsRule):
    """Input rule: relevance is spread evenly over a neuron's inputs (Lapuschkin et al. 2019).

    Attributes:
        stabilizer: Added to the denominator, the number of inputs; >= 0.
    """

    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        _check(self, "stabilizer")

    def terms(self, a: Tensor, layer: LinearMap) -> list[tuple[Tensor | None, Tensor]]:
        return [(None, torch.ones_like(_weight(layer)))]


@dataclass(frozen=True)
class WSquare(TermsRule):
    """Input rule: relevance is spread in proportion to the squared weights (Montavon et al. 2017, eq. 12).

    Attributes:
        stabilizer: Added to the denominator, in units of squared weights; >= 0.
        zero_bias: Leave the squared bias out of the denominator, as published; zennit has it there by default.
    """

    stabilizer: float = 1e-6
    zero_bias: bool = True

    def __post_init__(self) -> None:
        _check(self, "stabilizer")

    def terms(self, a: Tensor, layer: LinearMap) -> list[tuple[Tensor | None, Tensor]]:
        return [(None, _weight(layer).square())]

    def bias(self, layer: LinearMap) -> Tensor | None:
        return None if self.zero_bias or layer.bias is None else layer.bias.square()


@dataclass(frozen=True)
class ZBox(TermsRule):
    """Input rule for inputs inside ``[low, high]`` (Montavon et al. 2017, eq. 14).

    Inputs outside are an error where the check costs nothing: it is left out on other devices than the CPU, where
    it would wait for the device, and under ``torch.compile`` and ``torch.export``, where values are not known.

    Attributes:
        low: Smallest value an input can take after normalisation, one number or one per channel.
        high: Largest such value.
        stabilizer: Added to the magnitude of the denominator, in units of z; >= 0.
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    stabilizer: float = 1e-6

    def __post_init__(self) -> None:
        _check(self, "stabilizer")
        for name in ("low", "high"):
            bound = getattr(self, name)
            if isinstance(bound, Sequence) and not isinstance(bound, str):
                object.__setattr__(self, name, tuple(bound))  # a list, as YAML gives it, could not be hashed
        low, high = self._numbers("low"), self._numbers("high")
        if len(low) != len(high) and 1 not in (len(low), len(high)):
            raise InputError(f"ZBox has {len(low)} values of low and {len(high)} of high; give one, or one per channel")
        count = max(len(low), len(high))
        for below, above in zip(low * (count // len(low)), high * (count // len(high)), strict=True):
            if not below < above:
                raise InputError(f"ZBox needs low < high, got low={self.low!r} and high={self.high!r}")

    @classmethod
    def from_normalisation(
        cls,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        *,
        low: float = 0.0,
        high: float = 1.0,
        stabilizer: float = 1e-6,
    ) -> ZBox:
        """The box of images in ``[low, high]`` that are normalised as ``(image - mean) / std``.

        Args:
            mean: One number or one per channel.
            std: Likewise, > 0.
            low: Smallest value before normalisation.
            high: Largest one.
            stabilizer: As in the class.

        Examples:
            >>> ZBox.from_normalisation((0.5, 0.0), (0.5, 0.25)).high
            (1.0, 4.0)
        """
        means, stds = ((float(v),) if isinstance(v, (int, float)) else tuple(v) for v in (mean, std))
        if len(means) != len(stds) and 1 not in (len(means), len(stds)):
            raise InputError(f"{len(means)} values of mean but {len(stds)} of std; give one, or one per channel")
        if not all(value > 0 for value in stds):
            raise InputError(f"std must be > 0, got {std!r}")
        count = max(len(means), len(stds))
        pairs = list(zip(means * (count // len(means)), stds * (count // len(stds)), strict=True))
        lowest, highest = (tuple((value - m) / s for m, s in pairs) for value in (low, high))
        return cls(lowest, highest, stabilizer)

    def terms(self, a: Tensor, layer: LinearMap) -> list[tuple[Tensor | None, Tensor]]:
        weight = _weight(layer)
        low, high = self._bound("low", a), self._bound("high", a)
        if a.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_inside(a, low, high)
        # Both products are >= 0 inside the box: nothing cancels.
        return [(a - low, _plus(weight)), (a - high, _minus(weight))]

    def _numbers(self, name: str) -> tuple[float, ...]:
        bound = getattr(self, name)
        numbers = bound if isinstance(bound, tuple) else (bound,)
        if not numbers or not all(_is_number(value) for value in numbers):
            raise InputError(f"{name} of ZBox must be a finite number or one per channel, got {bound!r}{_hint(bound)}")
        return numbers

    def _bound(self, name: str, a: Tensor) -> Tensor | float:
        numbers = self._numbers(name)
        if len(numbers) == 1:
            return float(numbers[0])
        if len(numbers) != a.shape[1]:
            raise InputError(
                f"{name} of ZBox has {len(numbers)} values for an input of {a.shape[1]} channels; "
                "give one number or one per channel"
            )
        # Filled on the device: a tensor made of a list would be copied there.
        return per_channel(torch.cat([a.new_full((1,), float(value)) for value in numbers]), a.ndim)

    def _check_inside(self, a: Tensor, low: Tensor | float, high: Tensor | float) -> None:
        slack = 1e-4 * (high - low)
        for name, excess in (("low", low - a), ("high", a - high)):
            outside = excess > slack
            if outside.any():
                value = a[outside][0].item()
                raise InputError(
                    f"ZBox: an input value is {value:.6g}, outside {name}={getattr(self, name)!r}. low and high are "
                    "the bounds of normalised images: (0 - mean) / std and (1 - mean) / std for images in [0, 1], "
                    "as ZBox.from_normalisation(mean, std) makes them"
                )


@dataclass(frozen=True)
class Pass(ActivationRule):
    """Relevance passes an activation unchanged, the default: ``c_in = c * f(u) / u``, for a ReLU its gate.

    The ratio belongs to the kind of activation, with its limit at ``u = 0``: ``tw_seg.lrp.ops`` has it.
    """

    acts_on: ClassVar[tuple[str, ...]] = ("activation",)

    @property
    def is_plain(self) -> bool:
        return True

    def coefficient(self, c: Tensor, u: Tensor, y: Tensor, axis: int = 0) -> Tensor:
        raise NotImplementedError("the ratio belongs to the operation")


@dataclass(frozen=True)
class Deconvnet(ActivationRule):
    """A ReLU hands on positive coefficients, whatever its input (Zeiler and Fergus 2014)."""

    conserves: ClassVar[bool] = False

    def coefficient(self, c: Tensor, u: Tensor, y: Tensor, axis: int = 0) -> Tensor:
        return c.clamp(min=0)


@dataclass(frozen=True)
class Guided(ActivationRule):
    """A ReLU hands on positive coefficients where its input is positive (Springenberg et al. 2015)."""

    conserves: ClassVar[bool] = False

    def coefficient(self, c: Tensor, u: Tensor, y: Tensor, axis: int = 0) -> Tensor:
        return times(c.clamp(min=0), u > 0, axis)


RULES: dict[str, type[Rule] | type[InputRule]] = {
    "epsilon": Epsilon,
    "gamma": Gamma,
    "alphabeta": AlphaBeta,
    "zplus": ZPlus,
    "contrast": Contrast,
    "zbox": ZBox,
    "wsquare": WSquare,
    "flat": Flat,
    "pass": Pass,
    "deconvnet": Deconvnet,
    "guided": Guided,
}
"""Name, as in configs -> rule."""


def _ratio(z: Tensor, denominator: Tensor, stabilizer: float, mask: Tensor | None = None) -> Tensor:
    """``z / stabilize(denominator)``; 0 outside the mask and where the denominator is 0.

    There nothing contributed: relevance at the inputs is 0 either way, and coefficients of the size of
    ``z / stabilizer`` would only overflow.
    """
    acts = denominator != 0 if mask is None else mask & (denominator != 0)
    return torch.where(acts, z, 0.0) / torch.where(acts, stabilize(denominator, stabilizer), 1.0)


def _positive(scale: float, weight: Weight, bias: Tensor | None) -> Part:
    """The part of positive contributions."""
    return Part(scale, None, _plus(weight), _minus(weight), _plus(bias))


def _negative(scale: float, weight: Weight, bias: Tensor | None) -> Part:
    """The part of negative contributions."""
    return Part(scale, None, _minus(weight), _plus(weight), _minus(bias))


def _plus(weight: Any) -> Any:
    """The positive part of a weight, number or bias, if there is one."""
    if weight is None:
        return None
    return weight.clamp(min=0) if isinstance(weight, Tensor) else max(weight, 0.0)


def _minus(weight: Any) -> Any:
    """The negative part."""
    return None if weight is None else weight - _plus(weight)


def _is_zero(weight: Weight) -> bool:
    return isinstance(weight, float) and weight == 0


def _forward(layer: LinearMap, a: Tensor, weight: Weight) -> Tensor:
    if isinstance(weight, Tensor):
        return layer.forward(a, weight, None)
    return layer.forward(a, None, None) * weight


def _adjoint(layer: LinearMap, c: Tensor, weight: Weight) -> Tensor:
    return layer.adjoint(c, weight) if isinstance(weight, Tensor) else layer.adjoint(c, None) * weight


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _by_sign(a: Tensor, positive: Sequence[Tensor], negative: Sequence[Tensor], axis: int) -> Tensor:
    """The sum of the first coefficients where ``a >= 0``, of the others elsewhere."""
    rows = (-1, a.shape[axis])
    up, down = (_sum(terms).unflatten(axis, rows) if terms else 0.0 for terms in (positive, negative))
    return torch.where((a >= 0).unsqueeze(axis), up, down).flatten(axis, axis + 1)


def _weight(layer: LinearMap) -> Tensor:
    if layer.weight is None:
        raise InputError("an input rule needs a convolution or a linear layer at the input, found a pool")
    return layer.weight


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check(rule: Rule | InputRule, *names: str) -> None:
    """Each named field must be a finite number >= 0."""
    for name in names:
        value = getattr(rule, name)
        if not _is_number(value) or value < 0:
            raise InputError(f"{name} of {type(rule).__name__} must be a number >= 0, got {value!r}{_hint(value)}")
    if not isinstance(getattr(rule, "zero_bias", False), bool):
        raise InputError(f"zero_bias of {type(rule).__name__} must be true or false, got {rule.zero_bias!r}")  # type: ignore[union-attr]


def _hint(value: Any) -> str:
    """YAML 1.1 takes 1e-6 for text."""
    text = value if isinstance(value, str) else ""
    return "; in YAML write 1.0e-6, not 1e-6" if "e" in text.lower() else ""
