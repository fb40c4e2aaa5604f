"""The run directory: one folder holds everything a run writes, and nothing in it is written by halves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.plugins.io import TorchCheckpointIO

from tw_seg.files import Draft, next_free, write_whole

BEST = "best.ckpt"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
"""The checkpoint that `LAST` replaced, for the case that it cannot be read."""


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
    """Writes a checkpoint beside its place and renames it, so that neither a kill nor a power cut leaves half of one.

    Lightning writes to the temporary directory first and moves the file from there, which is a copy, not a
    rename, where that is another file system. The checkpoint to resume from is kept once more when it is replaced.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return

        def write(draft: Path) -> None:
            _save_synced(checkpoint, draft)
            if Path(path).name == LAST and Path(path).is_file():
                _keep_previous(Path(path))

        write_whole(Path(path), write)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint: tensors, names and numbers, also from an address, of which Lightning reads anything."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def _save_synced(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint, to the disk itself: a file that is renamed before it is there may be empty after a power cut.

    Raises:
        OSError: It cannot be written. torch says so as a ``RuntimeError`` about positions in the file.
    """
    try:
        with open(path, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _keep_previous(path: Path) -> None:
    """Give a checkpoint that is about to be replaced a second name; there is no moment without the first."""
    previous = Draft(path.with_name(PREVIOUS))
    previous.discard()
    try:
        os.link(path, previous.path)
    except OSError:  # no file system with links
        os.replace(path, previous.path)
    previous.keep()
