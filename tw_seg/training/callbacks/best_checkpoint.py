"""BestCheckpoint: the checkpoint of the best epoch, which is never one without a score."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from tw_seg.training.monitor import REMEDY


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, which does not save an epoch whose monitored value is NaN, and says so.

    Lightning keeps the first epoch for good where the value is NaN in every one.
    """

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Whether an epoch with this value is among the best."""
        if current is not None and bool(current.isnan()):
            rank_zero_warn(
                f"{self.monitor} is NaN in epoch {trainer.current_epoch}: there is nothing to choose a checkpoint by, "
                f"so none is saved as the best. If no mask is scored, monitor {REMEDY}; otherwise see whether the loss "
                "is finite"
            )
            return False
        return super().check_monitor_top_k(trainer, current)
