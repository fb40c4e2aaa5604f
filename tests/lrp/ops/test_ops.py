"""The cases of this folder leave nothing out, and every operation is what its declaration says."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.lrp.ops import (
    test_activation,
    test_arithmetic,
    test_attention,
    test_batch_norm,
    test_custom,
    test_dropout,
    test_indexing,
    test_interpolate,
    test_linear,
    test_norm,
    test_pool,
    test_shape,
    test_spellings,
    test_statistics,
)
from tests.lrp.ops.harness import CONV, Many
from tests.lrp.trace import test_rewriting
from tw_seg.lrp.composite import Assign, Composite
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import CONSTANT, UNSUPPORTED, Call, Channels, Memory, Op, map_leaves
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.decode.weights import find_call_weights
from tw_seg.lrp.ops import FAMILIES as DECLARED
from tw_seg.lrp.ops import FUNCTIONS, MODULES, OPS
from tw_seg.lrp.ops.custom import CUSTOM
from tw_seg.lrp.ops.op import never_negative, of_any_sign
from tw_seg.lrp.rules import Epsilon, Pass
from tw_seg.lrp.trace.build import trace

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's

FAMILIES = {
    family.__name__.rpartition("test_")[2]: family.CASES
    for family in (
        test_linear, test_batch_norm, test_pool, test_interpolate, test_activation, test_dropout, test_arithmetic,
        test_attention, test_norm, test_shape, test_indexing, test_spellings, test_statistics,
        test_custom,
    )
}  # fmt: skip
FAMILIES["rewritten"] = test_rewriting.CASES
FAMILIES["cast"] = test_shape.CASTS
CASES = {f"{name}: {key}": case for name, cases in FAMILIES.items() for key, case in cases.items()}


def grouped() -> dict[tuple[Any, ...], list[str]]:
    """Names of the cases that fit into one classifier, by family: a case that branches runs all before it."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, case in CASES.items():
        key = (case.size[1:], case.training, name if case.custom_rules else name.partition(":")[0])
        groups.setdefault(key, []).append(name)
    return groups


@cache
def passes() -> tuple[Backward, ...]:
    """A pass over every call of every case. Values are detached but for parameters and rearrangements of them."""
    found = []
    for (size, training, _), names in grouped().items():
        cases = [CASES[name] for name in names]
        net = Many(cases).train(training)
        graph = trace(net, training, image_shape=size, custom_rules=cases[0].custom_rules)
        tape = Tape(net, graph, torch.randn(cases[0].size, dtype=torch.float64))
        named = {call.name: call for call in graph.calls}
        for name, value in tape.values.items():
            if name not in named or named[name].parameter is None:
                tape.values[name] = change(value, Tensor.detach)
        tape.saved = {name: change(value, Tensor.detach) for name, value in tape.saved.items()}
        found.append(Backward(tape, named, Composite().rules(graph.calls), None, {}, frozenset(tape.axes)))
    return tuple(found)


