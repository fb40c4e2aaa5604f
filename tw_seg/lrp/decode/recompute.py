"""Decodes that keep nothing for their backward pass but what they read, and are done again in it.

All of a decode is one node of autograd's graph: neither its activations nor the nodes of its operations stay, and what
its pieces give to the gradient of a weight is summed up before it is handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import map_leaves
from tw_seg.lrp.decode.schedule import name_budget

Decode = Callable[[Backward], tuple[Tensor, ...]]
"""Decodes some pairs of a pass: heatmaps of each read-out."""

PlanSecond = Callable[[Sequence[Tensor]], Iterable[tuple[Decode, Sequence[Tensor]]]]
"""From the gradients at all heatmaps: what to decode again, one after the other, and the gradients at its heatmaps."""


def recompute_decodes(decodes: Sequence[Decode], backward: Backward) -> list[tuple[Tensor, ...]]:
    """Decode a pass several times without a graph, and again in the backward pass.

    Args:
        decodes: The decodes.
        backward: The pass.

    Returns:
        The heatmaps of each decode.
    """
    if not decodes:
        return []
    count = len(backward.readouts) + len(backward.projections)

    def group(maps: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        return [tuple(maps[i : i + count]) for i in range(0, len(maps), count)]

    maps = decode_twice(
        lambda backward: tuple(one for decode in decodes for one in decode(backward)),
        lambda grads: zip(decodes, group(grads), strict=True),
        backward,
    )
    return group(maps)


def decode_twice(first: Decode, plan_second: PlanSecond, backward: Backward) -> tuple[Tensor, ...]:
    """Decode without a graph, and in the backward pass decode with one what ``plan_second`` names.

    Args:
        first: Decodes a pass.
        plan_second: What to decode in the backward pass.
        backward: The pass.

    Returns:
        The heatmaps of ``first``. They cannot be differentiated twice.
    """
    tape = backward.tape
    held = [
        [*tape.classifier.parameters()],
        dict(backward.weights),
        dict(backward.fused),
        dict(backward.projections),
        tape.values,
        tape.saved,
        tape.weights,
    ]
    inputs: dict[Tensor, None] = {}  # each once
    map_leaves(held, lambda x: inputs.setdefault(x) if _is_trained(x) else None)
    decode: Callable[..., tuple[Tensor, ...]] = _DecodeTwice.apply  # torch 2.11 does not type it
    return decode(_Phases(first, plan_second, backward), *inputs)


def _is_trained(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _copy_autocast(device: str) -> Callable[[], AbstractContextManager[Any]]:
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return partial(torch.autocast, device, dtype=dtype, enabled=enabled)


class _Phases:
    """What forward and backward pass need to know."""

    def __init__(self, first: Decode, plan_second: PlanSecond, backward: Backward) -> None:
        self.first, self.plan_second, self.backward = first, plan_second, backward
        self.autocast = _copy_autocast(backward.tape.images.device.type)

    def gradients(self, inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor | None]:
        """Gradients at ``inputs`` from those at the heatmaps."""
        leaves = {value: value.detach().requires_grad_() for value in inputs}
        backward = self._swap_inputs(leaves)
        for decode, at_maps in self.plan_second(grads):
            with name_budget(None):
                with torch.enable_grad(), self.autocast():
                    maps = decode(backward.renew())  # no rows whose graph the last one used up
                wanted = [(m, g) for m, g in zip(maps, at_maps, strict=True) if m.requires_grad]
                if wanted:
                    torch.autograd.backward([m for m, _ in wanted], [g for _, g in wanted])
        return [leaves[value].grad for value in inputs]

    def _swap_inputs(self, leaves: Mapping[Tensor, Tensor]) -> Backward:
        """The same pass on copies of what it reads, where this backward pass ends."""

        def swap(value: Any) -> Any:
            return map_leaves(value, lambda x: leaves.get(x, x) if isinstance(x, Tensor) else x)

        tape = self.backward.tape.swapped(swap, leaves)
        parts = ("weights", "fused", "projections")
        return replace(self.backward, tape=tape, **{name: swap(dict(getattr(self.backward, name))) for name in parts})


class _DecodeTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, phases: _Phases, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.phases = phases
        ctx.save_for_backward(*inputs)
        return phases.first(phases.backward)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.phases.gradients(ctx.saved_tensors, grads))


def checkpoint_decode(
    decode: Callable[[Backward, Tensor], tuple[Tensor, ...]], backward: Backward, classes: Tensor
) -> tuple[Tensor, ...]:
    """Decode classes and recompute them in the backward pass, under a compiler.

    A second mechanism, as ``torch.compile`` refuses the first one: it does not trace ``torch.autograd.backward`` in the
    backward pass of a custom function ("Attempted to call function marked as skipped"). This one could not take its
    place: it decodes again all or nothing, not the pairs that a gradient asks for.
    """
    if not torch.is_grad_enabled():
        return decode(backward, classes)
    found: tuple[Tensor, ...] = checkpoint(
        lambda chosen: decode(backward.renew(), chosen), classes, use_reentrant=False, preserve_rng_state=False
    )
    return found
