"""A class with the methods of a rule is all that the operations and the decode need."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from tests.oracles.nets import Calls, conv
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.conservation.diagnose import report
from tw_seg.lrp.core.linear_map import times
from tw_seg.lrp.core.rule import ActivationRule
from tw_seg.lrp.rules import RULES


@dataclass(frozen=True)
class Doubled(ActivationRule):
    """A rule of activations that the package does not have."""

    acts_on = ("activation",)
    conserves = False

    def coefficient(self, c: Tensor, u: Tensor, y: Tensor, axis: int = 0) -> Tensor:
        return 2 * times(c, y / u, axis)


@pytest.mark.parametrize("kind", ["relu", "silu", "softplus", "prelu"])
def test_a_new_activation_rule_is_one_class(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "doubled", Doubled)
    layer = {"relu": nn.ReLU(), "silu": nn.SiLU(), "softplus": nn.Softplus(), "prelu": nn.PReLU()}[kind]
    net, images = Calls(lambda s, x: s.layer(s.a(x)), a=conv(), layer=layer), torch.randn(2, 3, 6, 5).double()
    decoder = HeatmapDecoder(net, composite_kwargs={"overrides": [{"rule": "doubled"}]}).eval()
    tape, coefficients = decoder.coefficients(images)
    ratio = (tape.values["layer"] / tape.values["a"]).repeat(3, 1, 1, 1)
    torch.testing.assert_close(coefficients["a"], 2 * coefficients["layer"] * ratio, rtol=1e-12, atol=0)
    assert not decoder(images).heatmaps.isnan().any()  # what the rule reads was kept
    found = report(decoder, images)
    assert [row.rule for row in found.rows if row.kind == kind] == ["Doubled()"]
    assert "Doubled() in 1 calls does not conserve" in found.notes[0]
