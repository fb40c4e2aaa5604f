"""ExampleImages: validation images with their masks and heatmaps, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import WandbLogger

from tw_seg.arguments import check_counts
from tw_seg.files import file_name
from tw_seg.pictures import draw_heatmap, draw_image, draw_mask, join_tiles, save_picture
from tw_seg.regions import ignore_uncertain
from tw_seg.training.run_directory import find_run_directory
from tw_seg.training.task import SegmentationTask
from tw_seg.types import BACKGROUND, IGNORE_INDEX, Batch


class ExampleImages(Callback):
    """Shows the first validation images with mask, predicted mask and heatmaps.

    Goes to W&B where that is a logger (masks as integer layers), otherwise into the run directory as
    ``images/epoch-0004/<name>.png``: image, mask, predicted mask, and a heatmap (blue negative, red positive)
    for each object class of the image.

    Args:
        every_n_epochs: How often; 0 = never.
        count: Number of images.
        heatmaps: Largest number of heatmaps for an image.
    """

    def __init__(self, every_n_epochs: int = 5, count: int = 4, *, heatmaps: int = 3) -> None:
        check_counts(0, every_n_epochs=every_n_epochs, count=count, heatmaps=heatmaps)
        self.every_n_epochs = every_n_epochs
        self.count = count
        self.heatmaps = heatmaps
        self._shown = 0

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._shown = 0

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        due = self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if not due or trainer.sanity_checking or not trainer.is_global_zero or self._shown >= self.count:
            return
        assert isinstance(pl_module, SegmentationTask)
        rows = list(range(min(len(outputs["mask_logits"]), self.count - self._shown)))
        self._shown += len(rows)
        for row in rows:
            image = batch.labelled[row]
            self._show(
                trainer,
                pl_module.class_names,
                name=batch.names[int(image)],
                image=batch.images[image].float().cpu().numpy(),
                mask=ignore_uncertain(
                    batch.masks[row], batch.labels[image], None if batch.annotated is None else batch.annotated[row]
                )
                .cpu()
                .numpy(),
                mask_logits=outputs["mask_logits"][row].float().cpu().numpy(),
                labels=batch.labels[image].cpu().numpy(),
            )

    def _show(
        self,
        trainer: pl.Trainer,
        class_names: Sequence[str],
        *,
        name: str,
        image: np.ndarray,
        mask: np.ndarray,
        mask_logits: np.ndarray,
        labels: np.ndarray,
    ) -> None:
        predicted = mask_logits.argmax(axis=0)
        objects = [int(k) for k in np.flatnonzero(labels > 0) if k != BACKGROUND][: self.heatmaps]
        heatmaps = [draw_heatmap(mask_logits[k]) for k in objects]
        boards = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if not boards:
            tiles = [draw_image(image), draw_mask(mask), draw_mask(predicted), *heatmaps]
            folder = find_run_directory(trainer) / "images" / f"epoch-{trainer.current_epoch:04d}"
            save_picture(folder / file_name(name, ".png"), join_tiles(tiles))
        names = {**dict(enumerate(class_names)), IGNORE_INDEX: "ignored"}
        layers = {
            layer: {"mask_data": ids.astype(np.uint8), "class_labels": names}  # W&B: integers 0..255, 2-D
            for layer, ids in (("mask", mask), ("predicted", predicted))
        }
        for board in boards:
            step = trainer.global_step
            shown = [draw_image(image)]
            board.log_image(f"val/masks/{name}", shown, step=step, caption=[name], masks=[layers])
            if heatmaps:
                captions = [f"{name}: {class_names[k]}" for k in objects]
                board.log_image(f"val/heatmaps/{name}", heatmaps, step=step, caption=captions)
