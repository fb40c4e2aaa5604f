"""Operations of the user: a rule given to the decoder for a module class or function that the package lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.lrp.adjoints import expand
from tw_seg.lrp.graph import Call
from tw_seg.lrp.ops.op import Functions, Op

if TYPE_CHECKING:
    from tw_seg.lrp.backward import Pass

FUNCTIONS: Functions = {}


def _own(run: Pass, call: Call, c: Tensor) -> dict[str, Tensor]:
    inputs = tuple(expand(run.value(name), c, run.axis(name)) for name in call.inputs)
    output = expand(run.value(call.name), c, run.axis(call.name))
    module = run.tape.modules[call.target] if call.op == "call_module" else None
    found = call.options["rule"](c, inputs, output, module)
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
        result[name] = result[name] + part if name in result else part
    return result


OPS: dict[str, Op] = {"own": Op(_own)}
