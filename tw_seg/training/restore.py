"""A trained task and its data module, from a checkpoint alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule

from tw_seg.errors import InputError
from tw_seg.models.published import depends_on_weights
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.task import SegmentationTask

CHECKPOINTS = "checkpoints"
"""The folder of a run directory that holds its checkpoints."""


def find_checkpoint(place: Path) -> Path:
    """The checkpoint that a path means: the file, or of a run directory the best one, or else the last.

    Raises:
        InputError: There is none.
    """
    if place.is_file():
        return place
    for which in ("best", "last"):
        path = place / CHECKPOINTS / f"{which}.ckpt"
        if path.is_file():
            return path
    what = f"no checkpoint in {place / CHECKPOINTS}" if place.is_dir() else f"no file or folder {place}"
    raise InputError(f"there is {what}; give the run directory of `tw-seg fit`, or a checkpoint of it")


def load_run(checkpoint: Path) -> tuple[SegmentationTask, SegmentationDataModule]:
    """Load the task and the data module of a checkpoint that `tw-seg fit` wrote; nothing else is needed.

    Pretrained weights that the model began with are not read again: they may be gone.

    Raises:
        InputError: The file is no such checkpoint.
    """
    try:
        content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of pickle, zip and the operating system
        raise InputError(f"{checkpoint}: cannot be read as a checkpoint ({error}); give one of `tw-seg fit`") from error
    keys = (SegmentationTask.CHECKPOINT_HYPER_PARAMS_KEY, LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY)
    lacking = [key for key in (*keys, "state_dict") if key not in content]
    if lacking:
        raise InputError(
            f"{checkpoint}: expected a checkpoint of `tw-seg fit`, which holds the classes and how images are "
            f"prepared; {', '.join(lacking)} is not in it"
        )
    encoder = content[keys[0]]["encoder_name"]
    given = {} if depends_on_weights(encoder) else {"encoder_weights": None}
    task = SegmentationTask.load_from_checkpoint(checkpoint, map_location="cpu", **given)
    assert isinstance(task, SegmentationTask)
    data = SegmentationDataModule.load_from_checkpoint(checkpoint)
    assert isinstance(data, SegmentationDataModule)
    return task.eval(), data
