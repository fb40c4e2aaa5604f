from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from tests.oracles import nets
from tw_seg.errors import InputError
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.composite import COMPOSITES, Assign, Composite, create_composite
from tw_seg.lrp.core.graph import Call
from tw_seg.lrp.core.rule import Rule
from tw_seg.lrp.ops import KIND_GROUPS, OPS
from tw_seg.lrp.rules import (
    RULES,
    AlphaBeta,
    Deconvnet,
    Epsilon,
    Flat,
    Gamma,
    Guided,
    Pass,
    WSquare,
    ZBox,
    ZPlus,
)

NORM = Epsilon(1e-6)  # zennit's name for what it gives sums and pools


def call(kind: str, path: str = "layer4.0.conv1", depth: float = 0.5) -> Call:
    return Call("call", path, OPS[kind], "call_module", path, (), {}, (), depth=depth)


def rules(composite: Composite, *kinds: str) -> list[Rule]:
    return [composite.rule(call(kind)) for kind in kinds]


def from_yaml(text: str) -> Composite:
    ((name, kwargs),) = yaml.safe_load(text).items()
    return create_composite(name, kwargs)


# YAML of each preset, and its rules for: conv, conv_transpose, linear, avg_pool, batch_norm, add, matmul, relu, input.
PRESETS: dict[str, tuple[Any, ...]] = {
    "epsilon:": (*[Epsilon(0.0)] * 7, Pass(), None),
    "epsilon: {epsilon: 0.1}": (*[Epsilon(0.1)] * 5, Epsilon(0.0), Epsilon(0.1), Pass(), None),
    "epsilon_flat: {stabilizer: 0.1}": (*[Epsilon(0.0)] * 7, Pass(), Flat(0.1)),
    "epsilon_wsquare:": (*[Epsilon(0.0)] * 7, Pass(), WSquare()),
    "epsilon_box: {low: -2.0, high: [2.0, 2.5, 3.0]}": (*[Epsilon(0.0)] * 7, Pass(), ZBox(-2.0, (2.0, 2.5, 3.0))),
    "epsilon_plus:": (ZPlus(), ZPlus(), Epsilon(1e-6), *[NORM] * 4, Pass(), None),
    "epsilon_plus: {epsilon: 0.1, stabilizer: 1.0e-3}": (
        *[ZPlus(1e-3)] * 2,
        Epsilon(0.1),
        *[Epsilon(1e-3)] * 4,
        Pass(),
        None,
    ),
    "epsilon_plus_flat:": (ZPlus(), ZPlus(), Epsilon(1e-6), *[NORM] * 4, Pass(), Flat()),
    "epsilon_alpha2_beta1:": (*[AlphaBeta(2, 1)] * 2, Epsilon(1e-6), *[NORM] * 4, Pass(), None),
    "epsilon_alpha2_beta1_flat:": (*[AlphaBeta(2, 1)] * 2, Epsilon(1e-6), *[NORM] * 4, Pass(), Flat()),
    "epsilon_gamma_box: {low: -3, high: 3.0}": (*[Gamma()] * 2, NORM, *[NORM] * 4, Pass(), ZBox(-3, 3)),
    "epsilon_gamma_box: {low: [-3, -2], high: 3.0, gamma: 0.5, stabilizer: 0.1, epsilon: 0}": (
        *[Gamma(0.5, 0.1)] * 2,
        Epsilon(0.0),
        *[Epsilon(0.1)] * 4,
        Pass(),
        ZBox((-3, -2), 3, 0.1),
    ),
    "excitation_backprop:": (*[ZPlus()] * 3, *[NORM] * 4, Pass(), None),
    "deconvnet:": (*[Epsilon(0.0)] * 7, Deconvnet(), None),
    "guided_backprop:": (*[Epsilon(0.0)] * 7, Guided(), None),
}
KINDS = ("conv", "conv_transpose", "linear", "avg_pool", "batch_norm", "add", "matmul", "relu")


