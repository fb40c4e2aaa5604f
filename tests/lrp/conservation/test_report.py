"""The report finds what is wrong, names the place, and blames nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.oracles import nets
from tests.oracles.nets import Calls, conv
from tw_seg.errors import InputError
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.conservation.diagnose import report
from tw_seg.lrp.conservation.report import Report

BOX = {"low": -6.0, "high": 6.0}


def pictures(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*(size or (2, 3, 17, 19)), dtype=dtype).clamp(-6, 6)


# ----------------------------------------------------------------------------------------------- what is right


@pytest.mark.parametrize(
    ("composite", "kwargs"),
    [
        ("epsilon", {}),
        ("epsilon", {"epsilon": 0.2}),
        ("epsilon_plus_flat", {}),
        ("epsilon_alpha2_beta1", {}),
        ("epsilon_gamma_box", BOX),
    ],
)
def test_a_sound_net_has_no_violations(composite: str, kwargs: dict[str, Any]) -> None:
    net, images = nets.create("resnet10t"), nets.images("resnet10t", 1)
    found = report(net, images.clamp(-6, 6), [0, 2], composite=composite, composite_kwargs=kwargs)
    assert found.violations == () and found.notes == ()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus", "epsilon_alpha2_beta1_flat"])
def test_rounding_is_no_violation(composite: str, dtype: torch.dtype) -> None:
    found = report(nets.tiny().to(dtype), pictures(dtype=dtype), composite=composite)
    assert found.violations == ()
    assert found.dtype == str(dtype).removeprefix("torch.")


def test_every_call_is_in_the_report_in_order() -> None:
    decoder, images = HeatmapDecoder(nets.tiny()), pictures()
    found = report(decoder, images, [1])
    calls = [call.name for call in decoder.graph(images).calls if call.inputs]
    listed = [name for row in reversed(found.rows) for name in (row.name, *row.fused)]
    assert listed == calls
    assert found.rows[0].path == "fc" and found.rows[-1].kind == "conv+batch_norm"
    assert sum(n for rules in found.rules.values() for n in rules.values()) == len(found.rows)


@torch.no_grad()
def test_numbers_of_one_row_by_hand() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    net[1].weight.copy_(torch.tensor([[1.0, -1, 0, 0], [0, 0, 2, 0], [0, 0, 0, -1]]))
    net[1].bias.copy_(torch.tensor([0.5, 0, 0]))
    net[3].weight.copy_(torch.tensor([[1.0, -2, 3], [0, 0, 0]]))
    net[3].bias.zero_()
    images = torch.tensor([[[[3.0, 1, 1, 1]]]]).double()
    # Hidden (2.5, 2, -1) -> (2.5, 2, 0); logit 0 is 2.5 - 4; the first layer's inputs get (3, -1, -4, 0).
    found = report(net, images, [0])
    last, relu, first, flatten = found.rows
    assert (last.relevance_out, last.relevance_in, last.absolute, last.growth) == (-1.5, -1.5, 1.0, 6.5 / 1.5)
    assert (relu.zeros, relu.growth, relu.rule) == (1 / 3, 1.0, "pass")
    assert (first.relevance_in, first.bias, first.zeros) == (-2.0, 0.5 / 2, 1 / 4)
    assert first.growth == 8 / 6.5 and first.missing == 0
    (total,) = found.totals
    assert (total.logit, total.seed, total.heatmap, total.bias) == (-1.5, -1.5, -2.0, 0.5)
    assert total.absolute == 8 / 1.5 and flatten.absolute == 8 / 1.5


def test_rules_in_words() -> None:
    def function(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        y = torch.relu(y) * torch.sigmoid(s.b(x))
        return s.a(x) * y + s.pool(y)

    net = Calls(function, a=conv(), b=conv(), pool=nn.MaxPool2d(3, 1, 1))
    found = report(net, pictures(), composite="epsilon_plus", composite_kwargs={"stabilizer": 0.1})
    rules = {row.name: row.rule for row in found.rows}
    assert rules["mul"] == "to the signal" and rules["mul_1"] == "half each"
    assert rules["pool"] == "winner" and rules["relu"] == "pass" and rules["add"] == "Epsilon(epsilon=0.1)"
    assert rules["a"].startswith("ZPlus(stabilizer=0.1") and rules["fc"] == "Epsilon(epsilon=1e-06)"
    assert found.violations == ()


def test_several_read_outs() -> None:
    decoder, images = HeatmapDecoder(nets.tiny(), read_out=["conv2", "input"]), pictures()
    found = report(decoder, images, [2, 0])
    assert [(t.read_out, t.class_index) for t in found.totals] == [
        ("conv2", 2), ("conv2", 0), ("input", 2), ("input", 0),
    ]  # fmt: skip
    for place, heatmap in zip(("conv2", "input"), decoder(images, [2, 0]).readouts, strict=True):
        mine = [t for t in found.totals if t.read_out == place]
        torch.testing.assert_close(
            torch.tensor([t.heatmap for t in mine]).double(), heatmap.sum((2, 3)).mean(0).detach()
        )
        for t in mine:
            parts = t.heatmap + t.bias + t.stabilizer + t.elsewhere
            assert math.isclose(t.seed, parts, rel_tol=1e-12) and t.logit == t.seed
    assert any(t.elsewhere for t in found.totals if t.read_out == "conv2")


def test_another_seed_starts_from_its_own_relevance() -> None:
    found = report(nets.tiny(), pictures(), [1], seed="contrastive")
    (total,) = found.totals
    assert abs(total.seed - total.logit) > 1e-3 and total.missing < 1e-10 and found.violations == ()


def test_what_may_be_given() -> None:
    net, images = nets.tiny(), pictures()
    holder = nn.Module()
    holder.decoder = HeatmapDecoder(net)
    assert report(net, images) == report(HeatmapDecoder(net), images) == report(holder, images)
    with pytest.raises(InputError, match="composite, read_out.*HeatmapDecoder"):
        report(HeatmapDecoder(net), images, composite="epsilon", read_out="conv1")


# -------------------------------------------------------------------------------------------------- how it looks


@pytest.fixture(scope="module")
def found() -> Report:
    torch.manual_seed(0)
    return report(nets.tiny(), pictures(), composite="epsilon_gamma_box", composite_kwargs=BOX)


def test_table_is_aligned_and_narrow(found: Report) -> None:
    lines = found.table().splitlines()
    assert all(len(line) <= 150 for line in lines)
    ruler = lines[3]
    assert set(ruler) == {"-"}
    rows = lines[4 : 4 + len(found.rows)]
    for line, row in zip(rows, found.rows, strict=True):
        assert line.startswith(row.path or "(root)") and row.kind in line and len(line) <= len(ruler)
    assert lines[-1] == "No violations."
    for rules in found.rules.values():
        assert all(rule in found.table() for rule in rules)


def test_long_paths_keep_their_end(found: Report) -> None:
    row = dataclasses.replace(found.rows[0], path="backbone." * 9 + "layer4.conv1", rule="R" * 99, kind="k" * 99)
    text = dataclasses.replace(found, rows=(row,)).table().splitlines()[4]
    assert text.startswith("..") and "layer4.conv1  kkk" in text and len(text) <= 150


def test_violations_and_notes_are_in_the_table(found: Report) -> None:
    lines = dataclasses.replace(found, violations=("first", "second"), notes=("noted",)).table().splitlines()
    assert lines[-3:] == ["2 violations:", "  - first", "  - second"] and "Note: noted" in lines


def test_json_round_trip(found: Report) -> None:
    row = dataclasses.replace(found.rows[0], growth=math.inf, missing=math.nan)
    odd = dataclasses.replace(found, rows=(row, *found.rows[1:]))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    back = json.loads(odd.to_json(), parse_constant=refuse)
    assert back["rows"][0]["growth"] is None and back["rows"][0]["missing"] is None
    expected = json.loads(json.dumps(dataclasses.asdict(odd)))
    expected["rows"][0].update(growth=None, missing=None)
    assert back == {**expected, "rules": found.rules}


def test_a_report_leaves_no_trace() -> None:
    net = nets.tiny()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    report(net, pictures())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters()) and not net.training
