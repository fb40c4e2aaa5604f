"""The second phase decodes the pairs whose gradient matters, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.oracles import nets
from tests.oracles.gradients import gradients
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.decode import pieces as module


@pytest.fixture
def decoded_pairs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pairs of each propagation."""
    counts: list[int] = []
    propagate = module.propagate

    def count(backward: Any, seed: Tensor, *rest: Any) -> Any:
        counts.append(len(seed))
        return propagate(backward, seed, *rest)

    monkeypatch.setattr(module, "propagate", count)
    return counts


def images() -> Tensor:
    return torch.randn(3, 3, 17, 19, dtype=torch.float64)


def test_pairs_without_a_gradient_are_not_decoded_again(decoded_pairs: list[int]) -> None:
    decoder = HeatmapDecoder(nets.tiny(classes=4), schedule={"gradient_threshold": 0.0})
    heatmaps = decoder(images()).heatmaps
    assert decoded_pairs == [12]
    heatmaps[[0, 2, 2], [3, 1, 2]].square().sum().backward()
    assert decoded_pairs == [12, 3]


def test_no_gradient_at_all(decoded_pairs: list[int]) -> None:
    decoder = HeatmapDecoder(nets.tiny(classes=4), schedule={"gradient_threshold": 0.0})
    (decoder(images()).heatmaps * 0).sum().backward()
    assert decoded_pairs == [12]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_threshold_is_relative(scale: float, decoded_pairs: list[int]) -> None:
    """As mixed precision scales the loss; a pair is left out when no read-out needs it."""
    decoder = HeatmapDecoder(nets.tiny(classes=4), read_out=["input", "relu"], schedule={"gradient_threshold": 0.1})
    _, at_input, (_, deeper) = decoder(images())
    weights = torch.tensor([1.0, 0.5, 0.09, 0.05]).double()
    (at_input[0].sum((1, 2)) @ weights * scale + deeper[1, 3].sum() * 1e-6 * scale).backward()
    assert decoded_pairs[1:] == [3]  # 1 and 0.5 of the first image, not 0.09 and less; the only one of the second


def test_gradients_that_are_no_numbers_are_not_hidden(decoded_pairs: list[int]) -> None:
    decoder = HeatmapDecoder(nets.tiny(classes=4), schedule={"gradient_threshold": 0.0})
    (decoder(images()).heatmaps[0, 0] * torch.nan).sum().backward()
    assert decoded_pairs == [12, 1]
    assert decoder.classifier.conv1.weight.grad.isnan().any()


def test_without_a_graph_it_is_one_decode(decoded_pairs: list[int]) -> None:
    decoder = HeatmapDecoder(nets.tiny(classes=4), schedule={"gradient_threshold": 0.0})
    with torch.no_grad():
        assert not decoder(images()).heatmaps.requires_grad
    assert decoded_pairs == [12]


def test_autocast_is_the_same_in_both_phases() -> None:
    """bfloat16 rounds these weights to 1 and -1, whose sums are exact: in any order, so on any processor."""
    inputs = torch.tensor([[[[1.0, 2.0], [3.0, 1.0]]], [[[2.0, 0.0], [1.0, 1.0]]]])
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2, bias=False))
    with torch.no_grad():
        for weight in net.parameters():
            signs = torch.tensor([1.0, -1.0]).repeat(weight.numel() // 2)
            weight.copy_(((1 + 2**-10) * signs).view_as(weight))
    results = []
    for schedule, enabled in (({}, True), ({"gradient_threshold": 0.0}, True), ({}, False)):
        decoder = HeatmapDecoder(net, schedule=schedule)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            heatmaps = decoder(inputs).heatmaps
        results.append(gradients(heatmaps.square().sum(), list(net.parameters())))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)
    assert all((other - one).norm() > 1e-3 * one.norm() for one, other in zip(results[0], results[2], strict=True))


def test_a_compiled_step_decodes_all_pairs_once() -> None:
    """A compiler knows no backward pass that decodes: gradients are exact, whatever the threshold."""
    torch.compiler.reset()
    inputs, steps = images(), []
    for schedule in ({"chunk_size": 2, "gradient_threshold": 0.9}, {}):
        net = nets.tiny()
        decoder = HeatmapDecoder(net, schedule=schedule)
        step = torch.compile(decoder, fullgraph=True, backend="eager") if schedule else decoder
        steps.append(gradients(step(inputs).heatmaps.square().sum(), list(net.parameters())))
    torch.testing.assert_close(*steps, rtol=1e-10, atol=1e-12)