@pytest.mark.parametrize("text", PRESETS)
def test_presets(text: str) -> None:
    composite = from_yaml(text)
    *layers, at_input = PRESETS[text]
    assert rules(composite, *KINDS) == layers
    assert composite.input == at_input
    modified = text.partition(":")[0] in ("deconvnet", "guided_backprop")
    assert composite.heatmap == ("coefficient" if modified else "relevance")
    assert composite == from_yaml(text) and isinstance(hash(composite), int)


def test_every_preset_is_tested() -> None:
    assert {text.partition(":")[0] for text in PRESETS} == set(COMPOSITES)


@pytest.mark.parametrize("name", COMPOSITES)
def test_one_family_of_kinds_has_one_rule(name: str) -> None:
    composite = create_composite(name, {"low": -1.0, "high": 1.0} if name.endswith("box") else None)
    for group in ("convolution", "pool", "addition", "product"):
        assert len(set(rules(composite, *KIND_GROUPS[group]))) == 1
    assert set(rules(composite, *set(KIND_GROUPS["activation"]) - {"relu"})) == {Pass()}
    assert set(rules(composite, "max_pool", "reshape", "cat")) == {Pass()}


def test_groups_and_rules_name_kinds_that_exist() -> None:
    members = [kind for group in KIND_GROUPS.values() for kind in group]
    assert set(members) <= set(OPS) and len(members) == len(set(members))
    assert not set(KIND_GROUPS) & set(OPS)
    assert {kind for rule in RULES.values() for kind in rule.acts_on} <= set(KIND_GROUPS) | set(OPS)
    # Whatever has a linear map is looked after by a rule for linear maps.
    assert all(composite_rule == Epsilon(0.0) for composite_rule in rules(Composite(), *_linear_kinds()))


def _linear_kinds() -> list[str]:
    return [kind for kind, op in OPS.items() if op.linear_map is not None]


def test_first_match_wins() -> None:
    composite = Composite((Assign(Gamma(0.1), name="layer4.*"), Assign(Gamma(0.2)), Assign(Gamma(0.3))))
    assert composite.rule(call("conv", "layer4.1.conv2")) == Gamma(0.1)
    assert composite.rule(call("conv", "layer1.1.conv2")) == Gamma(0.2)
    first = Composite(composite.layers, overrides=(Assign(ZPlus()),))
    assert first.rule(call("conv", "layer4.1.conv2")) == ZPlus()


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*", ["", "conv1", "layer4.0.conv1", "layer4.1.conv1", "layer40.conv"]),
        ("layer4.*", ["layer4.0.conv1", "layer4.1.conv1"]),
        ("layer4*", ["layer4.0.conv1", "layer4.1.conv1", "layer40.conv"]),
        ("*.conv?", ["layer4.0.conv1", "layer4.1.conv1"]),
        ("layer4.[1-9].*", ["layer4.1.conv1"]),
        ("Layer4.*", []),
    ],
)
def test_patterns_of_paths(pattern: str, matched: list[str]) -> None:
    paths = ["", "conv1", "layer4.0.conv1", "layer4.1.conv1", "layer40.conv"]
    assert [path for path in paths if Assign(ZPlus(), name=pattern).matches(call("conv", path))] == matched


def test_depth_is_inclusive() -> None:
    assign = Assign(ZPlus(), depth=(0.5, 0.75))
    found = [depth for depth in (0.0, 0.49, 0.5, 0.6, 0.75, 0.76, 1.0) if assign.matches(call("conv", depth=depth))]
    assert found == [0.5, 0.6, 0.75]


def test_conditions_hold_together() -> None:
    assign = Assign(ZPlus(), ("convolution", "linear"), "a.*", (0.2, 1.0))
    assert assign.matches(call("conv_transpose", "a.b", 0.2)) and assign.matches(call("linear", "a.b", 1.0))
    others = [call("mean", "a.b"), call("conv", "b.a"), call("conv", "a.b", 0.1), call("relu", "a.b")]
    assert not any(assign.matches(other) for other in others)


