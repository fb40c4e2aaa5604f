"""StepSeed: random numbers that depend on the step alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback


class StepSeed(Callback):
    """Seeds torch, numpy and random from (seed, epoch, batch) before every training batch.

    A resumed run then draws the same numbers (dropout and the like) as one that was never stopped. Data does
    not depend on it: the data module derives its random numbers from (seed, epoch, step) itself.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        state = np.random.SeedSequence([self.seed, trainer.global_rank, trainer.current_epoch, batch_idx])
        for_torch, for_numpy, for_random = state.generate_state(3)
        torch.manual_seed(int(for_torch))
        np.random.seed(int(for_numpy))
        random.seed(int(for_random))
