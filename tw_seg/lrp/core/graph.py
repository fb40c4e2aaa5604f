"""A classifier as a list of calls, and what an operation is.

A call is one execution: a ReLU module used four times is four calls, all of one operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from tw_seg.lrp.core.linear_map import LinearMap
from tw_seg.lrp.core.rule import Rule

CONVOLUTION = "convolution"
"""The group of operations that a read-out at a fraction of the depth counts."""


class Memory(Enum):
    """Whether a value may lie in the memory of the first input, so that a change in place of one changes the other."""

    NEW = "never"
    SHARED = "it may, as views do"
    SAME = "it is the input itself"


class Channels(Enum):
    """Which axis of a value holds its channels."""

    FIRST = "axis 1, as in images"
    LAST = "the last axis, as in tokens"
    KEPT = "that of the first input, wherever the operation puts it"


# Op comes before Call, Tape and Backward, which all refer to it: hence strings, and Any for a tape or a backward pass
# (core.tape and core.backward import this file).
Adjoint = Callable[[Any, "Call", Any], dict[str, Any]]
Forward = Callable[[Any, "Call"], Any]
Axis = Callable[[Any, "Call"], int]
Sign = Callable[["Call", Container[str]], bool]
Bind = Callable[["Call", Any], "Call | str"]
Names = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Op:
    """An operation: all that the package knows about it, declared once beside its functions in ``tw_seg.lrp.ops``.

    ``memory``, ``sign`` and ``channels`` have no default: one that was forgotten would be wrong without a message.

    Attributes:
        kind: Its name, unique; in reports and in the ``kinds`` of a composite.
        adjoint: ``adjoint(backward, call, c)``: from the coefficient at the output to those at the inputs, by name.
        memory: Whether the value may share the memory of the first input.
        sign: ``sign(call, nonnegative)``: whether the value is known to be >= 0, given the names of the calls before
            it whose values are.
        channels: The axis of the value that holds channels.
        modules: Module classes that it stands for.
        functions: Functions and names of methods that it stands for, with the names of their positional arguments.
        options: Attributes of its modules that are arguments of the call.
        only: Attributes of its modules with the one value that has a rule.
        bind: ``bind(call, known)``: the call with its inputs, or why it has no rule, where these do not follow from
            the names of its arguments.
        group: The group of kinds that it belongs to, for composites and rules.
        forward: ``forward(tape, call)``: the value, where more is kept than what calling the target gives.
        axis: ``axis(tape, call)``: the batch axis of the value; ``None``: that of the first input.
        save: ``save(tape, call)``: what the adjoint needs instead of the call's values, kept in ``tape.saved``.
        reads: ``reads(rule, call, calls)``: the recorded values that the adjoint looks at, by name; of all others
            it may know the shape only. ``None``: all operands and the output.
        linear_map: ``linear_map(backward, call)``: where the rules of linear maps act.
        absorbed: ``absorbed(backward, call, c)``: relevance, in the shape of c, of the terms of the output that are
            no inputs; ``None``: there are none.
        stabilised: ``stabilised(call)``: how many inputs share the stabiliser of the call's rule, 1 for a sum;
            ``None``: the adjoint adds none.
        text: How relevance passes it, for reports, where no composite decides: words, or
            ``text(backward, call, handed)`` with the names of the inputs that receive relevance.
        conserves: Whether relevance is conserved but for ``absorbed``. Where an expansion of first order stands
            for the op (softmax, sigmoid) it is not: what is missing is the expansion's constant.
        factors: Arguments by name that a coefficient is multiplied with.
        weighted: Whether the adjoint multiplies with the call's ``weight``.
        fuses_norms: Whether BatchNorms beside it can be multiplied into its weight.
        fusible: Whether it can be multiplied into the weight of such a call.
        gate: Whether its value scales another one: in a product all relevance goes to the other factor.
        scales: Whether its value is a statistic to normalise by: in a product all relevance goes to the other factor.
        probabilities: Whether its values are probabilities or their logarithms: at the end of a classifier seeds and
            losses expect logits.
        rescales: Whether it only adds up, scales or clips its inputs: of probabilities alone it makes no logits.
        spreads: Whether it only copies, repeats or resizes its input, so that what was a gate still is one.
        rearranges: Whether its value holds the elements of its first argument: a parameter seen through it is still
            that parameter.
        moved: ``moved(tape, call, axis)``: where it puts an axis of its input; ``None``: where it was.
        returns_tuple: Whether its value is a tuple of tensors: relevance comes back in parts.
        fresh: Whether the coefficients it returns are new tensors that nothing else refers to.
        overwrite: As ``adjoint``, where the coefficient at the output belongs to nobody else: it may be overwritten.
    """

    kind: str
    adjoint: Adjoint
    memory: Memory
    sign: Sign
    channels: Channels
    modules: tuple[type[nn.Module], ...] = ()
    functions: Mapping[Callable[..., Any] | str, Names] = field(default_factory=dict)
    options: Names = ()
    only: Mapping[str, Any] = field(default_factory=dict)
    bind: Bind | None = None
    group: str | None = None
    forward: Forward | None = None
    axis: Axis | None = None
    save: Forward | None = None
    reads: Callable[[Rule, Call, Mapping[str, Call]], Names] | None = None
    linear_map: Callable[[Any, Call], LinearMap] | None = None
    absorbed: Callable[[Any, Call, Tensor], Tensor] | None = None
    stabilised: Callable[[Call], int] | None = None
    text: str | Callable[[Any, Call, frozenset[str]], str] = "pass"
    conserves: bool = True
    factors: Names = ()
    weighted: bool = False
    fuses_norms: bool = False
    fusible: bool = False
    gate: bool = False
    scales: bool = False
    probabilities: bool = False
    rescales: bool = False
    spreads: bool = False
    rearranges: bool = False
    moved: Callable[[Any, Call, int], int] | None = None
    returns_tuple: bool = False
    fresh: bool = False
    overwrite: Adjoint | None = None


def _no_adjoint(backward: Any, call: Call, c: Any) -> dict[str, Any]:
    raise AssertionError(f"{call.name} carries no relevance")


CONSTANT = Op("constant", _no_adjoint, Memory.NEW, lambda call, nonnegative: False, Channels.KEPT)
"""Of calls that carry no relevance: sizes, choices, parameters and what is computed from them."""

UNSUPPORTED = Op("unsupported", _no_adjoint, Memory.NEW, lambda call, nonnegative: False, Channels.KEPT)
"""Of calls without a rule: they are run, and no relevance may have to pass them."""


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
        op: Its operation; ``CONSTANT`` for values that carry no relevance.
        fx_op: ``"call_module"``, ``"call_function"``, ``"call_method"`` or ``"get_attr"``.
        target: Module path, function, method name or attribute path.
        args: Positional arguments; values of earlier calls are ``Ref``.
        kwargs: Keyword arguments, likewise.
        inputs: Names of the calls whose activations are this call's inputs and receive its relevance.
        options: Arguments by name (stride, padding ...), ``Ref`` where they are values of earlier calls; a tape puts
            numbers and sizes in the place of these.
        weight: Dotted name of its weight in the classifier; ``None`` if it has none or computes it.
        constants: Names of the calls without relevance among its arguments.
        parameter: Dotted name of the parameter or buffer that the value is, or is a rearrangement of, if any.
        norm: Name of the BatchNorm call after it that is fused into this linear call, if any.
        norm_before: Name of the BatchNorm call before it that is fused into this linear call, if any.
        depth: Place among the linear calls: 0 nearest the images, 1 nearest the logits.
        nonnegative: Whether its first input is known to be >= 0.
    """

    name: str
    path: str
    op: Op
    fx_op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    weight: str | None = None
    constants: Names = ()
    parameter: str | None = None
    norm: str | None = None
    norm_before: str | None = None
    depth: float = 0.0
    nonnegative: bool = False

    @property
    def kind(self) -> str:
        """The name of its operation, as composites and reports spell it."""
        return self.op.kind

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return self.path or "(root)"

    @property
    def spelling(self) -> str:
        """The name of the function, method, module or attribute that is called."""
        return self.target if isinstance(self.target, str) else str(getattr(self.target, "__name__", self.target))


