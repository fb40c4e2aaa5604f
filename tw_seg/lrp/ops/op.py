"""What one kind of call is: how it runs, where its batch axis lies and how relevance passes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp.adjoints import LinearMap
from tw_seg.lrp.graph import Call

if TYPE_CHECKING:
    from tw_seg.lrp.backward import Pass
    from tw_seg.lrp.tape import Tape

Forward = Callable[["Tape", Call], Any]
Axis = Callable[["Tape", Call], int]
Adjoint = Callable[["Pass", Call, Any], dict[str, Any]]
Absorbed = Callable[["Pass", Call, Tensor], Tensor]


@dataclass(frozen=True)
class Op:
    """One kind of call.

    Attributes:
        adjoint: ``adjoint(run, call, c)``: from the coefficient at the output to those at the inputs, by name.
        forward: ``forward(tape, call)``: the value, where more is kept than what calling the target gives.
        axis: ``axis(tape, call)``: the batch axis of the value; ``None``: that of the first input, counted
            from the last axis.
        linear_map: ``linear_map(run, call)``: where the rules of linear maps act.
        absorbed: ``absorbed(run, call, c)``: relevance, in the shape of c, of the terms of the output that are
            no inputs; ``None``: there are none.
        conserves: Whether relevance is conserved but for ``absorbed``. Where an expansion of first order stands
            for the op (softmax, sigmoid) it is not: what is missing is the expansion's constant.
    """

    adjoint: Adjoint
    forward: Forward | None = None
    axis: Axis | None = None
    linear_map: Callable[[Pass, Call], LinearMap] | None = None
    absorbed: Absorbed | None = None
    conserves: bool = True


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
