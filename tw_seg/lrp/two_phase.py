"""Training in two phases: decode without a graph, then recompute only the pairs whose loss gradient matters.

Phase one decodes all (sample, class) pairs and keeps nothing but the heatmaps. When the loss's gradient G arrives at
them, phase two decodes the pairs whose gradient exceeds a threshold once more, now with a graph, a piece at a time, and
hands their gradients on. So memory does not grow with the number of classes, and pairs without a gradient (samples
whose pixels are all ignored, classes that the loss does not ask for) cost one decode in place of three.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tw_seg.lrp.backward import Pass
from tw_seg.lrp.graph import map_leaves

Decode = Callable[[Pass, Tensor], tuple[Tensor, ...]]
"""``decode(run, classes)``: heatmaps (S, K', h, w) of each read-out for classes (K', S)."""


def two_phase(
    decode: Decode, run: Pass, classes: Tensor, *, rows: int, skip: float, parameters: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Heatmaps whose backward pass decodes again what it needs.

    Args:
        decode: Decodes a pass; called without a graph first, with one in the backward pass.
        run: The pass, over S samples.
        classes: Classes (K', S) of each sample.
        rows: Pairs that are decoded at once in the backward pass.
        skip: Pairs whose largest absolute gradient is at most ``skip`` times the largest of all pairs, at every
            read-out, get no gradient. 0 is exact: it leaves out gradients that are zero.
        parameters: The parameters that a decode may read.

    Returns:
        Heatmaps (S, K', h, w) of each read-out.
    """
    tape = run.tape
    held = [[*parameters], dict(run.weights), dict(run.fused), tape.values, tape.saved, tape.weights]
    inputs: dict[Tensor, None] = {}  # each once
    map_leaves(held, lambda x: inputs.setdefault(x) if _trained(x) else None)
    found: tuple[Tensor, ...] = _TwoPhase.apply(_Second(decode, run, classes, rows, skip), *inputs)
    return found


def that_matter(grads: Sequence[Tensor], skip: float) -> Tensor:
    """The pairs whose gradient exceeds the threshold at some read-out, or is no number; bool (S, K')."""
    peaks = torch.stack([grad.abs().amax((2, 3)) for grad in grads])
    return ((peaks > skip * peaks.amax((1, 2), keepdim=True)) | peaks.isnan()).any(0)


def _trained(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


class _Second:
    """The second phase: what the backward pass needs to know."""

    def __init__(self, decode: Decode, run: Pass, classes: Tensor, rows: int, skip: float) -> None:
        self.decode, self.run, self.classes, self.rows, self.skip = decode, run, classes, rows, skip
        device = classes.device.type
        self.autocast: dict[str, Any] = {
            "device_type": device,
            "enabled": torch.is_autocast_enabled(device),
            "dtype": torch.get_autocast_dtype(device),
        }

    def gradients(self, inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients at ``inputs`` from those at the heatmaps."""
        leaves = {value: value.detach().requires_grad_() for value in inputs}
        run = self._on(leaves)
        samples, columns = that_matter(grads, self.skip).nonzero(as_tuple=True)  # the host waits for the device
        for start in range(0, len(samples), self.rows):
            row, column = samples[start : start + self.rows], columns[start : start + self.rows]
            chosen = row if run.samples is None else run.samples[row]
            with torch.enable_grad(), torch.autocast(**self.autocast):
                maps = self.decode(run.of(chosen), self.classes[column, row].unsqueeze(0))
            wanted = [(m, g[row, column].unsqueeze(1)) for m, g in zip(maps, grads, strict=True) if m.requires_grad]
            if wanted:
                torch.autograd.backward([m for m, _ in wanted], [g for _, g in wanted])
        return [leaves[value].grad for value in inputs]

    def _on(self, leaves: Mapping[Tensor, Tensor]) -> Pass:
        """The same pass on copies of what it reads, where this backward pass ends."""

        def swap(value: Any) -> Any:
            return map_leaves(value, lambda x: leaves.get(x, x) if isinstance(x, Tensor) else x)

        tape = self.run.tape.swapped(swap, leaves)
        return replace(self.run, tape=tape, weights=swap(dict(self.run.weights)), fused=swap(dict(self.run.fused)))


class _TwoPhase(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, second: _Second, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.second = second
        ctx.save_for_backward(*inputs)
        return second.decode(second.run, second.classes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.second.gradients(ctx.saved_tensors, grads))
