"""What the declarations of several operations share: how their calls are read, their batch axis, their sign."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import CONSTANT, Call, Names, Ref, refs
from tw_seg.lrp.core.rule import LinearRule, Rule
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.ops.constants import SIZES

# How a call of a function is read


@dataclass(frozen=True)
class Known:
    """What is known of the calls before one.

    Attributes:
        calls: Those calls by name.
        relevant: Names of the values that depend on the images and carry relevance, the images included.
    """

    calls: Mapping[str, Call]
    relevant: Container[str]

    def is_relevant(self, value: Any) -> bool:
        """Whether an argument depends on the images."""
        return isinstance(value, Ref) and value.name in self.relevant

    def is_size(self, value: Any) -> bool:
        """Whether an argument is a number that is computed from sizes, such as ``x.ndim - 1``."""
        call = self.calls.get(value.name) if isinstance(value, Ref) else None
        if call is None or call.op is not CONSTANT:
            return False
        if call.target is getattr or call.spelling in SIZES:
            return call.target is not getattr or call.args[1] in ("shape", "ndim")
        sources = [Ref(name) for name in refs((call.args, call.kwargs))]
        computed = getattr(call.target, "__module__", None) in ("_operator", "operator", "math")
        return computed and bool(sources) and all(map(self.is_size, sources))

    def is_tuple(self, value: Any) -> bool:
        """Whether an argument is the value of a call that returns several tensors."""
        return isinstance(value, Ref) and value.name in self.calls and self.calls[value.name].op.returns_tuple


NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim", "x": "input", "x2": "other", "tensors": "input"}
"""Other names of arguments that torch's functions take."""

_TENSORS = ("input", "other", "tensor1", "tensor2")
_WEIGHTS = ("weight", "bias", "running_mean", "running_var")


def bind(call: Call, known: Known) -> Call | str:
    """The call with its inputs, the tensors that depend on the images, and its weight; or why it has no rule."""
    o = call.options
    inputs = tuple(o[name].name for name in _TENSORS if known.is_relevant(o.get(name)))
    if any(known.is_relevant(o.get(name)) for name in _WEIGHTS):
        return f"{call.spelling} with weights that depend on the images"
    if not inputs:
        return f"{call.spelling} of arguments that depend on the images"
    weight = known.calls.get(o["weight"].name) if isinstance(o.get("weight"), Ref) else None
    named = weight is not None and weight.fx_op == "get_attr"
    return replace(call, inputs=inputs, weight=weight.parameter if weight is not None and named else None)


def bind_first(call: Call, known: Known) -> Call | str:
    """As `bind`, where only the first operand receives relevance."""
    if not known.is_relevant(call.options.get("input")):
        return f"{call.spelling} of a constant by a value that depends on the images"
    bound = bind(call, known)
    return bound if isinstance(bound, str) else replace(bound, inputs=bound.inputs[:1])


def bind_listed(call: Call, known: Known) -> Call | str:
    """As `bind`, where the tensors stand in a list."""
    parts = call.options["input"]
    if not isinstance(parts, (tuple, list)):
        return f"{call.spelling} of a list that is not written out"
    return replace(call, inputs=tuple(part.name for part in parts if known.is_relevant(part)))


def bind_reduction(call: Call, known: Known) -> Call | str:
    """As `bind`, where axes are named along which something is summed up or searched for."""
    return f"{call.spelling} over every axis" if call.options.get("dim") is None else bind(call, known)


def is_input(call: Call, value: Any) -> bool:
    """Whether an argument of a call is one of the inputs that receive its relevance."""
    return isinstance(value, Ref) and value.name in call.inputs


# Whether a value is known to be >= 0


def of_any_sign(call: Call, nonnegative: Container[str]) -> bool:
    """``sign`` of an operation whose value may be negative whatever its input is."""
    return False


def never_negative(call: Call, nonnegative: Container[str]) -> bool:
    """``sign`` of an operation whose value is never negative."""
    return True


def sign_of_inputs(call: Call, nonnegative: Container[str]) -> bool:
    """``sign`` of an operation whose value is not negative where its inputs are not."""
    return all(name in nonnegative for name in call.inputs)


