"""The cases of this folder leave nothing out: every kind of call, and every way of writing it."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from torch import nn

from tests.lrp.ops import (
    test_activation,
    test_arithmetic,
    test_attention,
    test_custom,
    test_linear,
    test_norm,
    test_pool,
    test_shape,
)
from tests.lrp.ops.harness import CONV, Many
from tw_seg.lrp.core.graph import Call
from tw_seg.lrp.ops import FUNCTIONS, MODULES, OPS
from tw_seg.lrp.trace.build import trace

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's

FAMILIES = {
    family.__name__.rpartition("test_")[2]: family.CASES
    for family in (
        test_linear, test_activation, test_arithmetic, test_attention, test_shape, test_norm, test_pool, test_custom
    )
}  # fmt: skip
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
def calls() -> tuple[Call, ...]:
    """The calls on relevance's way of every case."""
    found: list[Call] = []
    for (size, training, _), names in grouped().items():
        cases = [CASES[name] for name in names]
        found += trace(Many(cases), training, image_shape=size, custom_rules=cases[0].custom_rules).calls
    return tuple(call for call in found if call.inputs)


def test_every_kind_has_a_case() -> None:
    assert {call.kind for call in calls()} == set(OPS)


def test_every_spelling_has_a_case() -> None:
    seen = {call.target for call in calls() if call.fx_op != "call_module"}
    assert {key if isinstance(key, str) else key.__name__ for key in FUNCTIONS if key not in seen} == set()


def test_every_module_has_a_case() -> None:
    made = {type(module) for case in CASES.values() for module in case.modules().values()}
    made.update(CONV.values())
    made.add(nn.Linear)
    assert {module.__name__ for module in MODULES if module not in made} == set()
