"""How a decode is cut: nothing twice, nothing left out, within what was allowed."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.oracles import nets
from tw_seg.errors import InputError
from tw_seg.lrp import HeatmapDecoder, Schedule
from tw_seg.lrp.decode.schedule import (
    GraphMemory,
    count_pairs_in_reused_memory,
    create_schedule,
    cut_pieces,
    fit_budget,
    measure_largest_coefficient,
)

sizes = st.integers(1, 30)


@given(sizes, sizes, st.integers(1, 500), st.floats(0, 1000))
def test_every_pair_once_and_never_too_many(samples: int, classes: int, pairs: int, keep: float) -> None:
    seen = torch.zeros(samples, classes)
    held = 0
    for piece in cut_pieces(samples, classes, pairs, keep):
        part = seen[piece.samples, piece.classes]
        assert 0 < part.numel() <= pairs
        part += 1
        held += 0 if piece.recompute else part.numel()
    assert (seen == 1).all()
    assert held <= keep


@given(sizes, sizes)
def test_one_piece_where_all_fits(samples: int, classes: int) -> None:
    (piece,) = cut_pieces(samples, classes, samples * classes, float("inf"))
    assert not piece.recompute


def prepare(size: int, samples: int = 2) -> Any:
    decoder = HeatmapDecoder(nets.tiny(classes=3))
    return decoder.prepare(decoder.record(torch.zeros(samples, 3, size, size, dtype=torch.float64)))


def test_the_largest_coefficient() -> None:
    assert (
        measure_largest_coefficient(prepare(64)) == 3 * 64 * 64 * 8
    )  # at the images, in double precision; behind conv1 4 x 32 x 32


def test_no_coefficient_needs_fresh_pages() -> None:
    backward = prepare(64)
    pairs = count_pairs_in_reused_memory(backward)
    assert (
        pairs * measure_largest_coefficient(backward)
        < 32 * 2**20
        <= (pairs + 1) * (measure_largest_coefficient(backward) + 1)
    )


def test_large_images_are_not_decoded_one_by_one() -> None:
    backward = prepare(1024, 1)
    assert 2 * measure_largest_coefficient(backward) > 32 * 2**20 and count_pairs_in_reused_memory(backward) >= 4


@given(st.floats(1e3, 1e9), st.floats(1e3, 1e7))
def test_a_budget_is_kept(budget: float, graph_pair: float) -> None:
    backward = prepare(32, 1)
    pairs, kept = fit_budget(budget, graph_pair, backward)
    one = graph_pair + 4 * measure_largest_coefficient(backward)
    assert pairs == 1 or pairs * one + kept * graph_pair <= budget * (1 + 1e-9)
    assert pairs >= 1 and kept >= 0


@pytest.mark.parametrize(
    ("schedule", "named"),
    [
        *(
            ({"chunk_size": value}, f"chunk_size must be a whole number of classes, at least 1, .* got {value!r}")
            for value in (0, "3", True, 2.0)
        ),
        *(
            ({"recompute": value}, f"recompute must be True or False, got {value!r}")
            for value in ("false", "no", 1, None)
        ),
        ({"memory_budget": True}, "memory_budget must be a number of GiB > 0, .* got True"),
        ({"gradient_threshold": False}, "gradient_threshold must be within 0..1, .* got False"),
        ({"gradient_threshold": "0"}, "gradient_threshold must be within 0..1, .* got '0'"),
        ({"memory_budget": 0.0}, "memory_budget must be a number of GiB > 0, .* got 0.0 and chunk_size=None"),
        ({"memory_budget": "1"}, "memory_budget must be a number of GiB > 0, .* got '1'"),
        ({"memory_budget": 1.0, "chunk_size": 2}, "chunk_size be left out, got 1.0 and chunk_size=2"),
        ({"gradient_threshold": -0.1}, "gradient_threshold must be within 0..1, .* got -0.1"),
        ({"gradient_threshold": 1.0}, "gradient_threshold must be within 0..1, .* got 1.0"),
        ({"gradient_threshold": 0.0, "recompute": True}, "recompute be left out as it recomputes anyway"),
        ({"skip": 0.0, "recompute": True}, "schedule must hold no other names than chunk_size, .* got 'skip'"),
        (4, "schedule must hold no other names than chunk_size, .* got 4"),
    ],
)
def test_numbers_that_do_not_fit(schedule: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        create_schedule(schedule)


def test_a_schedule_is_given_as_such_by_names_or_not_at_all() -> None:
    assert create_schedule({"memory_budget": 0.5}) == Schedule(memory_budget=0.5)
    assert create_schedule(Schedule(chunk_size=2)) == Schedule(chunk_size=2)
    assert create_schedule(None) == create_schedule({}) == Schedule()
    assert HeatmapDecoder(nets.tiny(), schedule={"recompute": True}).schedule == Schedule(recompute=True)


def test_memory_of_a_pair_is_measured_once() -> None:
    """And again where other parameters are trained, which changes what autograd keeps, and by a copy."""
    calls: list[int] = []

    def decode(backward: Any, classes: Tensor) -> Tensor:
        calls.append(len(classes))
        weight = backward.tape.classifier.fc.weight
        return (weight * classes.to(weight.dtype).sum()).exp() if len(classes) > 1 else weight + 1

    backward, memory = prepare(32, 1), GraphMemory()
    kept = [memory.measure_pair(backward, decode) for _ in range(2)]
    assert kept[0] == kept[1] > backward.tape.classifier.fc.weight.nbytes - 1 and calls == [1, 2]
    backward.tape.classifier.requires_grad_(False)
    assert memory.measure_pair(backward, decode) == 1 and calls == [1, 2, 1, 2]
    for copied in (copy.copy(memory), copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        calls.clear()
        assert copied.measure_pair(backward, decode) == 1 and calls == [1, 2]
    calls.clear()
    assert memory.measure_pair(backward, decode) == 1 and calls == []


@contextmanager
def limit_memory(more: int) -> Iterator[None]:
    """Let the process take so many bytes more than it has."""
    import resource

    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def make_wide() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
    return nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 100))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
@pytest.mark.parametrize(
    ("schedule", "remedy"),
    [
        ({"memory_budget": 100.0}, "memory_budget=100.0 is more GiB than there are"),
        (None, "give .* a memory_budget in GiB"),
    ],
)
def test_a_decode_without_memory_names_the_budget(schedule, remedy):
    """400 pairs keep 4 MB each in every layer, and the process may take 300 MB more than it has."""
    decoder = HeatmapDecoder(make_wide(), schedule=schedule)
    images = torch.rand(4, 3, 256, 256)
    decoder(images[:, :, :32, :32], classes=[0])
    with limit_memory(300 * 2**20):
        with pytest.raises(RuntimeError, match=f"can't allocate memory.*\n?A decode ran out of memory: {remedy}"):
            decoder(images)
    decoder(images, classes=[0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
def test_a_second_decode_without_memory_names_the_budget():
    """In the backward pass, where what 400 pairs keep at once is decoded again with a graph."""
    decoder = HeatmapDecoder(make_wide(), schedule={"chunk_size": 100, "recompute": True})
    images = torch.rand(4, 3, 64, 64)
    decoder(images[:, :, :32, :32], classes=[0]).heatmaps.sum().backward()
    heatmaps = decoder(images).heatmaps
    remedy = r"A decode ran out of memory: give .* a memory_budget in GiB.*, or a smaller one"
    with limit_memory(64 * 2**20), pytest.raises(RuntimeError, match=f"can't allocate memory.*\n?{remedy}"):
        heatmaps.sum().backward()
    decoder(images).heatmaps.sum().backward()
