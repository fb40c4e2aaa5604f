"""What several processes need to train as one does."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy

from tw_seg.errors import InputError

STRATEGY = "ddp_find_unused_parameters_true"


def check_processes(trainer: pl.Trainer) -> None:
    """Refuse processes that would not take the step that one takes with the whole batch.

    Each has a part of the labelled rows, perhaps none, and then no gradient for the decoder:
    ``DistributedDataParallel`` has to be told that parameters may be without one. Lightning's sampler would show
    images twice to make parts equal.

    Raises:
        InputError: Says which argument of the trainer is wrong.
    """
    if trainer.world_size == 1:
        return
    strategy = trainer.strategy
    finds = isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs.get("find_unused_parameters", False)
    if not finds:
        raise InputError(
            f"trainer.strategy: with {trainer.world_size} processes expected {STRATEGY!r}, got "
            f"{type(strategy).__name__}: a process may have no image with a mask in its part of a batch, and then no "
            "gradient for some parameters"
        )
    if trainer._accelerator_connector.use_distributed_sampler:
        raise InputError(
            "trainer.use_distributed_sampler: expected false, as the data module divides the images itself, got true"
        )
