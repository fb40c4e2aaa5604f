"""Operations of the user: a rule given to the decoder for a module class or function that the package lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.lrp.core.graph import Call
from tw_seg.lrp.core.linear_map import accumulate, expand
from tw_seg.lrp.ops.op import Functions, Op

if TYPE_CHECKING:
    from tw_seg.lrp.core.backward import Backward

FUNCTIONS: Functions = {}


def arguments(backward: Backward, call: Call, c: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Any]:
    """What the user's functions are called with: coefficient, inputs, output (repeated for each class), module."""
    axis = backward.axis(call.name)
    inputs = tuple(expand(backward.value(name), c, backward.axis(name), of=axis) for name in call.inputs)
    module = backward.tape.modules[call.target] if call.op == "call_module" else None
    return c, inputs, expand(backward.value(call.name), c, axis), module


def _custom(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    given = arguments(backward, call, c)
    inputs, found = given[1], call.options["rule"](*given)
    parts = found if isinstance(found, (tuple, list)) else (found,)
    if len(parts) != len(inputs):
        raise InputError(
            f"the rule for {call.path or call.name!r} returned {len(parts)} coefficients for {len(inputs)} inputs; "
            "return one for each, None for an input that gets no relevance"
        )
    result: dict[str, Tensor] = {}
    for name, value, part in zip(call.inputs, inputs, parts, strict=True):
        if part is None:
            continue
        if part.shape != value.shape:
            raise InputError(
                f"the rule for {call.path or call.name!r} returned a coefficient of shape {tuple(part.shape)} for an "
                f"input of shape {tuple(value.shape)}; they must be equal"
            )
        accumulate(result, name, part)
    return result


OPS: dict[str, Op] = {"custom": Op(_custom)}
