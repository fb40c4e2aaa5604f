"""einops in a classifier, and Python functions with a custom rule wherever they are called from."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.lrp.ops.harness import Case, build, check
from tw_seg.lrp import HeatmapDecoder


def blend(a: Tensor, b: Tensor, share: float, *, scale: float = 1.0) -> Tensor:
    """A function of another library, which cannot be traced."""
    if not isinstance(a, Tensor):
        raise TypeError("blend takes tensors")
    return (a * share + b * (1 - share)) * scale


def blend_rule(c, inputs, output, module, arguments):
    share, scale = arguments.args[2], arguments.kwargs.get("scale", 1.0)
    assert module is None and arguments.args[0].shape == inputs[0].shape == c.shape
    return c * share * scale, c * (1 - share) * scale


def modules():
    return {"b": nn.Conv2d(3, 4, 3, padding=1)}


CASES = {
    "a rule is told the arguments": Case(
        lambda s, x: blend(s.a(x), s.b(x), 0.25) + blend(s.b(x), s.a(x), 0.5, scale=3.0),
        modules=modules,
        custom_rules={blend: blend_rule},
    ),
    "of a constant": Case(
        lambda s, x: blend(s.a(x), s.b(x), 0.25, scale=blend(torch.ones(1), torch.ones(1), 0.5)),
        modules=modules,
        custom_rules={blend: blend_rule},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_function_with_a_rule(name: str) -> None:
    check(CASES[name])


def test_a_function_that_another_module_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("a_library")
    library.mix = blend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_library", library)
    net, images = build(Case(lambda s, x: library.mix(s.a(x), s.b(x), 0.25), modules=modules))
    decoder = HeatmapDecoder(net, custom_rules={blend: blend_rule}).eval()
    torch.testing.assert_close(decoder(images).logits, net(images))
    assert library.mix is blend and sys.modules[__name__].blend is blend  # type: ignore[attr-defined]


def test_a_method_of_a_rule_is_told_the_arguments() -> None:
    class Rule:
        def __call__(self, c, inputs, output, module, arguments):
            return blend_rule(c, inputs, output, module, arguments)

        def absorbed(self, c, inputs, output, module, *, arguments):
            assert arguments.args[2] == 0.25
            return torch.zeros_like(c)

    check(Case(blended, modules=modules, custom_rules={blend: Rule()}))


def blended(s, x):
    return blend(s.a(x), s.b(x), 0.25)


def test_einops_layers_and_functions() -> None:
    einops = pytest.importorskip("einops")
    layers = pytest.importorskip("einops.layers.torch")
    for case in (
        Case(lambda s, x: einops.rearrange(s.a(x), "b c (h p) (w q) -> b (h w) (p q c)", p=2, q=2)),
        Case(lambda s, x: einops.reduce(s.a(x), "b c h w -> b c", "mean")),
        Case(lambda s, x: einops.reduce(s.a(x), "b c (h 2) w -> b c h w", "max")),
        Case(lambda s, x: einops.repeat(s.a(x), "b c h w -> b c (h 2) (w r)", r=3)),
        Case(lambda s, x: einops.einsum(s.a(x), s.p, "b c h w, c d -> b d h w"), modules=lambda: {
            "p": nn.Parameter(torch.zeros(4, 5))}),
        Case(lambda s, x: s.r(s.a(x)), modules=lambda: {"r": layers.Rearrange("b c (h p) w -> b h (p w c)", p=3)}),
        Case(lambda s, x: s.r(s.a(x)), modules=lambda: {"r": layers.Reduce("b c (h 2) w -> b c h w", "min")}),
        Case(lambda s, x: s.r(s.a(x)), modules=lambda: {
            "r": layers.EinMix("b c h w -> b h w d", weight_shape="c d", bias_shape="d", c=4, d=3)}),
    ):  # fmt: skip
        check(case)
