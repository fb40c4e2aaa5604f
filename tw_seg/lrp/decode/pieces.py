"""Decodes a pass as its schedule says: at once, a piece after the other, or in two phases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.decode.propagate import make_empty_heatmaps, propagate
from tw_seg.lrp.decode.recompute import Decode, checkpoint_decode, recompute_decodes
from tw_seg.lrp.decode.schedule import GraphMemory, Piece, Schedule, choose_pairs, cut_pieces, name_budget
from tw_seg.lrp.decode.two_phase import decode_in_two_phases
from tw_seg.lrp.ops.linear import fuse_weights
from tw_seg.lrp.seeds import Seed

DecodeClasses = Callable[[Backward, Tensor], tuple[Tensor, ...]]
"""From a pass over S samples and classes, (K',) for every sample or (K', S), to heatmaps of each read-out."""


def decode_at_once(seed: Seed, backward: Backward, classes: Tensor) -> tuple[Tensor, ...]:
    """Decode all classes of all samples of a pass together."""
    return propagate(backward, seed(backward.value(backward.tape.graph.output), classes))


def decode_as_scheduled(
    seed: Seed, backward: Backward, classes: Tensor, schedule: Schedule, memory: GraphMemory
) -> tuple[Tensor, ...]:
    """Decode classes of a pass within what a schedule allows.

    Args:
        seed: From logits and classes to the coefficients at the logits.
        backward: The pass, over S samples.
        classes: (K',) for every sample or (K', S).
        schedule: What it may take.
        memory: What was measured so far.

    Returns:
        The heatmaps (S, K', h, w) of each read-out.
    """
    if len(classes) == 0 or backward.size == 0:
        return make_empty_heatmaps(backward, len(classes))
    if torch.compiler.is_compiling():
        return _decode_as_scheduled(partial(decode_at_once, seed), backward, classes, schedule, memory)
    with name_budget(schedule):
        return _decode_as_scheduled(partial(decode_at_once, seed), backward, classes, schedule, memory)


def _decode_as_scheduled(
    decode: DecodeClasses, backward: Backward, classes: Tensor, schedule: Schedule, memory: GraphMemory
) -> tuple[Tensor, ...]:
    if torch.compiler.is_compiling() and schedule.chunk_size is None:
        # The compiler plans memory itself, and a loop over pieces would be written out.
        return checkpoint_decode(decode, backward, classes) if schedule.recompute else decode(backward, classes)

    def choose(backward: Backward, classes: Tensor) -> tuple[int, float]:
        measure = partial(memory.measure_pair, backward, decode)
        return choose_pairs(schedule, backward, len(classes), measure)

    def decode_pieces(backward: Backward, classes: Tensor) -> tuple[Tensor, ...]:
        return _decode_pieces(decode, backward, classes, *choose(backward, classes))

    if schedule.gradient_threshold is None or not _is_trained_eagerly():
        return decode_pieces(backward, classes)
    pairs = choose(backward, classes)[0]
    return decode_in_two_phases(
        decode_pieces,
        replace(backward, fused=fuse_weights(backward, pairs)),
        classes if classes.ndim == 2 else classes.unsqueeze(1).expand(-1, backward.size),
        pairs=pairs,
        threshold=schedule.gradient_threshold,
    )


def _is_trained_eagerly() -> bool:
    """Whether autograd records, and no compiler, which knows no backward pass that decodes."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _decode_pieces(
    decode: DecodeClasses, backward: Backward, classes: Tensor, pairs: int, keep: float
) -> tuple[Tensor, ...]:
    """Decode at most ``pairs`` pairs at once, and recompute all but the first ``keep`` in the backward pass."""
    every = backward.size * len(classes)
    if not backward.fused and pairs < every:
        # Of a piece that is recomputed nothing stays, so a factor on its coefficients costs no memory.
        largest = every if keep == math.inf else max(pairs, int(keep))
        backward = replace(backward, fused=fuse_weights(backward, largest))
    pieces = cut_pieces(backward.size, len(classes), pairs, keep)
    recomputed = [piece for piece in pieces if piece.recompute and _is_trained_eagerly()]
    of_samples: dict[int, Backward] = {}  # the classes of the same samples share their rows
    maps = []
    for piece in pieces[: len(pieces) - len(recomputed)]:
        first = piece.samples.start
        if first not in of_samples:
            of_samples[first] = _select_samples(backward, piece.samples)
        decode_piece = partial(checkpoint_decode, decode) if piece.recompute else decode
        maps.append(decode_piece(of_samples[first], _select_classes(classes, piece)))

    def decode_alone(piece: Piece) -> Decode:
        return lambda backward: decode(_select_samples(backward, piece.samples), _select_classes(classes, piece))

    maps += recompute_decodes([decode_alone(piece) for piece in recomputed], backward)
    joined: dict[int, list[tuple[Tensor, ...]]] = {}
    for piece, found in zip(pieces, maps, strict=True):
        joined.setdefault(piece.samples.start, []).append(found)
    return _join_maps([_join_maps(of_some, 1) for of_some in joined.values()], 0)


def _select_samples(backward: Backward, samples: slice) -> Backward:
    """The pass over some of its samples."""
    if samples.stop - samples.start == backward.size:
        return backward
    images = backward.samples
    if images is None:
        images = torch.arange(backward.size, device=backward.tape.images.device)
    return backward.for_samples(images[samples])


def _select_classes(classes: Tensor, piece: Piece) -> Tensor:
    """The classes of a piece: (K',) for every sample or (K', S)."""
    chosen = classes[piece.classes]
    return chosen if chosen.ndim == 1 else chosen[:, piece.samples]


def _join_maps(parts: Sequence[tuple[Tensor, ...]], dim: int) -> tuple[Tensor, ...]:
    """The maps of each read-out side by side."""
    return tuple(torch.cat(maps, dim) if len(maps) > 1 else maps[0] for maps in zip(*parts, strict=True))