def sign_of_tensors(call: Call, nonnegative: Container[str]) -> bool:
    """``sign`` of an operation whose value is not negative where no tensor that enters it is."""
    return all(name in nonnegative for name in (*call.inputs, *refs((call.args, call.kwargs))))


def sign_of_numbers(call: Call) -> bool:
    """Whether no number that enters a call is negative."""
    return not any(isinstance(number, (int, float)) and number < 0 for number in call.options.values())


def sign_of_operands(call: Call, nonnegative: Container[str]) -> bool:
    """``sign`` of an operation whose value is not negative where no tensor and no number that enters it is."""
    return sign_of_numbers(call) and sign_of_tensors(call, nonnegative)


# What an adjoint reads


def no_values(rule: Rule, call: Call, calls: Mapping[str, Call]) -> Names:
    """``reads`` of an op whose adjoint looks at shapes only."""
    return ()


def only_stabilised(rule: Rule, call: Call, calls: Mapping[str, Call]) -> Names:
    """``reads`` of an op whose adjoint looks at its output where a stabiliser is added to it, else at nothing."""
    return () if rule.is_plain else (call.name,)


def only_input(rule: Rule, call: Call, calls: Mapping[str, Call]) -> Names:
    """``reads`` of an op whose adjoint looks at its inputs, not at its output."""
    return call.inputs


# The batch axis


def resolve_dims(value: Any, ndim: int) -> tuple[int, ...]:
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
            f"{call.place}: {call.kind} ({call.name!r}) over axes {dims} mixes the images of a batch"
        )


def keep_first(call: Call, axis: int) -> None:
    """Refuse an op of images (N, C, ...) whose batch axis is not the first.

    Raises:
        UnsupportedOpError: If it is another one.
    """
    if axis != 0:
        raise UnsupportedOpError(
            f"{call.place}: {call.kind} ({call.name!r}) works on a batch at axis {axis}, expected axis 0"
        )


def aligned_axis(tape: Tape, call: Call) -> int:
    """The batch axis where the output may have axes that were put before those of the first input."""
    name = call.inputs[0]
    return int(tape.axes[name] + tape.values[call.name].ndim - tape.values[name].ndim)


def reduced_axis(tape: Tape, call: Call) -> int:
    """The batch axis after the axes ``dim`` were summed up, averaged or searched for their largest value."""
    axis, ndim = tape.axes[call.inputs[0]], tape.values[call.inputs[0]].ndim
    dims = resolve_dims(call.options.get("dim"), ndim)
    keep_batch(tape, call, dims)
    return axis if call.options.get("keepdim") else axis - sum(d < axis for d in dims)


# Rules


def stabilize_terms(backward: Backward, call: Call, c: Tensor, factors: int = 1) -> Tensor:
    """The coefficient of each term of a sum, or divided among the factors of a product.

    What the stabiliser of the call's rule absorbs is taken away; for a product epsilon is added to the output times
    the number of factors (AttnLRP, eq. 14).
    """
    rule = backward.rules[call.name]
    if not rule.is_plain:
        assert isinstance(rule, LinearRule)
        z = backward.value(call.name)
        c = rule.stabilize_terms(c, z * factors if factors > 1 else z, backward.axis(call.name))
    return c / factors if factors > 1 else c


def name_rule(backward: Backward, call: Call, handed: frozenset[str]) -> str:
    """``text`` of an operation whose rule the composite chooses."""
    return str(backward.rules[call.name])


def spell(names: Names, words: str) -> dict[Any, Names]:
    """``functions`` of an operation: every public form of some words that this torch has, methods among them.

    In-place twins (``abs_``) need no word of their own.

    Args:
        names: Names of the positional arguments, the same for all forms.
        words: Names of functions and methods, synonyms of each other.
    """
    found: dict[Any, Names] = {}
    for word in words.split():
        for namespace in (torch, F, torch.special, torch.linalg):
            function = vars(namespace).get(word)
            if callable(function) and function not in (F.tanh, F.sigmoid):  # these call the method
                found[function] = names
        if callable(getattr(Tensor, word, None)):
            found[word] = names
    return found


def name_functions(names: Names, *functions: Any) -> dict[Any, Names]:
    """``functions`` of an operation, all with the same names of their positional arguments."""
    return dict.fromkeys(functions, names)