@dataclass(frozen=True)
class Graph:
    """Calls in the order of execution.

    Attributes:
        calls: Every call, constants included.
        input: Name of the images.
        output: Name of the logits.
        specialised: Whether the classifier's forward branched on sizes: then it holds for one image shape.
        unsupported: Why a call has no rule, by its name.
        unfollowed: Those among them that a run cannot follow: refused also where no relevance is needed.
        asks_for_gradients: Whether the forward branched on ``requires_grad``: it holds where none is required.
    """

    calls: tuple[Call, ...]
    input: str
    output: str
    specialised: bool = False
    unsupported: Mapping[str, str] = field(default_factory=dict)
    unfollowed: frozenset[str] = frozenset()
    asks_for_gradients: bool = False

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
            return self._read_at_fraction(float(place))
        if place == "input":
            return self.input
        relevant = [call for call in self.calls if call.inputs]
        inside = [call.name for call in relevant if call.path == place or call.path.startswith(place + ".")]
        inside = inside or [call.name for call in relevant if call.name == place]
        if not inside:
            raise KeyError(place)
        return inside[-1]

    def find_probabilities(self) -> Call | None:
        """The call that turns the classifier's logits into probabilities at its end, if its output is made of them."""
        calls = {call.name: call for call in self.calls}
        pending, found = [self.output], None
        while pending:
            call = calls.get(pending.pop())
            if call is not None and call.op.probabilities:
                found = call
            elif call is not None and call.inputs and (call.op.rescales or call.op.rearranges or call.op.spreads):
                pending.extend(call.inputs)
            else:
                return None
        return found

    def _read_at_fraction(self, fraction: float) -> str:
        if not 0 <= fraction <= 1:
            raise KeyError(fraction)
        convolutions = [call.name for call in self.calls if call.op.group == CONVOLUTION]
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

    def upstream(self) -> frozenset[str]:
        """The activations that relevance reaches from the logits."""
        reached = {self.output}
        for call in reversed(self.calls):
            if call.name in reached:
                reached.update(call.inputs)
        return frozenset(reached)


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to every leaf of nested arguments; the containers of the result are plain ones."""
    if isinstance(value, torch.Size):
        return value
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
