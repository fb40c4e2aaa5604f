"""What a decode returns: relevance at an activation, summed over channels to maps for each sample and class."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Channels


class Decoded(NamedTuple):
    """What a decode returns.

    Attributes:
        logits: Image-level class scores of all images, shape (N, K).
        heatmaps: Relevance at the first read-out, summed over its channels, signed, shape (S, K', h, w).
        readouts: The heatmaps of every read-out, in the order asked for; ``readouts[0] is heatmaps``.
    """

    logits: Tensor
    heatmaps: Tensor
    readouts: tuple[Tensor, ...]


class Projected(NamedTuple):
    """What a decode returns that reads projections too.

    Attributes:
        logits: Image-level class scores of all images, shape (N, K).
        readouts: The heatmaps (S, K', h, w) of every read-out, in the order asked for.
        projections: M weighted sums over the channels of every read-out, shape (S, K', M, h, w).
    """

    logits: Tensor
    readouts: tuple[Tensor, ...]
    projections: tuple[Tensor, ...]


def sum_channels(backward: Backward, name: str, relevance: Tensor) -> Tensor:
    """Sum relevance over channels to a heatmap, in float32 for half precision.

    Args:
        backward: The pass.
        name: The call at whose output the relevance is.
        relevance: Shape of a coefficient there, (K*S, ...).

    Returns:
        Shape (S, K, *spatial). Tokens (N, L, C) become the grid of the patches, without class tokens; a pooled
        activation (N, C) is a map of one cell.

    Raises:
        InputError: If the activation is no map.
    """
    _check_is_map(backward, name)
    half = relevance.dtype in (torch.float16, torch.bfloat16)
    maps = relevance.sum(find_channel_axis(backward, name), dtype=torch.float32 if half else None)
    maps = _shape_maps(backward, name, maps)
    rows = backward.value(name).shape[0]
    return maps.unflatten(0, (-1, rows)).transpose(0, 1) if rows else maps.reshape(0, 1, *maps.shape[1:])


def project_channels(backward: Backward, name: str, relevance: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of relevance over channels.

    Args:
        backward: The pass.
        name: The call at whose output the relevance is.
        relevance: Shape of a coefficient there, (K*S, ...).
        weight: Shape (M, C).

    Returns:
        Shape (S, K, M, *spatial), as `sum_channels` has it.

    Raises:
        InputError: If the activation is no map.
    """
    _check_is_map(backward, name)
    axis, rows, count = find_channel_axis(backward, name), backward.value(name).shape[0], len(weight)
    sums = F.linear(relevance.movedim(axis, -1), weight.to(relevance.dtype)).movedim(-1, 1).flatten(0, 1)
    maps = _shape_maps(backward, name, sums)
    if not rows:
        return maps.reshape(0, 1, count, *maps.shape[1:])
    apart: Tensor = maps.unflatten(0, (-1, rows, count))
    return apart.transpose(0, 1)


def _check_is_map(backward: Backward, name: str) -> None:
    value = backward.tape.values[name]
    if backward.axis(name) != 0 or backward.per_image(name) != 1 or value.ndim < 2:
        raise InputError(
            f"read_out: the activation of {name!r} has the shape {tuple(value.shape)}, which is no map of the image "
            "(windows, or heads of attention): read before or after it"
        )


def _shape_maps(backward: Backward, name: str, maps: Tensor) -> Tensor:
    """Bring maps (R, ...) of an activation that have no channels any more into the shape (R, *spatial)."""
    value = backward.tape.values[name]
    images = backward.tape.images.ndim
    if value.ndim == 2:
        maps = maps.reshape(-1, *[1] * (images - 2))
    elif value.ndim == 3 and images == 4:
        height, width = _find_grid(backward, name, maps.shape[1])
        maps = maps[:, maps.shape[1] - height * width :].unflatten(1, (height, width))
    elif value.ndim != images:
        raise InputError(f"read_out: {name!r} has the shape {tuple(value.shape)}, which is no map: read elsewhere")
    return maps


def find_channel_axis(backward: Backward, name: str) -> int:
    """The axis of an activation that holds its channels, by the nearest call before it that says so."""
    call = backward.calls.get(name)
    ndim = int(backward.tape.values[name].ndim)
    if call is None or ndim == 2 or call.op.channels is Channels.FIRST:
        return 1
    if call.op.channels is Channels.LAST:
        return ndim - 1
    source = call.inputs[0]
    before = find_channel_axis(backward, source) if isinstance(backward.tape.values[source], Tensor) else 1
    if call.op.moved is not None:
        return call.op.moved(backward.tape, call, before)
    value = backward.tape.values[source]
    if isinstance(value, Tensor) and value.ndim != ndim:
        # Space was flattened or unfolded: the channels stay at their end.
        return ndim - 1 if before == value.ndim - 1 else 1
    return before


def _find_grid(backward: Backward, name: str, tokens: int) -> tuple[int, int]:
    """Height and width of the patches of ``tokens`` tokens: those of the map before them that fits best.

    The last one with the fewest tokens left over: attention may look at a smaller map in between. A map of one row
    comes after all others: so looks attention of a single head.
    """
    names = [call.name for call in backward.tape.graph.calls if call.name in backward.tape.axes]
    found: list[tuple[int, int]] = []
    for earlier in reversed(names[: names.index(name)]):
        value = backward.tape.values[earlier]
        if (
            isinstance(value, Tensor)
            and value.ndim == 4
            and backward.axis(earlier) == 0
            and backward.per_image(earlier) == 1
        ):
            height, width = (int(value.shape[i]) for i in (1, 2, 3) if i != find_channel_axis(backward, earlier))
            if 0 <= tokens - height * width <= _PREFIX:
                found.append((height, width))
    if not found:
        raise InputError(
            f"read_out: the {tokens} tokens of {name!r} fit no grid of patches before them: read elsewhere"
        )
    return min(found, key=lambda grid: (min(grid) == 1, tokens - grid[0] * grid[1]))


_PREFIX = 16
"""At most so many tokens before the patches (class, distillation, registers)."""
