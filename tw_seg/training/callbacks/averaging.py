"""AveragedViews: ``predict`` averages over mirrored and scaled images."""

from __future__ import annotations

from collections.abc import Sequence

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from tw_seg.predict.averaging import average_over, check_scales
from tw_seg.training.task import SegmentationTask


class AveragedViews(Callback):
    """Lets ``predict`` segment each image several times, see `tw_seg.predict.averaging.average_over`.

    It averages over what a gate leaves: in a trainer's list it comes after
    `tw_seg.training.callbacks.GatedInference`.

    Args:
        flip: Whether images are also mirrored left and right.
        scales: Sizes of the images, relative to their own.

    Raises:
        InputError: For no scale, or one that is not positive.
    """

    def __init__(self, *, flip: bool = False, scales: Sequence[float] = (1.0,)) -> None:
        check_scales(scales)
        self.flip, self.scales = flip, tuple(scales)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SegmentationTask)
        pl_module.segment = average_over(pl_module.segment or pl_module.forward, flip=self.flip, scales=self.scales)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, SegmentationTask)
        pl_module.segment = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")
