"""What is wrong is found and its place is named; what is not meant to conserve is noted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.oracles import nets
from tests.oracles.nets import Calls, conv
from tw_seg.errors import InputError
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.conservation.diagnose import report


def pictures(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*(size or (2, 3, 17, 19)), dtype=dtype).clamp(-6, 6)


class Swish(nn.Module):
    """An operation of the user: its own class, so that only an own rule knows it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.erf(x)


class Shifted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x + 0.5


def right(c, inputs, output, module):
    return c * torch.erf(inputs[0])


def losing(c, inputs, output, module):
    return 0.5 * c * torch.erf(inputs[0])


def everything_twice(c, inputs, output, module):
    return 2 * c * torch.erf(inputs[0])


class ShiftedRule:
    def __call__(self, c, inputs, output, module):
        return 3 * c

    def absorbed(self, c, inputs, output, module):
        return 0.5 * c


def own_net(module: nn.Module) -> nn.Module:
    net = nn.Sequential(conv(), module, conv(4, 4), nn.Flatten(), nn.Linear(4 * 36, 3))
    return nets.initialise(net).double()


@pytest.mark.parametrize("rule", [losing, everything_twice])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_rule_that_does_not_conserve(rule, dtype: torch.dtype) -> None:
    net, images = own_net(Swish()).to(dtype), pictures(2, 3, 6, 6, dtype=dtype)
    assert report(net, images, custom_rules={Swish: right}).violations == ()
    found = report(net, images, custom_rules={Swish: rule})
    (text,) = found.violations
    assert text.startswith(f"1 (custom '_1', {rule.__name__}) does not conserve relevance")
    (row,) = [row for row in found.rows if row.kind == "custom"]
    assert row.rule == rule.__name__ and row.missing == pytest.approx(0.5, rel=1e-4)


def test_constants_of_an_own_operation() -> None:
    net, images = own_net(Shifted()), pictures(2, 3, 6, 6)
    found = report(net, images, custom_rules={Shifted: ShiftedRule()})
    assert found.violations == ()
    assert [row.rule for row in found.rows if row.kind == "custom"] == ["ShiftedRule"]
    (text,) = report(net, images, custom_rules={Shifted: ShiftedRule().__call__}).violations
    assert "does not conserve" in text and text.startswith("1 (custom")


def test_absorbed_of_another_shape_is_refused() -> None:
    class Wrong(ShiftedRule):
        def absorbed(self, c, inputs, output, module):
            return c.sum()

    with pytest.raises(InputError, match=r"absorbed.*1.*shape \(\)"):
        report(own_net(Shifted()), pictures(2, 3, 6, 6), custom_rules={Shifted: Wrong()})


def test_a_small_loss_is_seen_beside_large_terms_that_cancel() -> None:
    """In float64 a millionth is a violation, although the absolute relevance is far more than the logit."""

    def nearly(c, inputs, output, module):
        return (1 - 1e-6) * c * torch.erf(inputs[0])

    net, images = own_net(Swish()), pictures(2, 3, 6, 6)
    assert len(report(net, images, custom_rules={Swish: nearly}).violations) == 1
    assert report(net, images, custom_rules={Swish: nearly}, tolerance=1e-5).violations == ()


def test_rounding_of_sums_that_cancel_is_no_violation() -> None:
    """In float32, of terms of both signs that are 1e4 times their sum, a sum has three digits."""
    half = 1 + torch.randn(50, 2000)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4000, 50, bias=False), nn.Linear(50, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.cat([half, -half * (1 + 1e-4 * torch.rand_like(half))], 1))
    x = torch.rand(1, 1, 2000, 1)
    found = report(net, torch.cat([x, x], 2))
    assert found.rows[-1].absolute > 1e3 and max(row.missing for row in found.rows) > 1e-4
    assert found.violations == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("path", "parameter"), [("conv2", "weight"), ("bn1", "running_var"), ("fc", "bias"), ("conv1", "weight")]
)
def test_numbers_that_are_not_finite_are_named_at_their_origin(path: str, parameter: str, value: float) -> None:
    net = nets.tiny()
    with torch.no_grad():
        getattr(net.get_submodule(path), parameter).view(-1)[0] = value
    if parameter == "running_var" and value == float("inf"):
        return  # 1 / sqrt(inf) is 0
    found = report(net, pictures())
    assert len(found.violations) == 1
    assert (
        found.violations[0].startswith(f"{path} (")
        and f"1 of {count(net, path, parameter)} values of " in found.violations[0]
    )
    assert f"{path}.{parameter}" in found.violations[0]
    assert any(row.non_finite for row in found.rows)
    assert "NaN" not in found.to_json() and found.table()


def count(net: nn.Module, path: str, parameter: str) -> int:
    return int(getattr(net.get_submodule(path), parameter).numel())


def test_images_that_are_not_finite() -> None:
    images = pictures()
    images[0, 0, 3, 3] = torch.nan
    (text,) = report(nets.tiny(), images).violations
    assert text == "images: 1 of 1938 values are not finite."


