"""What a threshold of the two-phase mode leaves out of the gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tw_seg.lrp.decode.two_phase import select_pairs
from tw_seg.lrp.decoder import HeatmapDecoder


@dataclass(frozen=True)
class ThresholdError:
    """What a threshold of the two-phase mode leaves out.

    Attributes:
        threshold: The threshold.
        pairs: Share of the (sample, class) pairs that are decoded again, 0 to 1.
        error: Length of the difference of all parameter gradients to the exact ones, relative to these.
    """

    threshold: float
    pairs: float
    error: float


def measure_gradient_threshold(
    decoder: HeatmapDecoder,
    images: Tensor,
    loss: Callable[[tuple[Tensor, ...]], Tensor],
    thresholds: Sequence[float],
    *,
    samples: Tensor | None = None,
) -> list[ThresholdError]:
    """Measure the gradient error of thresholds of the two-phase mode (``Schedule.gradient_threshold``) on a batch.

    Args:
        decoder: The decoder; its own threshold does not matter.
        images: Shape (N, C, H, W).
        loss: From the heatmaps (S, K, h, w) of each read-out to a scalar.
        thresholds: The thresholds.
        samples: Rows of the images to decode, int64 (S,); ``None`` for all.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double()
        >>> loss = lambda readouts: readouts[0][:, 1].square().sum()
        >>> images = torch.rand(1, 3, 6, 6).double()
        >>> [row] = measure_gradient_threshold(HeatmapDecoder(net), images, loss, [0.0])
        >>> row.pairs, row.error < 1e-14
        (0.5, True)
    """
    parameters = [p for p in decoder.parameters() if p.requires_grad]

    def gradients(threshold: float | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        one = copy.copy(decoder)
        one.schedule = replace(decoder.schedule, recompute=False, gradient_threshold=threshold)
        readouts = one(images, None, samples).readouts
        found = torch.autograd.grad(loss(readouts), [*parameters, *readouts], allow_unused=True)
        at_parameters = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=False)]
        at_heatmaps = [
            torch.zeros_like(r) if g is None else g for r, g in zip(readouts, found[-len(readouts) :], strict=True)
        ]
        return torch.cat([g.flatten() for g in at_parameters]), tuple(at_heatmaps)

    exact, at_heatmaps = gradients(None)
    return [
        ThresholdError(
            threshold,
            float(select_pairs(at_heatmaps, threshold).double().mean()),
            float((gradients(threshold)[0] - exact).norm() / exact.norm()),
        )
        for threshold in thresholds
    ]
