"""PredictionWriter: what ``predict`` leaves on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from tqdm import tqdm

from tw_seg.predict.blend import Blender
from tw_seg.predict.folder import PredictionFolder, name_errors
from tw_seg.predict.outputs import PictureFiles
from tw_seg.training.run_directory import find_run_directory
from tw_seg.training.task import Prediction, SegmentationTask
from tw_seg.types import Failure, Window

PREDICTIONS = "predictions"
"""The folder of a run directory for its predictions."""


class PredictionWriter(Callback):
    """Puts windows together to pictures, and writes the files of each as soon as its last window is there.

    Args:
        folder: Where they are written, and what; ``None``: masks and the table, anew, into ``predictions`` in the run
            directory. See `tw_seg.predict.folder`.
        files: The pictures' own files by name, by which a later run sees whether they are still the same.
        progress: Whether a progress bar counts these files.

    Attributes:
        failures: The pictures that could not be read, in order.
    """

    def __init__(
        self,
        folder: PredictionFolder | None = None,
        files: Mapping[str, Path] | None = None,
        *,
        progress: bool = False,
    ) -> None:
        self.failures: list[Failure] = []
        self._given = self._folder = folder
        self._files = dict(files or {})
        self._progress = progress
        self._bar: tqdm[Any] | None = None
        self._open: dict[str, _OpenPicture] = {}  # of several when several workers read them

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        task = _as_task(pl_module)
        self.failures = []
        self._folder = self._given or PredictionFolder(
            find_run_directory(trainer) / PREDICTIONS,
            {"classes": list(task.class_names)},
            outputs=["masks"],
            overwrite=True,
        )
        self._bar = tqdm(total=len(self._files), unit="picture", disable=None) if self._progress else None

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the pictures that this batch completes."""
        assert isinstance(outputs, Prediction)
        classes = _as_task(pl_module).class_names
        self._count(outputs.failures)
        self.failures += outputs.failures
        for row, (name, window) in enumerate(zip(outputs.names, outputs.windows, strict=True)):
            if name not in self._open:
                self._open[name] = self._begin(name, outputs.sizes[row], classes)
            maps = outputs.mask_logits[row] if len(outputs.mask_logits) else None  # a classifier makes none
            with name_errors(self._get_folder().path):
                self._open[name].add(window, maps, outputs.probabilities[row])
                if window.last:
                    small = outputs.thumbnails[row] if outputs.thumbnails else None
                    trust = None if outputs.trust is None else float(outputs.trust[row])
                    self._get_folder().add(self._open.pop(name).write(small, trust), self._files.get(name))
                    self._count([name])

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the tables."""
        folder = self._get_folder()
        folder.finish(self.failures)
        if self._bar is not None:
            self._bar.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for picture in self._open.values():
            picture.files.discard()
        self._open = {}

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")

    def _begin(self, name: str, size: tuple[int, int], classes: Sequence[str]) -> _OpenPicture:
        folder = self._get_folder()
        files = PictureFiles(folder.path, name, size=size, outputs=folder.outputs, classes=classes)
        return _OpenPicture(files, Blender(size))

    def _get_folder(self) -> PredictionFolder:
        assert self._folder is not None
        return self._folder

    def _count(self, done: Sequence[Any]) -> None:
        if self._bar is not None:
            self._bar.update(len(done))


class _OpenPicture:
    """A picture of which not all windows have come."""

    def __init__(self, files: PictureFiles, blender: Blender) -> None:
        self.files, self._blender = files, blender
        self._probabilities: Tensor | None = None

    def add(self, window: Window, mask_logits: Tensor | None, probabilities: Tensor) -> None:
        """Take a window; a class is as probable in a picture as in the window that shows it most clearly."""
        known = self._probabilities
        self._probabilities = probabilities if known is None else torch.maximum(known, probabilities)
        if mask_logits is not None:
            for strip in self._blender.add(window, mask_logits):
                self.files.add(strip)

    def write(self, thumbnail: np.ndarray | None, trust: float | None) -> dict[str, Any]:
        assert self._probabilities is not None
        return self.files.write(self._probabilities.tolist(), thumbnail, trust=trust)


def _as_task(module: pl.LightningModule) -> SegmentationTask:
    assert isinstance(module, SegmentationTask)
    return module
