"""The run directory: one folder holds everything a run writes, and nothing in it is written by halves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.plugins.io import TorchCheckpointIO

from tw_seg.files import next_free, write_whole


def find_run_directory(trainer: pl.Trainer) -> Path:
    """The folder of this run alone.

    Where the first logger keeps one folder per run, it is that one. W&B has one for all runs: there it is the
    folder whose ``checkpoints`` Lightning fills.
    """
    if not trainer.loggers:
        return Path(trainer.default_root_dir)
    logger = trainer.loggers[0]
    if logger.log_dir is not None:
        return Path(logger.log_dir)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


class RunLogger(CSVLogger):
    """Metrics as CSV inside a run directory: ``metrics/<command>/metrics.csv``.

    Lightning's own CSV logger deletes the metrics that it finds in its folder, which would cost a resumed run
    its history. Here each command has a folder of its own: ``fit``, ``fit-2`` (resumed), ``test`` ... The
    file is up to date after every logged step, so that a killed run leaves what it had.

    Args:
        run_dir: The run directory; ``log_dir`` is the same.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
    """

    def __init__(self, run_dir: str | Path, command: str) -> None:
        super().__init__(save_dir=run_dir, name="", version="", flush_logs_every_n_steps=1)
        self._command = command

    @property
    def log_dir(self) -> str:
        """The run directory."""
        return self.save_dir

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of this command's metrics."""
        if self._experiment is None:
            folder = next_free(Path(self.save_dir) / "metrics" / self._command)
            self._experiment = ExperimentWriter(log_dir=str(folder))
        return self._experiment


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that a kill cannot leave half of one.

    Lightning writes to the temporary directory first and moves the file from there, which is a copy, not a
    rename, where that is another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_whole(Path(path), lambda draft: torch.save(checkpoint, draft))

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint: tensors, names and numbers, also from an address, of which Lightning reads anything."""
        return super().load_checkpoint(path, map_location, weights_only=True)
