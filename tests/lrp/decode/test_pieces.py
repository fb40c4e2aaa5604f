"""However a decode is cut, values and gradients are the same."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.lrp.decoding import assert_equal, loss_of, pictures
from tests.oracles import nets
from tests.oracles.gradients import gradients
from tw_seg.lrp import Decoded, HeatmapDecoder

PLACES = ["input", "relu"]
WAYS: list[dict[str, Any]] = [
    {"chunk_size": 1},
    {"chunk_size": 2},
    {"chunk_size": 100},
    {"recompute": True},
    {"chunk_size": 1, "recompute": True},
    {"chunk_size": 2, "recompute": True},
    {"memory_budget": 1e-9},  # a pair at a time, all recomputed
    {"memory_budget": 1e-4},  # some are kept
    {"memory_budget": 1.0},
    {"gradient_threshold": 0.0},
    {"gradient_threshold": 0.0, "chunk_size": 1},
    {"gradient_threshold": 0.0, "memory_budget": 1e-4},
]
"""Ways to decode that change memory and time, not results."""


CORNERS = [WAYS[i] for i in (1, 5, 7, 11)]
"""Chunks, recomputed chunks, some of them recomputed, and the same in two phases."""

CASES = [
    *(("epsilon", True, way) for way in WAYS),
    *(("epsilon", False, way) for way in CORNERS),
    *(("epsilon_flat", True, way) for way in CORNERS),
    *(("epsilon_plus", tie_weights, way) for tie_weights in (True, False) for way in CORNERS),
]


def decode(composite: str, tie_weights: bool, schedule: dict[str, Any]) -> list[tuple[Decoded, list[Tensor]]]:
    """All samples and, as in training, only those with a mask; two read-outs; batch statistics with gradients."""
    net = nets.tiny(classes=5)
    decoder = HeatmapDecoder(net, composite, tie_weights=tie_weights, read_out=PLACES, schedule=schedule)
    found = []
    torch.manual_seed(0)
    for samples, training in ((None, False), (torch.tensor([2, 0]), True)):
        decoded = decoder.train(training)(pictures(), None, samples)
        loss = loss_of(decoded.heatmaps) + loss_of(decoded.readouts[1]) + decoded.logits.sum()
        found.append((decoded, gradients(loss, list(decoder.parameters()))))
    return found


decode_whole = cache(partial(decode, schedule={"chunk_size": 5}))


@pytest.mark.parametrize(("composite", "tie_weights", "way"), CASES, ids=str)
def test_how_it_is_cut_changes_nothing(composite: str, tie_weights: bool, way: dict[str, Any]) -> None:
    pairs = zip(decode(composite, tie_weights, way), decode_whole(composite, tie_weights), strict=True)
    for (part, found), (whole, expected) in pairs:
        assert_equal(part, whole)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("way", [{}, *WAYS], ids=str)
def test_pairs_are_a_slice(way: dict[str, Any]) -> None:
    """As many classes for each sample as it needs, in any order, also twice; parameter gradients are theirs alone."""
    images, samples, classes = pictures(), torch.tensor([2, 0, 2, 2, 0]), torch.tensor([4, 1, 0, 4, 3])
    net = nets.tiny(classes=5)
    every, decoder = HeatmapDecoder(net), HeatmapDecoder(net, schedule=way)
    pairs = decoder.decode_pairs(decoder.record(images), samples, classes)
    expected = every(images).heatmaps[samples, classes].unsqueeze(1)
    torch.testing.assert_close(pairs.heatmaps, expected, rtol=1e-12, atol=1e-14)
    found, wanted = (gradients(loss_of(maps), list(net.parameters())) for maps in (pairs.heatmaps, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_recompute_in_training_mode_with_dropout() -> None:
    images = pictures()
    results = []
    for recompute in (False, True):
        net = nets.tiny(dropout=0.5).train()
        torch.manual_seed(2)
        decoded = HeatmapDecoder(net, schedule={"chunk_size": 1, "recompute": recompute})(images)
        results.append([*gradients(loss_of(decoded.heatmaps), list(net.parameters())), *net.buffers()])
    torch.testing.assert_close(results[1], results[0])


def test_read_outs_in_chunks() -> None:
    net, images = nets.tiny(), pictures()
    whole = HeatmapDecoder(net, read_out=["conv1", "input"])(images)
    part = HeatmapDecoder(net, read_out=["conv1", "input"], schedule={"chunk_size": 1, "recompute": True})(images)
    torch.testing.assert_close(part.readouts, whole.readouts)
