"""How a decode is cut: nothing twice, nothing left out, within what was allowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import nets
from tw_seg.errors import InputError
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.decode.schedule import cut, largest_row, within, without_fresh_pages

sizes = st.integers(1, 30)


@given(sizes, sizes, st.integers(1, 500), st.floats(0, 1000))
def test_every_pair_once_and_never_too_many(samples: int, classes: int, rows: int, kept: float) -> None:
    seen = torch.zeros(samples, classes)
    held = 0
    for piece in cut(samples, classes, rows, kept):
        part = seen[piece.samples, piece.classes]
        assert 0 < part.numel() <= rows
        part += 1
        held += 0 if piece.recompute else part.numel()
    assert (seen == 1).all()
    assert held <= kept


@given(sizes, sizes)
def test_one_piece_where_all_fits(samples: int, classes: int) -> None:
    (piece,) = cut(samples, classes, samples * classes, float("inf"))
    assert not piece.recompute


def run_of(size: int, samples: int = 2) -> Any:
    decoder = HeatmapDecoder(nets.tiny(classes=3))
    return decoder.prepare(decoder.record(torch.zeros(samples, 3, size, size, dtype=torch.float64)))


def test_the_largest_coefficient() -> None:
    assert largest_row(run_of(64)) == 3 * 64 * 64 * 8  # at the images, in double precision; behind conv1 4 x 32 x 32


def test_no_coefficient_needs_fresh_pages() -> None:
    run = run_of(64)
    rows = without_fresh_pages(run)
    assert rows * largest_row(run) < 32 * 2**20 <= (rows + 1) * (largest_row(run) + 1)


def test_large_images_are_not_decoded_one_by_one() -> None:
    run = run_of(1024, 1)
    assert 2 * largest_row(run) > 32 * 2**20 and without_fresh_pages(run) >= 4


@given(st.floats(1e3, 1e9), st.floats(1e3, 1e7))
def test_a_budget_is_kept(budget: float, graph_row: float) -> None:
    run = run_of(32, 1)
    rows, kept = within(budget, graph_row, run)
    one = graph_row + 4 * largest_row(run)
    assert rows == 1 or rows * one + kept * graph_row <= budget * (1 + 1e-9)
    assert rows >= 1 and kept >= 0


@pytest.mark.parametrize("arguments", [{"memory_budget": 0.0}, {"memory_budget": 1.0, "chunk_size": 2}], ids=str)
def test_arguments_that_do_not_fit(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="memory_budget must be a number of GiB"):
        HeatmapDecoder(nets.tiny(), **arguments)
