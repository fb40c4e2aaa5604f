"""Relevance rules: frozen dataclasses, each with one pure function.

A rule acts on a linear map ``z = W a + b`` (convolution, linear layer, average pool). ``coefficient`` returns
the coefficient at the input, so that relevance is ``a * coefficient``; a rule of the input layer has
``relevance`` instead, because it redistributes relevance to inputs that are zero, which no coefficient can
express. Names follow zennit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.lrp.adjoints import LinearMap, stabilize


@dataclass(frozen=True)
class Epsilon:
    """LRP-epsilon: ``c_in = W^T (c * z / (z + epsilon * sign(z)))`` (Bach et al. 2015, eq. 58).

    With ``epsilon = 0`` the factor is exactly 1 and is not computed: no division.

    Attributes:
        epsilon: Stabiliser added to the magnitude of each pre-activation, in its units; >= 0.
    """

    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if not self.epsilon >= 0:
            raise InputError(f"epsilon must be a number >= 0, got {self.epsilon!r}")

    def coefficient(self, c: Tensor, a: Tensor, z: Tensor, layer: LinearMap) -> Tensor:
        """Coefficient (S, K, *in) at the input, from ``c`` (S, K, *out), ``a`` (S, *in), ``z`` (S, *out)."""
        return layer.adjoint(self.share(c, z), layer.weight)

    def share(self, c: Tensor, z: Tensor) -> Tensor:
        """The coefficient (S, K, *out) of inputs and bias alike; the rest goes to the stabiliser."""
        return c * (z / stabilize(z, self.epsilon)).unsqueeze(1) if self.epsilon else c


@dataclass(frozen=True)
class Flat:
    """Input rule: relevance is spread evenly over a neuron's inputs (Lapuschkin et al. 2019)."""

    stabilizer: float = 1e-6

    def relevance(self, c: Tensor, a: Tensor, z: Tensor, layer: LinearMap) -> Tensor:
        """Relevance (S, K, *in) at the input."""
        share = c * (z / stabilize(self.denominator(a, layer), self.stabilizer)).unsqueeze(1)
        return layer.adjoint(share, torch.ones_like(_weight(layer)))

    def denominator(self, a: Tensor, layer: LinearMap) -> Tensor:
        """What each neuron's relevance is divided by, before it is stabilised: its number of inputs."""
        return layer.forward(torch.ones_like(a[:1]), torch.ones_like(_weight(layer)), None)


@dataclass(frozen=True)
class WSquare:
    """Input rule: relevance is spread in proportion to the squared weights (Montavon et al. 2017, eq. 12)."""

    stabilizer: float = 1e-6

    def relevance(self, c: Tensor, a: Tensor, z: Tensor, layer: LinearMap) -> Tensor:
        """Relevance (S, K, *in) at the input."""
        share = c * (z / stabilize(self.denominator(a, layer), self.stabilizer)).unsqueeze(1)
        return layer.adjoint(share, _weight(layer).square())

    def denominator(self, a: Tensor, layer: LinearMap) -> Tensor:
        """What each neuron's relevance is divided by, before it is stabilised: its squared weights."""
        return layer.forward(torch.ones_like(a[:1]), _weight(layer).square(), None)


@dataclass(frozen=True)
class ZBox:
    """Input rule for inputs inside ``[low, high]`` (Montavon et al. 2017, eq. 14).

    Attributes:
        low: Smallest value an input can take after normalisation, one number or one per channel.
        high: Largest such value.
        stabilizer: Added to the magnitude of the denominator.
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    stabilizer: float = 1e-6

    def relevance(self, c: Tensor, a: Tensor, z: Tensor, layer: LinearMap) -> Tensor:
        """Relevance (S, K, *in) at the input."""
        weight = _weight(layer)
        low, high = (self._bound(bound, a) for bound in (self.low, self.high))
        share = c * (z / stabilize(self.denominator(a, layer), self.stabilizer)).unsqueeze(1)
        return (
            a.unsqueeze(1) * layer.adjoint(share, weight)
            - low * layer.adjoint(share, weight.clamp(min=0))
            - high * layer.adjoint(share, weight.clamp(max=0))
        )

    def denominator(self, a: Tensor, layer: LinearMap) -> Tensor:
        """What each neuron's relevance is divided by, before it is stabilised."""
        weight = _weight(layer)
        low, high = (self._bound(bound, a).expand_as(a) for bound in (self.low, self.high))
        return (
            layer.forward(a, weight, None)
            - layer.forward(low, weight.clamp(min=0), None)
            - layer.forward(high, weight.clamp(max=0), None)
        )

    def _bound(self, bound: float | tuple[float, ...], a: Tensor) -> Tensor:
        value = torch.as_tensor(bound, dtype=a.dtype, device=a.device).reshape(-1)
        if value.numel() not in (1, a.shape[1]):
            raise InputError(
                f"ZBox bound has {value.numel()} values for an input of {a.shape[1]} channels; "
                "give one number or one per channel"
            )
        return value.reshape(-1, *([1] * (a.ndim - 2)))


Rule = Epsilon
InputRule = Flat | WSquare | ZBox

RULES: dict[str, type[Rule] | type[InputRule]] = {
    "epsilon": Epsilon,
    "flat": Flat,
    "wsquare": WSquare,
    "zbox": ZBox,
}


def _weight(layer: LinearMap) -> Tensor:
    if layer.weight is None:
        raise InputError("an input rule needs a convolution or a linear layer at the input, found a pool")
    return layer.weight


__all__ = ["RULES", "Epsilon", "Flat", "InputRule", "Rule", "WSquare", "ZBox"]
