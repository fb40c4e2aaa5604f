"""Training in two phases: decode without a graph, then recompute only the pairs whose loss gradient matters.

Phase one decodes all (sample, class) pairs and keeps nothing but the heatmaps. When the loss's gradient G arrives at
them, phase two decodes the pairs whose gradient exceeds a threshold once more, now with a graph, a piece at a time, and
hands their gradients on. So memory does not grow with the number of classes, and pairs without a gradient (samples
whose pixels are all ignored, classes that the loss does not ask for) cost one decode in place of three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.decode.recompute import Decode, twice


def two_phase(
    decode: Callable[[Backward, Tensor], tuple[Tensor, ...]],
    backward: Backward,
    classes: Tensor,
    *,
    rows: int,
    skip: float,
) -> tuple[Tensor, ...]:
    """Heatmaps whose backward pass decodes again what it needs.

    Args:
        decode: ``decode(backward, classes)``: heatmaps (S, K', h, w) of each read-out for classes (K', S).
        backward: The pass, over S samples.
        classes: Classes (K', S) of each sample.
        rows: Pairs that are decoded at once in the backward pass.
        skip: Pairs whose largest absolute gradient is at most ``skip`` times the largest of all pairs, at every
            read-out, get no gradient. 0 is exact: it leaves out gradients that are zero.

    Returns:
        Heatmaps (S, K', h, w) of each read-out.
    """

    def pairs(backward: Backward, samples: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        images = samples if backward.samples is None else backward.samples[samples]
        return decode(backward.of(images), classes[columns, samples].unsqueeze(0))

    def second(grads: Sequence[Tensor]) -> Iterator[tuple[Decode, list[Tensor]]]:
        samples, columns = that_matter(grads, skip).nonzero(as_tuple=True)  # the host waits for the device
        for start in range(0, len(samples), rows):
            row, column = samples[start : start + rows], columns[start : start + rows]
            yield partial(pairs, samples=row, columns=column), [grad[row, column].unsqueeze(1) for grad in grads]

    return twice(lambda some: decode(some, classes), second, backward)


def that_matter(grads: Sequence[Tensor], skip: float) -> Tensor:
    """The pairs whose gradient exceeds the threshold at some read-out, or is no number; bool (S, K')."""
    peaks = torch.stack([torch.maximum(grad.amax((2, 3)), -grad.amin((2, 3))) for grad in grads])
    return ((peaks > skip * peaks.amax((1, 2), keepdim=True)) | peaks.isnan()).any(0)
