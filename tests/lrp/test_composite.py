from __future__ import annotations

import json

import pytest

from tw_seg.errors import InputError
from tw_seg.lrp.composite import COMPOSITES, create_composite
from tw_seg.lrp.graph import trace
from tw_seg.lrp.rules import Epsilon, Flat, WSquare, ZBox

NUMBERS = {"epsilon_box": {"low": -2.0, "high": [2.0, 2.5, 3.0]}}


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_preset_is_names_and_numbers(name: str) -> None:
    kwargs = NUMBERS.get(name, {})
    composite = create_composite(name, json.loads(json.dumps(kwargs)))
    assert composite == create_composite(name, kwargs)
    assert composite.layer == Epsilon(0.0)


def test_presets() -> None:
    assert create_composite("epsilon", {"epsilon": 0.1}).layer == Epsilon(0.1)
    assert create_composite("epsilon").input is None
    assert create_composite("epsilon_flat", {"stabilizer": 0.1}).input == Flat(0.1)
    assert create_composite("epsilon_wsquare").input == WSquare(1e-6)
    box = create_composite("epsilon_box", {"low": 0.0, "high": 1.0, "epsilon": 0.2})
    assert (box.layer, box.input) == (Epsilon(0.2), ZBox(0.0, 1.0, 1e-6))


def test_every_call_gets_the_layer_rule(tiny) -> None:
    composite = create_composite("epsilon", {"epsilon": 0.1})
    assert {composite.rule(call) for call in trace(tiny, False).calls} == {Epsilon(0.1)}


@pytest.mark.parametrize(
    ("name", "kwargs", "named"),
    [
        ("gamma", None, "unknown composite 'gamma'; there are epsilon, "),
        ("epsilon", {"gamma": 1}, "does not take"),
        ("epsilon_box", {}, "does not take"),
        ("epsilon", {"epsilon": -1}, ">= 0"),
    ],
)
def test_errors(name: str, kwargs, named: str) -> None:
    with pytest.raises(InputError, match=named):
        create_composite(name, kwargs)
