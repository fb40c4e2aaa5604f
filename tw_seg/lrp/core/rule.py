"""What a relevance rule is: the methods by which the operations and the decode use it.

The rules themselves are in `tw_seg.lrp.rules`. Coefficients have K*S rows along the batch axis, classes
outermost; activations have S rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from tw_seg.lrp.core.linear_map import LinearMap


class Rule(ABC):
    """A rule of a call.

    Attributes:
        acts_on: The kinds of calls, or groups of them, that it can be used for.
        conserves: Whether the relevance at the inputs, in biases and in stabilisers sums up to that at the output.
    """

    acts_on: ClassVar[tuple[str, ...]]
    conserves: ClassVar[bool] = True

    @property
    def is_plain(self) -> bool:
        """Whether relevance passes as the operation alone says: the rule looks at nothing that was recorded."""
        return False


class LinearRule(Rule):
    """A rule of a linear map ``z = W a + b``."""

    acts_on: ClassVar[tuple[str, ...]] = ("convolution", "dense", "pool", "batch_norm")

    @abstractmethod
    def coefficient(self, c: Tensor, a: Tensor, z: Tensor, layer: LinearMap) -> Tensor:
        """The coefficient at the input.

        Args:
            c: Coefficient at the output, shape (K*S, *out).
            a: Input, shape (S, *in).
            z: Output, shape (S, *out).
            layer: The map from ``a`` to ``z``.

        Returns:
            Shape (K*S, *in); relevance at the input is ``a`` times it.
        """

    @abstractmethod
    def balance(self, c: Tensor, a: Tensor, z: Tensor, layer: LinearMap) -> tuple[Tensor, Tensor]:
        """Relevance absorbed by the bias, and by the stabiliser; each of shape (K*S, *out).

        The second holds everything else that inputs do not get: of a neuron without contributions, or what the
        signs of an alpha-beta rule add. ``sum(z * c) = sum(a * coefficient) + sum(bias) + sum(stabiliser)`` for
        each sample and class.
        """

    def stabilize_terms(self, c: Tensor, z: Tensor, axis: int = 0) -> Tensor:
        """The coefficient of each term of a sum or product ``z``, less what the stabiliser absorbs.

        A rule that acts on the groups ``"addition"`` or ``"product"`` has this method.

        Args:
            c: Coefficient at the output, (.., K*S, ..).
            z: Output, (.., S, ..).
            axis: Their batch axis.
        """
        raise NotImplementedError(f"{type(self).__name__} acts on no sum or product")


class InputRule(ABC):
    """A rule of the linear map that reads the images; arguments as in `LinearRule`.

    It has relevance in place of a coefficient: it gives some to inputs that are zero, which no coefficient can.
    """

    acts_on: ClassVar[tuple[str, ...]] = ("convolution", "dense")

    @abstractmethod
    def relevance(self, c: Tensor, a: Tensor, z: Tensor, layer: LinearMap) -> Tensor:
        """Relevance at the input, shape (K*S, *in)."""

    @abstractmethod
    def balance(self, c: Tensor, a: Tensor, z: Tensor, layer: LinearMap) -> tuple[Tensor, Tensor]:
        """As `LinearRule.balance`."""


class ActivationRule(Rule):
    """A rule of an elementwise activation ``y = f(u)``."""

    acts_on: ClassVar[tuple[str, ...]] = ("relu",)

    @abstractmethod
    def coefficient(self, c: Tensor, u: Tensor, y: Tensor, axis: int = 0) -> Tensor:
        """The coefficient at the input; not called where `is_plain`.

        Args:
            c: Coefficient at the output, (.., K*S, ..).
            u: Input, (.., S, ..).
            y: Output, likewise.
            axis: Their batch axis.

        Returns:
            A new tensor of the shape of ``c``.
        """
