"""The trace's logits against the classifier's own: what differs is refused, and nothing of the classifier changes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.errors import TraceError
from tw_seg.lrp import HeatmapDecoder


def small(channels: int = 3) -> nn.Sequential:
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), *pool, nn.Linear(8, 4))


class Asks(nn.Module):
    def __init__(self, ask: Callable[[Any], bool], modes: tuple[bool, ...] = (False, True)) -> None:
        super().__init__()
        self.ask, self.modes = ask, modes

    def forward(self, x: Tensor) -> Tensor:
        return x * x if self.training in self.modes and self.ask(x) else x


ASKS = [lambda x: isinstance(x, Tensor), torch.is_tensor, lambda x: type(x) is Tensor]


@pytest.mark.parametrize("ask", ASKS)
def test_a_forward_that_asks_for_types(ask) -> None:
    net = nn.Sequential(small()[0], nn.Sequential(Asks(ask)), *small()[1:]).eval()
    with pytest.raises(TraceError, match=r"in evaluation mode computes other logits.*'1.0' \(Asks\), which left no"):
        HeatmapDecoder(net)


def test_a_difference_in_training_mode_only() -> None:
    net = nn.Sequential(Asks(torch.is_tensor, modes=(True,)), small()).eval()
    with pytest.raises(TraceError, match="in training mode computes other logits"):
        HeatmapDecoder(net)


class RaisesRounding(nn.Module):
    """What tokens that are nearly the same attend to, less its mean: little but the rounding of the attention."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = (1 + 0.1 * x).flatten(2).transpose(1, 2).unsqueeze(1)
        found = F.scaled_dot_product_attention(tokens, tokens, tokens).squeeze(1)
        return (found - found.mean(1, keepdim=True))[:, 0]


def test_rounding_is_no_difference() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), RaisesRounding(), nn.Linear(8, 4, bias=False)).eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    decoder, expected = HeatmapDecoder(net).eval(), net(images)
    assert (decoder(images, [0]).logits - expected).abs().max() > 1e-3 * expected.abs().max(), "nothing to forgive"
    with pytest.raises(TraceError, match="in evaluation mode computes other logits"):
        HeatmapDecoder(nn.Sequential(Asks(torch.is_tensor), *net).eval())


def test_a_network_of_images_of_one_size_only() -> None:
    net = nn.Sequential(Asks(torch.is_tensor), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 4)).eval()
    with pytest.raises(TraceError, match=r"shape \(3, 16, 16\) they differ"):
        HeatmapDecoder(net, image_size=(16, 16))


def test_a_network_that_has_no_values_yet_is_compared_at_its_first_images() -> None:
    with torch.device("meta"):
        net = nn.Sequential(Asks(torch.is_tensor), small()).eval()
    decoder = HeatmapDecoder(net).to_empty(device="cpu")
    for tensor in (*decoder.parameters(), *decoder.buffers()):
        tensor.data.fill_(1)
    with pytest.raises(TraceError, match="computes other logits"):
        decoder(torch.rand(1, 3, 8, 8))


class Counts(nn.Module):
    """Draws, counts, and keeps caches."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.calls = nn.Dropout(0.5), 0
        self.register_buffer("mean", torch.zeros(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.mean += 0.1
        self.calls += 1
        return self.dropout(x + self.mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_of_the_classifier_changes(dtype: torch.dtype, training: bool) -> None:
    counts = Counts()
    net = nn.Sequential(counts, torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 1)), small())
    net = net.to(dtype).train(training)
    net[2][1].eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    tensors = {name: id(value) for name, value in (*net.named_parameters(), *net.named_buffers())}
    flags = [m.training for m in net.modules()]
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    HeatmapDecoder(net)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert {name: id(value) for name, value in (*net.named_parameters(), *net.named_buffers())} == tensors
    assert [m.training for m in net.modules()] == flags and counts.calls == 0
    assert torch.equal(torch.get_rng_state(), drawn[0]) and random.getstate() == drawn[1]
    assert np.random.get_state()[1].tolist() == drawn[2]


def test_random_numbers_drawn_in_another_order_are_no_difference() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x) if self.training else x

    net = nn.Sequential(Noise(), nn.Dropout2d(), small(), nn.Dropout()).train()
    decoder, images = HeatmapDecoder(net).eval(), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(decoder(images).logits, net(images))


def test_in_inference_mode() -> None:
    with torch.inference_mode():
        net = small().train()
        decoder, images = HeatmapDecoder(net).eval(), torch.rand(2, 3, 8, 8)
        assert torch.equal(decoder(images).logits, net(images))


class Squeezes(nn.Module):
    """Takes the batch axis of a single image away."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3), keepdim=True).squeeze())


class CatchesTheRefusal(nn.Module):
    """Branches on a value, and takes another way where that raises."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        try:
            large = bool(x.max() > 2)
        except Exception:
            large = False
        return self.head((self.conv(x / 100 if large else x)).relu().mean((2, 3)))


class AsksForGradients(nn.Module):
    """Of the images or of what is computed from them; as checkpointing does, with the same result, or with another."""

    def __init__(self, inside: bool, factor: float) -> None:
        super().__init__()
        self.conv, self.head, self.inside, self.factor = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), inside, factor

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        asked = y if self.inside else x
        return self.head((self.factor * y if asked.requires_grad else y).relu().mean((2, 3)))


class ComputesInHalf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.head(self.conv(x).relu().mean((2, 3)))


def test_a_single_image_decides_nothing_where_its_axis_is_squeezed_away() -> None:
    net = Squeezes()
    images = torch.rand(2, 3, 9, 9)
    torch.testing.assert_close(HeatmapDecoder(net)(images).logits, net(images))


def test_a_refusal_that_the_forward_catches_is_one() -> None:
    with pytest.raises(TraceError, match="cannot be traced: the forward branches on"):
        HeatmapDecoder(CatchesTheRefusal())


@pytest.mark.parametrize("inside", [False, True])
def test_a_forward_that_asks_for_gradients(inside: bool) -> None:
    with pytest.raises(TraceError, match="other logits where its images or weights require a gradient"):
        HeatmapDecoder(AsksForGradients(inside, 2))
    net, images = AsksForGradients(inside, 1), torch.rand(2, 3, 9, 9, requires_grad=True)
    torch.testing.assert_close(HeatmapDecoder(net)(images).logits, net(images))
    with torch.inference_mode():  # of such weights no gradients can be asked
        HeatmapDecoder(AsksForGradients(inside, 2))


def test_logits_of_another_type_are_refused() -> None:
    with pytest.raises(TraceError, match=r"in type, torch.float32 instead of torch.bfloat16; put autocast around"):
        HeatmapDecoder(ComputesInHalf())
