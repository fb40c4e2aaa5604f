"""PredictionWriter: what ``predict`` leaves on disk."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import rank_zero_only

from tw_seg.files import file_name, write_whole
from tw_seg.pictures import save_mask
from tw_seg.training.run_directory import find_run_directory
from tw_seg.training.task import Prediction, SegmentationTask


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
        folder = find_run_directory(trainer) / "predictions" / "masks"
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

        write_whole(find_run_directory(trainer) / "predictions" / "probabilities.csv", write)
        self._rows = []