def test_coefficients_that_are_not_finite() -> None:
    def ratio(c, inputs, output, module):
        return c * output / inputs[0].relu()

    (text,) = report(own_net(Swish()), pictures(2, 3, 6, 6), custom_rules={Swish: ratio}).violations
    assert text.startswith("1 (custom '_1', ratio) makes") and "not finite" in text


def test_masked_scores_are_no_violation() -> None:
    """Minus infinity before a softmax is how attention is masked."""

    def function(s: Any, x: Tensor) -> Tensor:
        y = s.a(x).flatten(2)
        scores = (y.mT @ y + s.mask).softmax(-1)
        return (scores @ y.mT).mT.unflatten(2, (5, 4))

    mask = torch.zeros(20, 20, dtype=torch.float64).masked_fill(torch.ones(20, 20).triu(1) == 1, -torch.inf)
    net = Calls(function, a=conv())
    net.register_buffer("mask", mask)
    found = report(net, pictures(2, 3, 5, 4), image_size=(5, 4))
    assert found.violations == () and not any(row.non_finite for row in found.rows)


@pytest.mark.parametrize("samples", [1, 3])
def test_dead_relus(samples: int) -> None:
    net = nn.Sequential(conv(), nn.ReLU(), conv(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).double()
    with torch.no_grad():
        net[2].weight.zero_()
        net[2].bias.fill_(-1)
    (text,) = report(net, pictures(samples, 3, 6, 6)).violations
    assert text.startswith(f"no relevance reaches the read-out 'input' in {2 * samples} of {2 * samples} pairs")
    assert "after 3 (relu '_3', pass)" in text


def test_one_dead_branch_is_no_violation() -> None:
    net = Calls(lambda s, x: s.a(x) + torch.relu(s.b(x)), a=conv(), b=conv())
    with torch.no_grad():
        net.b.bias.fill_(-100)
    found = report(net, pictures())
    assert found.violations == () and max(row.zeros for row in found.rows) == 1


def test_a_head_of_zeros_is_named() -> None:
    net = nets.tiny()
    with torch.no_grad():
        net.fc.weight.zero_()
        net.fc.bias.zero_()
    (text,) = report(net, pictures()).violations
    assert "after fc (linear 'fc', Epsilon(epsilon=0.0)), whose weight is all zero" in text


def test_stabilisers_that_absorb_everything_are_named() -> None:
    """In float32, 1e-30 of 1e-30 of something is nothing."""
    images = pictures(dtype=torch.float32)
    (text,) = report(nets.tiny().float(), images, composite_kwargs={"epsilon": 1e30}).violations
    assert text.startswith("no relevance reaches") and text.endswith("the stabilisers absorbed 100% of it.")


def test_single_logits_of_zero_are_noted() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.ReLU()).double()
    with torch.no_grad():
        net[1].bias.copy_(torch.tensor([-1e3, 1e3]))
    found = report(net, pictures(2, 3, 2, 2))
    assert found.violations == ()
    assert found.notes == ("2 of 4 logits are exactly 0: their heatmaps at 'input' are, too.",)


def test_exploding_relevance() -> None:
    """A logit that is the small rest of huge terms of both signs."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1e8, -1e8]]))
    images = torch.tensor([[[[1.0, 1.0 + 1e-8]]]], dtype=torch.float64)
    (text,) = report(net, images, tolerance=1.0).violations
    assert text.startswith("relevance explodes: for image 0, class 0") and "2e+08 times" in text
    assert report(net, images, tolerance=1.0, explosion=1e9).violations == ()


def test_absorbed_relevance_is_noted() -> None:
    found = report(nets.tiny(), pictures(), composite_kwargs={"epsilon": 1e9})
    assert found.violations == () and "absorb nearly all" in found.notes[0]


def test_relevance_lost_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A skip connection whose second part replaces the first, instead of being added to it."""
    monkeypatch.setattr(
        "tw_seg.lrp.decode.propagate.accumulate", lambda parts, name, part: parts.__setitem__(name, part)
    )
    net = Calls(lambda s, x: s.b(x) + x, channels=3, b=conv(3, 3))
    texts = report(net, pictures(), [0, 2]).violations
    assert len(texts) == 2 and all("is lost that no call loses" in text for text in texts)


def test_untied_weights_that_moved_are_noted() -> None:
    decoder, images = HeatmapDecoder(nets.tiny(), tie_weights=False), pictures()
    assert report(decoder, images).notes == ()
    with torch.no_grad():
        decoder.decoder_weights["conv2/weight"].mul_(2)
    found = report(decoder, images)
    assert found.violations == ()
    (note,) = found.notes
    assert note.startswith("1 of the decoder's") and "'conv2.weight'" in note and "not checked" in note


@pytest.mark.parametrize("composite", ["guided_backprop", "deconvnet"])
def test_modified_gradients_are_noted(composite: str) -> None:
    found = report(nets.tiny(), pictures(), composite=composite)
    assert found.violations == () and "modified gradient" in found.notes[0]
