"""What a run does beside training: seeds, files, pictures, exports. Each callback does one thing.

An exponential moving average of the weights needs no callback of ours: Lightning has ``EMAWeightAveraging``.
"""

from __future__ import annotations

import csv
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter, Callback, ModelCheckpoint
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from safetensors.torch import save_file
from torch import Tensor

from tw_seg.arguments import check_counts
from tw_seg.files import file_name, next_free, write_text, write_whole
from tw_seg.training.pictures import (
    heatmap_rgb,
    image_rgb,
    mask_rgb,
    save_mask,
    save_picture,
    side_by_side,
)
from tw_seg.training.run_directory import run_directory
from tw_seg.training.task import Prediction, SegmentationTask
from tw_seg.types import BACKGROUND, IGNORE_INDEX, Batch

log = logging.getLogger(__name__)

CLASSIFIER_FILE = "classifier.safetensors"


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


class RunConfig(SaveConfigCallback):
    """Writes the command's whole configuration into the run's own directory, and never over another one.

    ``fit`` writes ``config.yaml``, any other command ``<command>_config.yaml``; a second time (a resumed run)
    the name gets a number.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.already_saved or not trainer.is_global_zero:
            return
        text = self.parser.dump(self.config, skip_none=False)
        command = trainer.state.fn.value if trainer.state.fn else stage
        stem = "config" if command == "fit" else f"{command}_config"
        path = next_free(run_directory(trainer) / f"{stem}.yaml")
        write_text(path, text)
        self.already_saved = True


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
                mask=batch.masks[row].cpu().numpy(),
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
        heatmaps = [heatmap_rgb(mask_logits[k]) for k in objects]
        boards = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if not boards:
            tiles = [image_rgb(image), mask_rgb(mask), mask_rgb(predicted), *heatmaps]
            folder = run_directory(trainer) / "images" / f"epoch-{trainer.current_epoch:04d}"
            save_picture(folder / file_name(name, ".png"), side_by_side(tiles))
        names = {**dict(enumerate(class_names)), IGNORE_INDEX: "ignored"}
        layers = {
            layer: {"mask_data": ids.astype(np.uint8), "class_labels": names}  # W&B: integers 0..255, 2-D
            for layer, ids in (("mask", mask), ("predicted", predicted))
        }
        for board in boards:
            step = trainer.global_step
            shown = [image_rgb(image)]
            board.log_image(f"val/masks/{name}", shown, step=step, caption=[name], masks=[layers])
            if heatmaps:
                captions = [f"{name}: {class_names[k]}" for k in objects]
                board.log_image(f"val/heatmaps/{name}", heatmaps, step=step, caption=captions)


class PredictionWriter(BasePredictionWriter):
    """Writes masks as palette PNGs and image-level probabilities as CSV into the run directory.

    ``predictions/masks/<name>.png`` (the pixels are class ids), written batch by batch, and
    ``predictions/probabilities.csv``, written at the end.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._rows: list[tuple[str, list[float]]] = []

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Prediction,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        folder = run_directory(trainer) / "predictions" / "masks"
        for name, mask in zip(prediction.names, prediction.masks, strict=False):  # a classifier has no masks
            save_mask(folder / file_name(name, ".png"), mask.cpu().numpy())
        self._rows += zip(prediction.names, prediction.probabilities.tolist(), strict=True)

    @rank_zero_only
    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SegmentationTask)
        header = ["image", *pl_module.class_names]
        rows = [[name, *(f"{value:.6f}" for value in values)] for name, values in self._rows]

        def write(draft: Path) -> None:
            with open(draft, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([header, *rows])

        write_whole(run_directory(trainer) / "predictions" / "probabilities.csv", write)
        self._rows = []


class ExportClassifier(Callback):
    """After training, writes the classifier of the best checkpoint as ``classifier.safetensors``.

    That file is what ``SegmentationTask(warm_start=...)`` of the next run reads, and it is safe to pass on:
    unlike a checkpoint it cannot run code. A model without a classifier of its own (a U-Net) writes none.
    """

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        classifier = getattr(getattr(pl_module, "model", None), "classifier", None)
        if classifier is None:
            return
        prefix = next(f"{name}." for name, module in pl_module.named_modules() if module is classifier)
        best = best_checkpoint(trainer)
        if best:
            state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
        else:
            state = pl_module.state_dict()
        path = run_directory(trainer) / CLASSIFIER_FILE
        save_classifier(path, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        log.info("classifier of %s written to %s", best or "the last step", path)


def save_classifier(path: Path, state: dict[str, Tensor]) -> None:
    """Write a state dict as safetensors, which wants every tensor contiguous and to itself."""
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    write_whole(path, lambda draft: save_file(tensors, draft))


def best_checkpoint(trainer: pl.Trainer) -> str:
    """Path of the best checkpoint by the metric that selects models; empty if there is none."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            return callback.best_model_path
    return ""