@pytest.mark.parametrize(
    ("rule", "kinds"),
    [
        (Epsilon(0.1), {*_linear_kinds(), "add", "sub", "matmul", "einsum"}),
        (Gamma(), {"conv", "conv_transpose", "linear", "avg_pool", "adaptive_avg_pool", "mean", "sum", "batch_norm"}),
        (Deconvnet(), {"relu"}),
        (Pass(), set(KIND_GROUPS["activation"])),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Rule) else "",  # sets have no order
)
def test_a_rule_applies_only_where_it_can_act(rule: Rule, kinds: set[str]) -> None:
    assert {kind for kind in OPS if Assign(rule).matches(call(kind))} == kinds


def test_a_group_may_hold_kinds_that_the_rule_cannot_act_on() -> None:
    guided = Composite((Assign(Guided(), ("activation",)),))
    assert rules(guided, "relu", "silu") == [Guided(), Pass()]


OVERRIDES = """
epsilon_plus:
  overrides:
    - {rule: gamma, gamma: 0.1, kinds: [convolution], name: "layer4.*", depth: [0.5, 1.0]}
    - {rule: alphabeta, alpha: 1.5, beta: 0.5, zero_bias: true, kinds: [conv], depth: [0, 0.25]}
    - {rule: epsilon, name: "layer4.*"}
    - {rule: guided}
  input: {rule: zbox, low: [-2.1, -2.0, -1.8], high: 2.7}
"""


def test_overrides_come_before_the_preset() -> None:
    composite = from_yaml(OVERRIDES)
    assert composite.layers == create_composite("epsilon_plus").layers
    assert composite.rule(call("conv", "layer4.0.conv1", 0.9)) == Gamma(0.1)
    assert composite.rule(call("conv", "layer4.0.conv1", 0.4)) == Epsilon(0.0)
    assert composite.rule(call("conv", "layer1.0.conv1", 0.2)) == AlphaBeta(1.5, 0.5, zero_bias=True)
    assert composite.rule(call("conv", "layer1.0.conv1", 0.3)) == ZPlus()
    assert rules(composite, "relu", "silu") == [Guided(), Pass()]
    assert composite.input == ZBox((-2.1, -2.0, -1.8), 2.7)


def test_input_replaces_the_rule_of_the_preset() -> None:
    assert from_yaml("epsilon_plus_flat: {input: {rule: wsquare, zero_bias: false}}").input == WSquare(zero_bias=False)
    assert from_yaml("epsilon_plus_flat: {input: null, overrides: null}").input == Flat()


def test_unmatched_overrides_are_named() -> None:
    composite = from_yaml(OVERRIDES)
    calls = [call("conv", "layer1.0.conv1", 0.3), call("linear", "layer4.0.fc", 0.9), call("relu", "act")]
    missed = composite.unmatched(calls)
    assert len(missed) == 2
    assert "gamma=0.1" in missed[0] and "'layer4.*'" in missed[0] and "alpha=1.5" in missed[1]
    assert composite.unmatched(iter([*calls, call("conv", "stem", 0.0), call("conv", "layer4.1", 0.7)])) == []
    assert create_composite("epsilon_plus").unmatched([]) == []


