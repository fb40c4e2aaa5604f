"""A classifier that is partly frozen, or built otherwise after its decoder was made, is traced again."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.trace import build


class Block(nn.Module):
    """Takes another way in training, in Python; nothing is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        if self.training:
            y = y + x
        return y * (3.0 if self.training else 1.0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.blocks = nn.Sequential(Block(), Block())
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.stem(x)))
        return self.head(self.pool(x).flatten(1)) * (2 if self.training else 1)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


def assert_decodes(decoder: HeatmapDecoder, net: nn.Module, dtype: torch.dtype = torch.float64) -> None:
    """Logits are the net's own, heatmaps are input x gradient."""
    images = torch.randn(2, 3, 9, 9, dtype=dtype, requires_grad=True)
    logits, heatmaps, _ = decoder(images)
    expected = net(images)
    gradients = [torch.autograd.grad(expected[:, k].sum(), images, retain_graph=True)[0] for k in range(3)]
    maps = torch.stack([(images * gradient).sum(1) for gradient in gradients], 1)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(heatmaps, maps, rtol=tolerance, atol=tolerance)


def create(net: nn.Module) -> HeatmapDecoder:
    return HeatmapDecoder(net, composite_kwargs={"epsilon": 0.0})


def test_every_part_follows_its_own_flag(net):
    decoder = create(net)
    parts = (net, *net.blocks)
    for flags in itertools.product((True, False), repeat=3):
        for part, flag in zip(parts, flags, strict=True):
            part.training = flag
        assert_decodes(decoder, net)


def test_a_part_may_be_frozen_when_the_decoder_is_made(net):
    net.blocks[0].eval()
    assert_decodes(create(net), net)
    assert [m.training for m in (net, *net.blocks)] == [True, False, True]


def test_stochastic_depth_of_a_frozen_part_draws_nothing():
    torch.manual_seed(0)
    net = torchvision.models.convnext_tiny(num_classes=3, stochastic_depth_prob=0.9).double()
    for name, parameter in net.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.constant_(parameter, 0.5)
    decoder = create(net)
    net.train()
    net.features.eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(decoder(images, classes=[0]).logits, net(images))


def test_a_mode_is_traced_once(net, monkeypatch):
    decoder = create(net)
    traced = []
    trace = build.trace
    monkeypatch.setattr("tw_seg.lrp.decode.plan.trace", lambda *a, **k: traced.append(1) or trace(*a, **k))
    images = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    for _ in range(3):
        net.train()
        decoder(images)
        net.blocks[1].eval()
        decoder(images)
        net.eval()
        decoder(images)
    assert len(traced) == 1


def replace_activation(net: Net) -> None:
    net.act = nn.Identity()


def append_block(net: Net) -> None:
    net.blocks.append(Block().double())


def remove_block(net: Net) -> None:
    del net.blocks[0]


def exchange_blocks(net: Net) -> None:
    net.blocks[0], net.blocks[1] = net.blocks[1], net.blocks[0]


def change_stride(net: Net) -> None:
    net.stem.stride = (2, 2)


def change_pool(net: Net) -> None:
    net.pool = nn.AdaptiveMaxPool2d(1)


def patch_forward(net: Net) -> None:
    net.act.forward = lambda x: -x


def patch_convolution(net: Net) -> None:
    convolve = net.stem._conv_forward
    net.stem._conv_forward = lambda *args: 3 * convolve(*args)


def patch_block(net: Net) -> None:
    block = net.blocks[0]
    block.forward = lambda x: block.conv(x)


def change_class(net: Net) -> None:
    net.act.__class__ = nn.Identity


@pytest.mark.parametrize(
    "change",
    [
        replace_activation,
        append_block,
        remove_block,
        exchange_blocks,
        change_stride,
        change_pool,
        patch_forward,
        patch_convolution,
        patch_block,
        change_class,
    ],
)
def test_a_classifier_that_is_built_otherwise_later(net, change: Callable[[Net], None]):
    net.eval()
    decoder = create(net)
    assert_decodes(decoder, net)
    change(net)
    net.eval()
    assert_decodes(decoder, net)


class AsksForType(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.dtype == torch.float64:
            x = x * 3
        return self.head(x.relu().mean((2, 3)))


def test_numbers_of_another_type():
    torch.manual_seed(0)
    net = AsksForType()
    decoder = create(net)
    assert_decodes(decoder, net, torch.float32)
    net.double()
    assert_decodes(decoder, net)
