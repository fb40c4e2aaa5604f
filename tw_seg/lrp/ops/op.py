"""What one kind of call is: how it runs, where its batch axis lies and how relevance passes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp.core.graph import Call, Ref
from tw_seg.lrp.core.linear_map import LinearMap
from tw_seg.lrp.rules import Epsilon, Rule

if TYPE_CHECKING:
    from tw_seg.lrp.core.backward import Backward
    from tw_seg.lrp.core.tape import Tape

Forward = Callable[["Tape", Call], Any]
Axis = Callable[["Tape", Call], int]
Adjoint = Callable[["Backward", Call, Any], dict[str, Any]]
Reads = Callable[[Rule, Call, Mapping[str, Call]], tuple[str, ...]]
Absorbed = Callable[["Backward", Call, Tensor], Tensor]


@dataclass(frozen=True)
class Op:
    """One kind of call.

    Attributes:
        adjoint: ``adjoint(backward, call, c)``: from the coefficient at the output to those at the inputs, by name.
        forward: ``forward(tape, call)``: the value, where more is kept than what calling the target gives.
        axis: ``axis(tape, call)``: the batch axis of the value; ``None``: that of the first input, counted
            from the last axis.
        save: ``save(tape, call)``: what the adjoint needs instead of the call's values, kept in ``tape.saved``.
        reads: ``reads(rule, call, calls)``: the recorded values that the adjoint looks at, by name; of all others
            it may know the shape only. ``None``: all operands and the output.
        linear_map: ``linear_map(backward, call)``: where the rules of linear maps act.
        absorbed: ``absorbed(backward, call, c)``: relevance, in the shape of c, of the terms of the output that are
            no inputs; ``None``: there are none.
        fresh: Whether the coefficients it returns are new tensors that nothing else refers to.
        overwrite: As ``adjoint``, where the coefficient at the output belongs to nobody else: it may be overwritten.
        conserves: Whether relevance is conserved but for ``absorbed``. Where an expansion of first order stands
            for the op (softmax, sigmoid) it is not: what is missing is the expansion's constant.
    """

    adjoint: Adjoint
    forward: Forward | None = None
    axis: Axis | None = None
    save: Forward | None = None
    reads: Reads | None = None
    linear_map: Callable[[Backward, Call], LinearMap] | None = None
    absorbed: Absorbed | None = None
    fresh: bool = False
    overwrite: Adjoint | None = None
    conserves: bool = True


def no_values(rule: Rule, call: Call, calls: Mapping[str, Call]) -> tuple[str, ...]:
    """``reads`` of an op whose adjoint looks at shapes only."""
    return ()


def only_stabilised(rule: Rule, call: Call, calls: Mapping[str, Call]) -> tuple[str, ...]:
    """``reads`` of an op whose adjoint looks at its output where a stabiliser is added to it, else at nothing."""
    return (call.name,) if isinstance(rule, Epsilon) and rule.epsilon else ()


def only_input(rule: Rule, call: Call, calls: Mapping[str, Call]) -> tuple[str, ...]:
    """``reads`` of an op whose adjoint looks at its inputs, not at its output."""
    return call.inputs


Names = tuple[str, ...]
Functions = dict[Callable[..., Any] | str, tuple[str, Names]]
"""Function or method name -> kind of call and the names of its positional arguments."""


def dims_of(value: Any, ndim: int) -> tuple[int, ...]:
    """Axes as non-negative numbers; ``None`` means all."""
    if value is None:
        return tuple(range(ndim))
    dims = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(d % ndim for d in dims)


def keep_batch(tape: Tape, call: Call, dims: tuple[int, ...]) -> None:
    """Refuse a call that works along the batch axis.

    Raises:
        UnsupportedOpError: If it does.
    """
    if tape.axes[call.inputs[0]] in dims:
        raise UnsupportedOpError(
            f"{call.path or '(root)'}: {call.kind} ({call.name!r}) over axes {dims} mixes the images of a batch"
        )


def keep_first(call: Call, axis: int) -> None:
    """Refuse an op of images (N, C, ...) whose batch axis is not the first.

    Raises:
        UnsupportedOpError: If it is another one.
    """
    if axis != 0:
        raise UnsupportedOpError(
            f"{call.path or '(root)'}: {call.kind} ({call.name!r}) works on a batch at axis {axis}, expected axis 0"
        )


def aligned_axis(tape: Tape, call: Call) -> int:
    """The batch axis where the output may have axes that were put before those of the first input."""
    name = call.inputs[0]
    return int(tape.axes[name] + tape.values[call.name].ndim - tape.values[name].ndim)


def reduced_axis(tape: Tape, call: Call) -> int:
    """The batch axis after the axes ``dim`` were summed up, averaged or searched for their largest value."""
    axis, ndim = tape.axes[call.inputs[0]], tape.values[call.inputs[0]].ndim
    dims = dims_of(call.options.get("dim"), ndim)
    keep_batch(tape, call, dims)
    return axis if call.options.get("keepdim") else axis - sum(d < axis for d in dims)


def receives(call: Call, value: Any) -> bool:
    """Whether an argument of a call is one of the inputs that receive its relevance."""
    return isinstance(value, Ref) and value.name in call.inputs


def share(backward: Backward, call: Call, c: Tensor, factors: int = 1) -> Tensor:
    """The coefficient of each term of a sum, or divided among the factors of a product.

    What the stabiliser of the call's rule absorbs is taken away; for a product epsilon is added to the output times
    the number of factors (AttnLRP, eq. 14).
    """
    rule = backward.composite.rule(call)
    if isinstance(rule, Epsilon) and rule.epsilon:
        z = backward.value(call.name)
        c = rule.share(c, z * factors if factors > 1 else z, backward.axis(call.name))
    return c / factors if factors > 1 else c
