"""A tiny task, tiny batches and a quiet trainer, shared by the tests of this folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tw_seg.models.base import SegModel
from tw_seg.training.task import SegmentationTask
from tw_seg.types import IGNORE_INDEX, Batch, SegOutput

NAMES = ["background", "cat", "dog"]
ENCODER: dict[str, Any] = {
    "encoder_name": "timm/resnet10t",
    "encoder_kwargs": {"channels": [4, 4, 8, 8], "stem_width": 4},
}


class Stub(SegModel):
    """A model of four layers with everything a task may meet; remembers what it was asked to decode."""

    classifier_path = "classifier"
    scale_names = ("log_scale", "offset")

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None = None,
        *,
        in_channels: int = 3,
        classes: int,
        encoder_kwargs: dict[str, Any] | None = None,
        masks: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(encoder_name, in_channels=in_channels, classes=classes)
        self.makes_masks = masks
        self.classifier = nn.Sequential(nn.Conv2d(in_channels, classes, 3, padding=1), nn.BatchNorm2d(classes))
        self.dropout = nn.Dropout(dropout)
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.offset = nn.Parameter(torch.zeros(classes))
        self.decoded: list[list[int] | None] = []

    def segment(self, images: Tensor, classes: object, samples: Tensor | None) -> SegOutput:
        self.decoded.append(None if samples is None else samples.tolist())
        maps = self.dropout(self.classifier(images))
        rows = maps if samples is None else maps[samples]
        mask_logits = rows * self.log_scale.exp() + self.offset[:, None, None]
        return SegOutput(maps.mean((2, 3)), mask_logits if self.makes_masks else mask_logits[:0])


def make_batch(labelled: int, total: int = 4, *, size: int = 16, native: int | None = None, seed: int = 0) -> Batch:
    """A batch with masks for its first ``labelled`` rows, partly ignored."""
    generator = torch.Generator().manual_seed(seed)

    def ids(side: int) -> Tensor:
        masks = torch.randint(0, len(NAMES), (labelled, side, side), generator=generator)
        masks[:, :2] = IGNORE_INDEX
        return masks

    masks = ids(size)
    labels = torch.randint(0, 2, (total, len(NAMES)), generator=generator).float()
    labels[:, 0] = 1
    return Batch(
        images=torch.randn(total, 3, size, size, generator=generator),
        labels=labels,
        labelled=torch.arange(labelled),
        masks=masks,
        native_masks=tuple(masks if native is None else ids(native)),
        names=tuple(f"image-{seed}-{row}" for row in range(total)),
        sizes=((native or size, native or size),) * total,
    )


def loader(batches: Sequence[Batch]) -> DataLoader[Batch]:
    return DataLoader(list(batches), batch_size=1, collate_fn=lambda items: items[0])  # type: ignore[arg-type]


class TinyData(pl.LightningDataModule):
    """Batches as they are."""

    def __init__(self, train: Sequence[Batch] = (), evaluation: Sequence[Batch] = ()) -> None:
        super().__init__()
        self.train = list(train) or [make_batch(2, seed=seed) for seed in range(3)]
        self.evaluation = list(evaluation) or [make_batch(4, seed=seed, native=24) for seed in range(2)]

    def train_dataloader(self) -> DataLoader[Batch]:
        return loader(self.train)

    def val_dataloader(self) -> DataLoader[Batch]:
        return loader(self.evaluation)

    test_dataloader = predict_dataloader = val_dataloader


def make_task(model: str = "stub", **kwargs: Any) -> SegmentationTask:
    return SegmentationTask(model, **{"class_names": NAMES, **ENCODER, **kwargs})


def make_trainer(folder: Path, **kwargs: Any) -> pl.Trainer:
    quiet = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(default_root_dir=folder, **{**quiet, **kwargs})


class LossTrace(pl.Callback):
    """Writes the exact loss of every step to a file that survives a kill; can kill its own process.

    Args:
        path: The file; lines are added.
        die_after: Number of steps after which the process gets SIGKILL, before that step is checkpointed.
    """

    def __init__(self, path: str, die_after: int | None = None) -> None:
        self.path, self.die_after = path, die_after

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with open(self.path, "a") as file:
            file.write(f"{trainer.current_epoch} {batch_idx} {outputs['loss'].item().hex()}\n")
        if trainer.global_step == self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)
