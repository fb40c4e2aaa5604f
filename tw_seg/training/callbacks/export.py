"""ExportClassifier: the image-level classifier as a file that cannot run code."""

from __future__ import annotations

import logging
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only
from safetensors.torch import save_file
from torch import Tensor

from tw_seg.files import write_whole
from tw_seg.models.weights import format_normalization
from tw_seg.torch_files import read_torch_file
from tw_seg.training.run_directory import find_run_directory
from tw_seg.training.task import SegmentationTask
from tw_seg.types import Normalization

log = logging.getLogger(__name__)

CLASSIFIER_FILE = "classifier.safetensors"


class ExportClassifier(Callback):
    """After training, writes the classifier of the best checkpoint as ``classifier.safetensors``.

    That file is what ``SegmentationTask(warm_start=...)`` of the next run reads, and it is safe to pass on:
    unlike a checkpoint it cannot run code. A model without a classifier of its own (a U-Net) writes none.
    """

    @rank_zero_only
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SegmentationTask)
        if pl_module.model.classifier_path is None:
            return
        prefix = f"model.{pl_module.model.classifier_path}."
        best = find_best_checkpoint(trainer)
        if best:
            state = read_torch_file(best)["state_dict"]
        else:
            state = pl_module.state_dict()
        path = find_run_directory(trainer) / CLASSIFIER_FILE
        data = getattr(trainer, "datamodule", None)
        save_classifier(
            path,
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)},
            normalization=getattr(data, "normalization", None),
        )
        log.info("classifier of %s written to %s", best or "the last step", path)


def save_classifier(path: Path, state: dict[str, Tensor], *, normalization: Normalization | None = None) -> None:
    """Write a state dict as safetensors, which wants every tensor contiguous and to itself.

    Args:
        path: The file.
        state: The state dict.
        normalization: How its images were normalised: kept in the file, and compared when the file is used.
    """
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    write_whole(path, lambda draft: save_file(tensors, draft, format_normalization(normalization)))


def find_best_checkpoint(trainer: pl.Trainer) -> str:
    """Path of the best checkpoint by the metric that selects models; empty if there is none."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            return callback.best_model_path
    return ""
