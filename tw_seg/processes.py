"""Sums over the processes of a training run, so that a loss is that of the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

AddUp = Callable[[Tensor], Tensor]
"""From a sum over the part of a batch that one process has to the sum over the whole batch."""


def keep_sum(part: Tensor) -> Tensor:
    """The sum of a batch that one process has whole."""
    return part


def add_over_processes(part: Tensor) -> Tensor:
    """The sum over all processes, with its gradient; with a single process the sum itself.

    Every process must call it as often as the others, in the same order, and waits for them. A loss that is computed
    from such sums is the same number everywhere, and the gradients that ``DistributedDataParallel`` averages are those
    of one process with the whole batch: the average over W processes undoes that the gradient of a sum is itself a
    sum of W equal parts.

    Args:
        part: This process' sum, any shape, the same everywhere.
    """
    if count_processes() == 1:
        return part
    from torch.distributed.nn.functional import all_reduce  # not in every build of torch

    total: Tensor = all_reduce(part.clone())
    return total


def count_processes() -> int:
    """Number of processes that train together."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
