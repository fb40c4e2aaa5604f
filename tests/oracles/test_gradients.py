"""Parameter gradients of a loss on heatmaps, under every preset, are those of finite differences.

Heatmaps are kinked where a ReLU, a max pool, the sign of a denominator or a rule's choice of weights switches: the
images and weights are random, so that no step of a finite difference crosses such a place. For the epsilon rule
without epsilon they are also those of double backpropagation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tests.oracles import nets
from tests.oracles.attnlrp import transformer
from tests.oracles.gradients import HeldStatistics, gradients, input_x_gradient
from tw_seg.lrp import Decoded, HeatmapDecoder
from tw_seg.lrp.composite import COMPOSITES

BOX = {"low": (-4.0, -4.5, -5.0), "high": (4.0, 4.5, 5.0)}
# Not small: near a pole of the stabilised ratio a finite difference is no derivative.
LARGE = {"epsilon": 0.1, "stabilizer": 0.05}
PRESETS: dict[str, dict[str, Any]] = {
    "epsilon": {"epsilon": 0.1},
    "epsilon_flat": LARGE,
    "epsilon_wsquare": LARGE,
    "epsilon_box": {**LARGE, **BOX},
    "epsilon_plus": LARGE,
    "epsilon_plus_flat": LARGE,
    "epsilon_alpha2_beta1": LARGE,
    "epsilon_alpha2_beta1_flat": LARGE,
    "epsilon_gamma_box": {**LARGE, **BOX},
    "excitation_backprop": {"stabilizer": 0.05},
    "deconvnet": {},
    "guided_backprop": {},
}
CLASSES = [0, 2]


class Residual(nn.Module):
    """Few enough parameters to differentiate by each: a residual block with BatchNorm, a ReLU, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.bn(self.conv(x)))
        return self.fc(F.relu(x).mean((2, 3)))


def residual() -> nn.Module:
    return nets.initialise(Residual()).double().eval()


def example(size: int = 9) -> Tensor:
    return torch.randn(2, 3, size, size - 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Loss:
    """A loss on heatmaps, and the same as a function of all parameters that starts from the same buffers each time."""

    def __init__(self, decoder: HeatmapDecoder, images: Tensor) -> None:
        self.decoder, self.images = decoder, images
        self.names = [name for name, _ in decoder.named_parameters()]
        self.buffers = {name: buffer.clone() for name, buffer in decoder.named_buffers()}
        heatmaps = self.run(self.parameters()).detach()
        self.scale = heatmaps.square().mean().sqrt()
        generator = torch.Generator().manual_seed(2)
        self.target = torch.randn(heatmaps.shape, generator=generator, dtype=torch.float64)

    def parameters(self) -> list[Tensor]:
        """A copy of the decoder's parameters."""
        return [parameter.detach().clone().requires_grad_() for parameter in self.decoder.parameters()]

    def run(self, parameters: Sequence[Tensor]) -> Tensor:
        """Heatmaps with these parameters."""
        state = dict(zip(self.names, parameters, strict=True))
        state.update({name: buffer.clone() for name, buffer in self.buffers.items()})
        result: Decoded = functional_call(self.decoder, state, (self.images, CLASSES))
        return result.heatmaps

    def of(self, heatmaps: Tensor) -> Tensor:
        """The loss on heatmaps (N, K', H, W)."""
        return (heatmaps / self.scale - self.target).square().mean()

    def __call__(self, *parameters: Tensor) -> Tensor:
        return self.of(self.run(parameters))


def loss_of(net: nn.Module, composite: str, images: Tensor | None = None, **kwargs: Any) -> Loss:
    decoder = HeatmapDecoder(net, composite, composite_kwargs=kwargs.pop("numbers", PRESETS[composite]), **kwargs)
    return Loss(decoder.train(net.training), example() if images is None else images)


def check(loss: Loss, *, fast: bool = False) -> None:
    """Finite differences by each parameter, or (fast) along one random direction for each parameter tensor."""
    parameters = loss.parameters()
    largest = max(float(g.abs().max()) for g in gradients(loss(*parameters), parameters))
    assert largest > 0.1  # else the absolute tolerance would let everything pass
    assert torch.autograd.gradcheck(loss, parameters, eps=1e-6, atol=1e-7, rtol=1e-6, fast_mode=fast)


def test_every_preset_is_here() -> None:
    assert PRESETS.keys() == COMPOSITES.keys()


@pytest.mark.parametrize("composite", PRESETS)
def test_residual(composite: str) -> None:
    check(loss_of(residual(), composite))


@pytest.mark.parametrize("composite", PRESETS)
def test_tiny(composite: str) -> None:
    check(loss_of(nets.tiny(), composite), fast=True)


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_alpha2_beta1", "epsilon_gamma_box", "guided_backprop"])
def test_batch_statistics(composite: str) -> None:
    net = residual().train()
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    check(loss_of(net, composite))
    check(loss_of(nets.tiny().train(), composite), fast=True)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus_flat", "deconvnet"])
def test_decoder_weights(composite: str) -> None:
    # Untied: the classifier's weights act through gates and denominators only, the decoder's own ones linearly.
    loss = loss_of(residual(), composite, tie_weights=False)
    assert len(loss.names) > len(list(loss.decoder.classifier.parameters()))
    check(loss)


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus"])
def test_transformer(composite: str) -> None:
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    check(loss_of(transformer(), composite, images), fast=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("build", [nets.tiny, residual])
def test_double_backpropagation(build: Callable[[], nn.Module], training: bool) -> None:
    net = build().train(training)
    loss = loss_of(net, "epsilon", numbers={"epsilon": 0.0})
    parameters = loss.parameters()
    found = gradients(loss(*parameters), parameters)
    held = HeldStatistics(net) if training else None
    classifier = held or net
    expected = input_x_gradient(classifier, loss.images, CLASSES, create_graph=True)
    assert torch.allclose(loss.run(parameters), expected, rtol=1e-10, atol=1e-12)
    of = list((held.net if held else net).parameters())
    wanted = gradients(loss.of(expected), of)
    largest = max(float(g.abs().max()) for g in wanted)
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).abs().max()) < 1e-10 * largest
