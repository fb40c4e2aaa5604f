"""A classifier as a list of calls. A call is one execution: a ReLU module used four times is four calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Ref:
    """The value of an earlier call."""

    name: str


@dataclass(frozen=True)
class Mode:
    """The training flag of a module at the time of the run, where the classifier passes it as an argument."""

    path: str


@dataclass(frozen=True)
class Call:
    """One execution of one operation.

    Attributes:
        name: Unique name of the call (the fx node's).
        path: Path of the module it happens in, e.g. ``"layer1.0.conv1"``; for messages and for read-outs.
        kind: Key into ``tw_seg.lrp.ops.OPS``; ``"constant"`` for values that carry no relevance.
        op: ``"call_module"``, ``"call_function"``, ``"call_method"`` or ``"get_attr"``.
        target: Module path, function, method name or attribute path.
        args: Positional arguments; values of earlier calls are ``Ref``.
        kwargs: Keyword arguments, likewise.
        inputs: Names of the calls whose activations are this call's inputs and receive its relevance.
        options: Arguments by name (stride, padding ...), ``Ref`` where they are tensors.
        weight: Dotted name of its weight in the classifier; ``None`` if it has none or computes it.
        norm: Name of the BatchNorm call after it that is fused into this linear call, if any.
        norm_before: Name of the BatchNorm call before it that is fused into this linear call, if any.
        depth: Place among the linear calls: 0 nearest the images, 1 nearest the logits.
        nonnegative: Whether its first input is known to be >= 0.
    """

    name: str
    path: str
    kind: str
    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    weight: str | None = None
    norm: str | None = None
    norm_before: str | None = None
    depth: float = 0.0
    nonnegative: bool = False


@dataclass(frozen=True)
class Graph:
    """Calls in the order of execution.

    Attributes:
        calls: Every call, constants included.
        input: Name of the images.
        output: Name of the logits.
        specialised: Whether the classifier's forward branched on sizes: then it holds for one image shape.
    """

    calls: tuple[Call, ...]
    input: str
    output: str
    specialised: bool = False

    def readout(self, place: str | float) -> str:
        """The call whose output is read at a place.

        Args:
            place: ``"input"``, the path of a module (its last call), the name of a call, or a fraction of the
                depth: 0 is the input, 1 the last convolution, f the convolution number ``ceil(f * n)`` of n. A
                convolution on a branch sees the relevance of that branch; name its block to see all of it.

        Raises:
            KeyError: If there is no such call, module or fraction.
        """
        if not isinstance(place, str):
            return self._at_fraction(float(place))
        if place == "input":
            return self.input
        relevant = [call for call in self.calls if call.inputs]
        inside = [call.name for call in relevant if call.path == place or call.path.startswith(place + ".")]
        inside = inside or [call.name for call in relevant if call.name == place]
        if not inside:
            raise KeyError(place)
        return inside[-1]

    def _at_fraction(self, fraction: float) -> str:
        if not 0 <= fraction <= 1:
            raise KeyError(fraction)
        convolutions = [call.name for call in self.calls if call.kind in ("conv", "conv_transpose")]
        # The smallest number of convolutions that reaches the fraction; the tolerance is for k/n in floating point.
        number = math.ceil(fraction * len(convolutions) - 1e-9)
        if number == 0 or not convolutions:
            return self.input
        return convolutions[number - 1]

    def last_uses(self, kept: frozenset[str]) -> dict[str, tuple[str, ...]]:
        """For each call, the activations that no later call takes; constants and ``kept`` are not among them."""
        free = {call.name for call in self.calls if call.inputs} - kept
        found: dict[str, tuple[str, ...]] = {}
        for call in reversed(self.calls):
            used = {call.name, *refs((call.args, call.kwargs, call.options))} & free
            found[call.name] = tuple(sorted(used))
            free -= used
        return found

    def downstream(self, starts: tuple[str, ...]) -> frozenset[str]:
        """The calls ``starts`` and all that depend on their activations."""
        reached = set(starts)
        for call in self.calls:
            if any(name in reached for name in call.inputs):
                reached.add(call.name)
        return frozenset(reached)


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to every leaf of nested arguments; the containers of the result are plain ones."""
    if isinstance(value, dict):
        return {key: map_leaves(item, function) for key, item in value.items()}
    if isinstance(value, list):
        return [map_leaves(item, function) for item in value]
    if isinstance(value, tuple):
        return tuple(map_leaves(item, function) for item in value)
    if isinstance(value, slice):
        return slice(*(map_leaves(item, function) for item in (value.start, value.stop, value.step)))
    return function(value)


def refs(value: Any) -> list[str]:
    """Names of all calls that nested arguments refer to."""
    names: list[str] = []
    map_leaves(value, lambda leaf: names.append(leaf.name) if isinstance(leaf, Ref) else None)
    return names
