"""Recomputed decodes: one node of autograd's graph, whatever they hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles import nets
from tw_seg.lrp import HeatmapDecoder

RECOMPUTED = [
    {"chunk_size": 1, "recompute": True},
    {"memory_budget": 1e-9},
    {"chunk_size": 1, "gradient_threshold": 0.0},
]


def images() -> Tensor:
    return torch.randn(3, 3, 17, 19, dtype=torch.float64)


def nodes(*tensors: Tensor) -> set[Any]:
    """The nodes of autograd's graph behind tensors."""
    found: set[Any] = set()
    queue = [t.grad_fn for t in tensors]
    while queue:
        node = queue.pop()
        if node is not None and node not in found:
            found.add(node)
            queue.extend(following for following, _ in node.next_functions)
    return found


@pytest.mark.parametrize("schedule", RECOMPUTED, ids=str)
def test_the_graph_does_not_grow_with_the_classes(schedule: dict[str, Any]) -> None:
    few, many = (
        len(nodes(*HeatmapDecoder(nets.tiny(classes=classes), schedule=schedule)(images())[:2])) for classes in (2, 9)
    )
    assert many <= few + 1  # the maps of the pieces side by side


@pytest.mark.parametrize("schedule", RECOMPUTED, ids=str)
def test_no_second_derivative(schedule: dict[str, Any]) -> None:
    net = nets.tiny()
    loss = HeatmapDecoder(net, schedule=schedule)(images()).heatmaps.square().sum()
    (first,) = torch.autograd.grad(loss, net.fc.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("schedule", RECOMPUTED, ids=str)
def test_gradients_of_images_and_of_some_parameters(schedule: dict[str, Any]) -> None:
    """A parameter that is not trained gets none, one that no decode reads none from it; images get theirs."""
    results = []
    for given in ({}, schedule):
        torch.manual_seed(0)
        net, inputs = nets.tiny(), images().requires_grad_()
        net.conv1.weight.requires_grad_(False)
        HeatmapDecoder(net, schedule=given)(inputs).heatmaps.square().sum().backward()
        assert net.conv1.weight.grad is None and net.fc.bias.grad is None
        results.append([inputs.grad, net.fc.weight.grad])
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


def test_two_losses_on_one_decode() -> None:
    """A second backward pass over the same graph recomputes once more."""
    net, inputs = nets.tiny().eval(), images()
    both = []
    for schedule in ({}, {"chunk_size": 1, "recompute": True}):
        heatmaps = HeatmapDecoder(net, schedule=schedule)(inputs).heatmaps
        weights = [net.conv1.weight, net.fc.weight]
        first = torch.autograd.grad(heatmaps.square().sum(), weights, retain_graph=True)
        both.append([*first, *torch.autograd.grad(heatmaps.sin().sum(), weights)])
    torch.testing.assert_close(both[1], both[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("schedule", [{"chunk_size": 1}, *RECOMPUTED, {"gradient_threshold": 0.0}], ids=str)
def test_gradients_of_projections(schedule: dict[str, Any]) -> None:
    """Of their weights, and of the classifier's through them, whatever is decoded again."""
    results = []
    for given in ({}, schedule):
        torch.manual_seed(0)
        net, inputs = nets.tiny(), images()
        decoder = HeatmapDecoder(net, read_out=["conv2", "pool"], projections=3, schedule=given).double()
        decoded = decoder.project(decoder.record(inputs), samples=torch.tensor([2, 0]))
        loss = sum(one.square().sum() for one in (*decoded.projections, *decoded.readouts))
        loss.backward()
        results.append({name: p.grad for name, p in decoder.named_parameters() if p.grad is not None})
    assert any("projections" in name and grad.abs().max() > 0 for name, grad in results[0].items())
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)
