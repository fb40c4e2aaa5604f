"""Arguments that are computed from sizes, and operations without a rule that no read-out needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.lrp.decoding import pictures
from tests.oracles.gradients import input_x_gradient
from tests.oracles.nets import conv
from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder


class Apply(nn.Module):
    """A function of activations, and their rows."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.function(x)
        return y


BLUR = torch.full((4, 1, 3, 3), 1 / 9, dtype=torch.float64)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.avg_pool2d(x, x.size()[2:]),
        lambda x: F.max_pool2d(x, 3, stride=x.shape[2] // 4),
        lambda x: F.adaptive_max_pool2d(x, (x.shape[2] // 4, x.shape[3] // 4)),
        lambda x: F.conv2d(x, BLUR, groups=x.shape[1]),
        lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, x.shape[2] // 8), x.shape[2] // 8),
        lambda x: F.unfold(x, x.shape[2] // 8, stride=x.shape[2] // 8).unsqueeze(-1),
        lambda x: F.pad(x, (x.shape[1] // 4, x.ndim - 3)),
        lambda x: torch.max(x, x.ndim - 1)[0].unsqueeze(x.ndim - 1),
        lambda x: torch.max(x, dim=x.dim() - 1, keepdim=True).values,
        lambda x: x.permute(0, x.ndim - 3, x.ndim - 1, x.ndim - 2),
        lambda x: x.flip(x.ndim - 1),
        lambda x: torch.cat([*x.split(x.shape[1] // 2, dim=x.ndim - 3)], x.ndim - 1),
        lambda x: x.narrow(x.ndim - 1, 0, x.shape[-1] // 2),
        lambda x: x.repeat_interleave(x.shape[1] // 2, dim=x.ndim - 2),
        lambda x: torch.stack((x, 2 * x), x.ndim).sum(x.ndim),
        lambda x: x.flatten(x.ndim - 2).unflatten(x.ndim - 2, (x.shape[1], -1)),
        lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True) * x.shape[1],
    ],
)
def test_arguments_from_sizes(function) -> None:
    net = nn.Sequential(conv(), nn.ReLU(), Apply(function), nn.Flatten(), nn.LazyLinear(3)).double().eval()
    images = pictures(2, 3, 8, 8)
    net(images)
    decoded = HeatmapDecoder(net)(images)
    assert torch.equal(decoded.logits, net(images))
    torch.testing.assert_close(decoded.heatmaps, input_x_gradient(net, images), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("from_sizes", "written_out"),
    [
        (lambda x: F.layer_norm(x, x.shape[1:]), lambda x: F.layer_norm(x, (4, 8, 8))),
        (lambda x: F.group_norm(x, x.shape[1] // 2), lambda x: F.group_norm(x, 2)),
        (lambda x: F.softmax(x, dim=x.ndim - 3) * x, lambda x: F.softmax(x, dim=1) * x),
    ],
)
def test_arguments_from_sizes_where_relevance_is_no_gradient(from_sizes, written_out) -> None:
    found, images = [], pictures(2, 3, 8, 8)
    for function in (from_sizes, written_out):
        torch.manual_seed(0)
        net = nn.Sequential(conv(), Apply(function), nn.Flatten(), nn.Linear(256, 3)).double().eval()
        found.append(HeatmapDecoder(net, composite="epsilon_plus")(images).heatmaps)
    assert torch.equal(*found)


def test_compile_arguments_from_sizes() -> None:
    net = (
        nn.Sequential(conv(), Apply(lambda x: F.avg_pool2d(x, x.shape[2:])), nn.Flatten(), nn.Linear(4, 3))
        .double()
        .eval()
    )
    decoder, images = HeatmapDecoder(net), pictures(2, 3, 8, 8)
    torch._dynamo.reset()
    compiled = torch.compile(decoder, fullgraph=True, backend="eager", dynamic=True)
    torch.testing.assert_close(compiled(images).heatmaps, decoder(images).heatmaps)


def cbam(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x.flatten(2).logsumexp(2))[:, :, None, None]


def winners(x: Tensor) -> Tensor:
    return x * (x >= x.flatten(2).topk(5).values[..., -1][:, :, None, None])


def rounded(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


@pytest.mark.parametrize("gate", [cbam, winners, rounded])
def test_an_operation_without_a_rule_off_the_way_of_relevance(gate) -> None:
    """What it feeds is held constant, so the heatmap is input x gradient with it detached."""
    net = nn.Sequential(conv(), nn.ReLU(), Apply(gate), nn.Flatten(), nn.Linear(256, 3)).double().eval()
    images = pictures(2, 3, 8, 8)
    decoded = HeatmapDecoder(net)(images)
    assert torch.equal(decoded.logits, net(images))
    activation = net[:2](images).detach()
    factor = gate(activation) / activation.clamp(min=1e-300) if gate is not rounded else torch.ones_like(activation)
    held = nn.Sequential(net[0], net[1], Apply(lambda x: x * factor), net[3], net[4])
    torch.testing.assert_close(decoded.heatmaps, input_x_gradient(held, images), rtol=1e-10, atol=1e-14)


def test_an_operation_without_a_rule_below_the_read_out_is_only_run() -> None:
    net = nn.Sequential(Apply(lambda x: x.cumsum(2)), conv(), nn.ReLU(), Apply(torch.erf), conv(4), nn.Flatten())
    net = nn.Sequential(*net, nn.Linear(256, 3)).double().eval()
    images = pictures(2, 3, 8, 8)
    decoded = HeatmapDecoder(net, read_out="4")(images)
    assert torch.equal(decoded.logits, net(images))
    torch.testing.assert_close(decoded.heatmaps, HeatmapDecoder(net[4:], read_out="4")(net[:4](images)).heatmaps)
    with pytest.raises(UnsupportedOpError, match=r"(?s)1 call\(s\).*erf") as caught:
        HeatmapDecoder(net, read_out="1")
    assert "cumsum" not in str(caught.value)


class OfMode(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(2) if self.training else torch.erf(x)


def test_what_depends_on_the_mode_is_refused_at_once() -> None:
    net = nn.Sequential(conv(), OfMode(), nn.Flatten(), nn.Linear(256, 3)).eval()
    with pytest.raises(UnsupportedOpError, match=r"(?s)2 call\(s\).*erf.*cumsum"):
        HeatmapDecoder(net)
