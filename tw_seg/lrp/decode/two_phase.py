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
from tw_seg.lrp.decode.recompute import Decode, decode_twice


def decode_in_two_phases(
    decode: Callable[[Backward, Tensor], tuple[Tensor, ...]],
    backward: Backward,
    classes: Tensor,
    *,
    pairs: int,
    threshold: float,
) -> tuple[Tensor, ...]:
    """Decode all pairs without a graph, and in the backward pass those again that the loss's gradient asks for.

    Args:
        decode: ``decode(backward, classes)``: heatmaps (S, K', h, w) of each read-out for classes (K', S).
        backward: The pass, over S samples.
        classes: Classes (K', S) of each sample.
        pairs: Pairs that are decoded at once in the backward pass.
        threshold: Pairs whose largest absolute gradient is at most this share of the largest of all pairs, at every
            read-out, get no gradient. 0 is exact: it leaves out gradients that are zero.

    Returns:
        Heatmaps (S, K', h, w) of each read-out.
    """

    def decode_pairs(backward: Backward, samples: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        images = samples if backward.samples is None else backward.samples[samples]
        return decode(backward.for_samples(images), classes[columns, samples].unsqueeze(0))

    def plan_second(grads: Sequence[Tensor]) -> Iterator[tuple[Decode, list[Tensor]]]:
        # The host waits for the device here.
        samples, columns = select_pairs(grads, threshold).nonzero(as_tuple=True)
        for start in range(0, len(samples), pairs):
            row, column = samples[start : start + pairs], columns[start : start + pairs]
            yield partial(decode_pairs, samples=row, columns=column), [grad[row, column].unsqueeze(1) for grad in grads]

    return decode_twice(lambda backward: decode(backward, classes), plan_second, backward)


def select_pairs(grads: Sequence[Tensor], threshold: float) -> Tensor:
    """The pairs whose gradient exceeds the threshold at some read-out, or is no number; bool (S, K')."""
    flat = [grad.flatten(2) for grad in grads]
    peaks = torch.stack([torch.maximum(grad.amax(2), -grad.amin(2)) for grad in flat])
    return ((peaks > threshold * peaks.amax((1, 2), keepdim=True)) | peaks.isnan()).any(0)
