"""How a decode is cut into pieces: which samples and classes at once, and which pieces are recomputed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tw_seg.lrp.core.backward import Backward

_FRESH_PAGES = 32 * 2**20
"""Bytes from which on the C library maps every block anew (glibc's largest M_MMAP_THRESHOLD).

Touching fresh pages takes longer than the arithmetic: an elementwise product of 44 MB took 17 ms, of 22 MB 0.8 ms.
"""

_AT_LEAST = 4
"""Pairs at once even where they need fresh pages: each piece reads all weights and adds to their gradients.

A step of ResNet-50 with 11 pairs of 512 x 512 px took 16.5 s one at a time, 13.2 s by two, 12.0 s by four, 14.9 s
at once.
"""

_RECOMPUTED_ON_CPU, _RECOMPUTED = _FRESH_PAGES // 2, 128 * 2**20
"""Bytes of the largest coefficient of a piece that is recomputed, there and elsewhere: all that a decode keeps.

On 2 cores, ResNet-50, 15 rather than 31 pairs at once took 1.07 times as long in 0.85 of the memory.
"""

_LIVE = 4
"""Coefficients of the largest size that live at once: both branches of a residual block, one of them in a product."""


@dataclass(frozen=True)
class Piece:
    """Samples and classes that are decoded together, and whether they are recomputed in the backward pass."""

    samples: slice
    classes: slice
    recompute: bool


def cut(samples: int, classes: int, rows: int, kept: float) -> list[Piece]:
    """Cut ``samples`` x ``classes`` into even pieces.

    Args:
        samples: Number of samples S.
        classes: Number of classes K' of each.
        rows: (sample, class) pairs in a piece, at most; 1 at least.
        kept: Pairs whose activations are kept for the backward pass, the first ones; the others are recomputed.

    Example:
        >>> [(p.classes.start, p.classes.stop, p.recompute) for p in cut(2, 5, 4, 4)]
        [(0, 1, False), (1, 3, True), (3, 5, True)]
    """
    pieces = []
    for some in _groups(samples, min(rows, samples)):
        number = some.stop - some.start
        for group in _groups(classes, max(rows // number, 1)):
            kept -= number * (group.stop - group.start)
            pieces.append(Piece(some, group, kept < 0))
    return pieces


def _groups(total: int, size: int) -> list[slice]:
    """As few groups of at most ``size`` as there can be, even but for one."""
    number = -(-total // size)
    ends = [total * (i + 1) // number for i in range(number)]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def largest_row(backward: Backward) -> int:
    """Bytes of the largest coefficient for one pair."""
    images = backward.tape.images.shape[0]
    return max(value.numel() * value.element_size() // images for value in _values(backward).values())


def without_fresh_pages(backward: Backward) -> float:
    """Pairs at once for which the largest coefficient can use the same memory over and over; infinite if any number."""
    if backward.tape.images.device.type != "cpu":
        return float("inf")
    return max(_FRESH_PAGES // (largest_row(backward) + 1), _AT_LEAST)


def where_recomputed(backward: Backward) -> int:
    """Pairs at once in pieces that are recomputed: enough to keep the device busy, however many there are in all."""
    size = _RECOMPUTED_ON_CPU if backward.tape.images.is_cpu else _RECOMPUTED
    return max(size // (largest_row(backward) + 1), 1)


def within(budget: float, graph_row: float, backward: Backward) -> tuple[int, float]:
    """Pairs at once, and pairs that can be kept, within a memory budget.

    Args:
        budget: Bytes.
        graph_row: Bytes that one pair's decode keeps for its backward pass; 0 without a graph.
        backward: The pass.

    Returns:
        Pairs at once: they take at most half of the budget where pairs are recomputed, as what is left keeps
        others from being recomputed; and pairs to keep. At least one at once: a budget is an aim, not a limit.
    """
    one = graph_row + _LIVE * largest_row(backward)
    share = budget / 2 if graph_row else budget
    rows = int(max(min(share // one, without_fresh_pages(backward)), 1))
    return rows, max(budget - rows * one, 0) / graph_row if graph_row else 0


def _values(backward: Backward) -> Mapping[str, Tensor]:
    """Recorded values whose coefficients a decode makes."""
    found = {}
    for call in backward.tape.graph.calls:
        if any(name in backward.wanted for name in call.inputs):
            for name in (call.name, *call.inputs):
                if name in backward.wanted and isinstance(backward.tape.values[name], Tensor):
                    found[name] = backward.tape.values[name]
    return found or {name: backward.tape.values[name] for name in backward.readouts}