def change(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A value of a call with other tensors; a named tuple stays one."""
    if isinstance(value, tuple):
        parts = [change(part, function) for part in value]
        return type(value)(parts) if parts else value
    return function(value) if isinstance(value, Tensor) else value


def calls() -> list[tuple[Backward, Call]]:
    """The calls on relevance's way of every case."""
    return [(backward, call) for backward in passes() for call in backward.calls.values() if call.inputs]


def tensors(value: Any) -> list[Tensor]:
    """The tensors in the value of a call."""
    found: list[Tensor] = []
    map_leaves(value, lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None)
    return found


# Nothing is left out


def test_every_kind_has_a_case() -> None:
    assert {call.kind for _, call in calls()} == set(OPS)


def test_every_spelling_has_a_case() -> None:
    seen = {call.target for _, call in calls() if call.fx_op != "call_module"}
    assert {key if isinstance(key, str) else key.__name__ for key in FUNCTIONS if key not in seen} == set()


def test_every_module_has_a_case() -> None:
    made = {type(module) for case in CASES.values() for module in case.modules().values()}
    made.update(CONV.values())
    made.add(nn.Linear)
    assert {module.__name__ for module in MODULES if module not in made} == set()


# Declarations


def shares_memory(value: Any, other: Any) -> bool:
    places = [{t.untyped_storage().data_ptr() for t in tensors(v) if t.numel()} for v in (value, other)]
    return bool(places[0] & places[1])


def test_a_declaration_says_what_it_must() -> None:
    """What is wrong without a message when it is forgotten has no default."""
    with pytest.raises(TypeError, match="'memory', 'sign', and 'channels'"):
        Op("new", lambda backward, call, c: {})  # type: ignore[call-arg]


def test_declarations_do_not_contradict_each_other() -> None:
    assert len(OPS) == sum(len(family.OPS) for family in DECLARED)
    assert len(MODULES) == sum(len(op.modules) for op in OPS.values())
    assert len(FUNCTIONS) == sum(len(op.functions) for op in OPS.values())
    for op in OPS.values():
        assert op.modules or op.functions or op is CUSTOM, op.kind
        assert (op.stabilised is not None) == (op.group in ("addition", "product")), op.kind
        assert op.linear_map is None or op.kind in Assign(Epsilon()).able, op.kind
        assert op.weighted and op.linear_map is not None or not (op.fuses_norms or op.fusible), op.kind
        assert not op.fuses_norms or op.channels is not Channels.KEPT, op.kind
        assert (op.group == "activation") == (op.kind in Assign(Pass()).able), op.kind
        assert op.overwrite is None or op.fresh, op.kind


@pytest.mark.parametrize("op", [*OPS.values(), CONSTANT, UNSUPPORTED], ids=lambda op: op.kind)
def test_there_is_one_object_for_each_operation(op: Op) -> None:
    """Also in copies of a decoder, and in one that was saved whole."""
    assert copy.deepcopy(op) is op and copy.copy(op) is op and pickle.loads(pickle.dumps(op)) is op


def test_arguments_that_are_named_exist() -> None:
    """Options that are read from a module, and factors."""
    options: dict[str, set[str]] = {}
    attributes: dict[str, set[str]] = {}
    for backward, call in calls():
        options.setdefault(call.kind, set()).update(call.options)
        if call.fx_op == "call_module":
            attributes.setdefault(call.kind, set()).update(dir(backward.tape.modules[call.target]))
    for op in OPS.values():
        assert set(op.factors) <= options[op.kind], op.kind
        assert set(op.options) <= attributes.get(op.kind, set()), op.kind
        assert all(len(set(names)) == len(names) for names in op.functions.values()), op.kind


def test_memory() -> None:
    """A value lies in the memory of an input where the declaration says so, and only there."""
    sharing = set()
    for backward, call in calls():
        value, inputs = backward.tape.values[call.name], [backward.tape.values[name] for name in call.inputs]
        shared = shares_memory(value, inputs)
        if shared:
            sharing.add(call.kind)
        assert call.op.memory is not Memory.NEW or not shared, call
        assert call.op.memory is not Memory.SAME or value.data_ptr() == inputs[0].data_ptr(), call
    declared = {call.kind for _, call in calls() if call.op.memory is not Memory.NEW}
    assert sharing == declared


def test_sign() -> None:
    """Of inputs >= 0 the value is >= 0 where the declaration says so."""
    claims = set()
    for backward, call in calls():
        if not call.op.sign(call, call.inputs):
            continue
        claims.add(call.kind)
        tape = copy.copy(backward.tape)
        # A sign that does not depend on the inputs must hold for inputs of both.
        convert = Tensor.detach if call.op.sign is never_negative else Tensor.abs
        inputs = {name: change(tape.values[name], convert) for name in call.inputs}
        tape.values, tape.saved = {**tape.values, **inputs}, dict(tape.saved)
        value = call.op.forward(tape, call) if call.op.forward else tape.execute(call)
        assert all(bool((t >= 0).all()) for t in tensors(value)[: 1 if call.kind == "max" else None]), call
    assert claims == {op.kind for op in OPS.values() if op.sign is not of_any_sign}


def test_values() -> None:
    """Tuples, gates, and values that hold the elements of their input."""
    for backward, call in calls():
        value, first = backward.tape.values[call.name], backward.tape.values[call.inputs[0]]
        assert isinstance(value, tuple) == call.op.returns_tuple, call
        assert not call.op.gate or value.abs().max() <= 1, call
        if call.op.rearranges and value.dtype == first.dtype:
            assert set(value.flatten().tolist()) <= set(first.flatten().tolist()), call


def test_axes() -> None:
    """Where an operation puts the batch axis it puts any; of channels first or last each is treated alike."""
    for backward, call in calls():
        tape, name = backward.tape, call.inputs[0]
        value = tape.values[call.name]
        if call.op.moved is not None:
            assert call.op.moved(tape, call, tape.axes[name]) == tape.axes[call.name], call
        if call.op.channels is Channels.KEPT:
            continue
        axis = 1 if call.op.channels is Channels.FIRST else value.ndim - 1
        weight = backward.weight(call)
        if call.op.fuses_norms:  # channels are mixed: as many as the weight makes
            groups = call.options.get("groups", 1) if call.kind == "conv_transpose" else 1
            assert weight is not None
            assert value.shape[axis] == weight.shape[1 if call.kind == "conv_transpose" else 0] * groups, call
        elif weight is not None:
            assert value.shape[axis] == weight.shape[-1], call
        elif call.kind not in ("instance_norm", "group_norm", "layer_norm", "rms_norm", "batch_norm"):
            flipped = copy.copy(tape)
            flipped.values, flipped.saved = {**tape.values, name: tape.values[name].flip(axis)}, dict(tape.saved)
            found = call.op.forward(flipped, call) if call.op.forward else flipped.execute(call)
            torch.testing.assert_close(found, value.flip(axis))


def test_a_fresh_coefficient_is_a_new_tensor() -> None:
    for backward, call in calls():
        if call.op.fresh:
            c = torch.randn_like(backward.tape.values[call.name])
            (part,) = call.op.adjoint(backward, call, c).values()
            assert not shares_memory(part, [c, backward.tape.values[call.name]]), call


def test_weights_and_factors() -> None:
    """A decoder has copies of all parameters that adjoints multiply with, and of no others."""
    for backward in passes():
        names = {parameter: name for name, parameter in backward.tape.classifier.named_parameters()}
        declared, read = set(), set()
        for call in backward.calls.values():
            if not call.inputs or call.op is CUSTOM:
                continue
            if not (call.op.weighted and call.weight is None):  # computed in the forward: it has no name
                declared.update(find_call_weights(call, backward.calls))
            value = backward.tape.values[call.name]
            c = {0: torch.randn_like(value[0])} if isinstance(value, tuple) else torch.randn_like(value)
            parts = tensors(call.op.adjoint(backward, call, c))
            traced = [part.sum() for part in parts if part.requires_grad]
            if traced:
                found = torch.autograd.grad(sum(traced), [*names], allow_unused=True, retain_graph=True)
                read |= {name for name, g in zip(names.values(), found, strict=True) if g is not None}
        assert read == declared


def test_texts() -> None:
    for backward, call in calls():
        text = call.op.text
        assert isinstance(text if isinstance(text, str) else text(backward, call, frozenset(call.inputs)), str)