def test_rules_by_path_hold_in_a_decoder_that_is_compiled_whole() -> None:
    """Rules are chosen when the decoder is made: compiled code looks at no pattern."""
    override = {"rule": "epsilon", "epsilon": 0.5, "name": "conv3"}
    decoder = HeatmapDecoder(nets.tiny(), composite_kwargs={"overrides": [override]}).eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    expected = decoder(images).heatmaps
    torch.compiler.reset()
    found = torch.compile(decoder, fullgraph=True, backend="eager")(images).heatmaps
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert (expected - HeatmapDecoder(decoder.classifier).eval()(images).heatmaps).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("gama:", "unknown composite 'gama'; there are epsilon, .*guided_backprop"),
        ("epsilon: {gamma: 1}", "does not take 'gamma'; its arguments are epsilon, overrides, input"),
        ("epsilon_box:", "'epsilon_box' needs low, high"),
        ("epsilon_gamma_box: {low: 0}", "needs high"),
        ("epsilon_gamma_box: {low: 1, high: 0}", "low < high, got low=1 and high=0"),
        ("epsilon: {epsilon: -1}", "epsilon of Epsilon must be a number >= 0, got -1"),
        ("epsilon_plus: {stabilizer: 1e-6}", "got '1e-6'; in YAML write 1.0e-6"),
        ("epsilon: {overrides: gamma}", "overrides must be a list, got 'gamma'"),
        ("epsilon: {overrides: [gamma]}", "override must name its rule, .*got 'gamma'"),
        ("epsilon: {overrides: [{gamma: 0.1}]}", "override must name its rule"),
        ("epsilon: {overrides: [{rule: gama}]}", "unknown rule 'gama' of override; there are epsilon, gamma"),
        ("epsilon: {overrides: [{rule: [gamma]}]}", r"unknown rule \['gamma'\]"),
        (
            "epsilon: {overrides: [{rule: gamma, epsilon: 0.1}]}",
            "override 'gamma' does not take 'epsilon'; its keys are rule, gamma, stabilizer, zero_bias, kinds, name",
        ),
        ("epsilon: {overrides: [{rule: gamma, gamma: -0.1}]}", "gamma of Gamma must be a number >= 0, got -0.1"),
        ("epsilon: {overrides: [{rule: alphabeta, alpha: 1}]}", "alpha - beta = 1"),
        ("epsilon: {overrides: [{rule: flat}]}", "Flat.* goes to the composite's `input`.*one of epsilon, gamma"),
        ("epsilon: {overrides: [{rule: gamma, kinds: conv}]}", r"kinds must be a list such as \['convolution'\]"),
        ("epsilon: {overrides: [{rule: gamma, kinds: [conv2d]}]}", "unknown kind 'conv2d'; there are the groups conv"),
        ("epsilon: {overrides: [{rule: gamma, kinds: [relu]}]}", "Gamma.* cannot act on 'relu', only on .*conv"),
        ("epsilon: {overrides: [{rule: guided, kinds: [conv]}]}", "cannot act on 'conv', only on relu"),
        ("epsilon: {overrides: [{rule: guided, kinds: [dense]}]}", "cannot act on 'dense'"),
        ("epsilon: {overrides: [{rule: gamma, name: 4}]}", "pattern of module paths such as 'layer4.*', got 4"),
        ("epsilon: {overrides: [{rule: gamma, depth: 0.5}]}", r"depth must be a list such as \[0.5, 1.0\], got 0.5"),
        ("epsilon: {overrides: [{rule: gamma, depth: [0.5]}]}", r"\[smallest, largest\] within 0..1, got \[0.5\]"),
        ("epsilon: {overrides: [{rule: gamma, depth: [0.5, 0.4]}]}", "within 0..1"),
        ("epsilon: {overrides: [{rule: gamma, depth: [.nan, 1]}]}", "within 0..1"),
        ("epsilon: {input: flat}", "input must name its rule"),
        ("epsilon: {input: {rule: gamma}}", "Gamma.* is no rule of the input; there are zbox, wsquare, flat"),
        ("epsilon: {input: {rule: zbox, low: 0}}", "input 'zbox' with {'low': 0}.*high.*its keys are low, high"),
        ("epsilon: {input: {rule: flat, name: a}}", "input 'flat' does not take 'name'; its keys are rule, stabilizer"),
        ("deconvnet: {input: {rule: flat}}", "heatmaps of coefficients need no rule of the input"),
    ],
)
def test_errors(text: str, named: str) -> None:
    with pytest.raises(InputError, match=f"(?s){named}"):
        from_yaml(text)


def test_heatmap_is_one_of_two() -> None:
    with pytest.raises(InputError, match="'relevance' or 'coefficient', got 'gradient'"):
        Composite(heatmap="gradient")
