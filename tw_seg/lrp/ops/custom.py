"""Operations of the user: a rule given to the decoder for a module class or function that the package lacks."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Call, Channels, Memory, Op, Ref, map_leaves
from tw_seg.lrp.core.linear_map import accumulate, expand
from tw_seg.lrp.ops.op import of_any_sign


class Arguments(NamedTuple):
    """All arguments of a call, for a rule that has a parameter ``arguments``.

    Attributes:
        args: The positional ones; activations have the rows of the coefficient, as ``inputs`` has them.
        kwargs: The keyword arguments, likewise.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _tell_arguments(function: Any, backward: Backward, call: Call, c: Tensor) -> dict[str, Arguments]:
    """The keyword argument ``arguments``, for a function of the user that asks for it."""
    try:
        asked = "arguments" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a callable written in C
        asked = False
    return {"arguments": _find_arguments(backward, call, c)} if asked else {}


def _find_arguments(backward: Backward, call: Call, c: Tensor) -> Arguments:
    axis, tape = backward.axis(call.name), backward.tape

    def find(value: Any) -> Any:
        if not isinstance(value, Ref) or value.name not in tape.axes:
            return tape.resolve(value)
        return expand(backward.value(value.name), c, backward.axis(value.name), of=axis)

    return Arguments(map_leaves(call.args, find), map_leaves(call.kwargs, find))


def _gather_arguments(backward: Backward, call: Call, c: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor, Any]:
    """What the user's functions are called with: coefficient, inputs, output (repeated for each class), module."""
    axis = backward.axis(call.name)
    inputs = tuple(expand(backward.value(name), c, backward.axis(name), of=axis) for name in call.inputs)
    module = backward.tape.modules[call.target] if call.fx_op == "call_module" else None
    return c, inputs, expand(backward.value(call.name), c, axis), module


def _custom(backward: Backward, call: Call, c: Tensor) -> dict[str, Tensor]:
    given = _gather_arguments(backward, call, c)
    inputs, rule = given[1], call.options["rule"]
    found = rule(*given, **_tell_arguments(rule, backward, call, c))
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


def _absorb(backward: Backward, call: Call, c: Tensor) -> Tensor:
    """What the constants of the operation absorb, if its rule says so by a method ``absorbed``."""
    absorbed = getattr(call.options["rule"], "absorbed", None)
    if absorbed is None:
        return torch.zeros_like(c)
    given = _gather_arguments(backward, call, c)
    found: Tensor = absorbed(*given, **_tell_arguments(absorbed, backward, call, c))
    if found.shape != c.shape:
        raise InputError(
            f"`absorbed` of the rule for {call.path or call.name!r} returned relevance of shape {tuple(found.shape)}; "
            f"it must have the shape of the output's coefficient, {tuple(c.shape)}"
        )
    return found


def _name_function(backward: Backward, call: Call, handed: frozenset[str]) -> str:
    rule = call.options["rule"]
    return str(getattr(rule, "__name__", type(rule).__name__))


CUSTOM = Op(
    "custom",
    _custom,
    Memory.NEW,  # assumed: a function that returns a view must not be followed by changes in place
    of_any_sign,
    Channels.KEPT,
    absorbed=_absorb,
    text=_name_function,
)

OPS = (CUSTOM,)
