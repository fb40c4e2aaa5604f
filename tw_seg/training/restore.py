"""A trained task and its data module, from a checkpoint alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule

from tw_seg.errors import InputError, TwSegError
from tw_seg.models.by_name import check_code
from tw_seg.models.published import depends_on_weights
from tw_seg.torch_files import read_torch_file
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.task import SegmentationTask

TASK = SegmentationTask.CHECKPOINT_HYPER_PARAMS_KEY
DATA = LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY
"""Keys of a checkpoint: the arguments of the task and of the data module."""

_INSTANTIATOR = "pytorch_lightning.cli.instantiate_module"  # what Lightning's command line notes

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


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint of Lightning's holds: tensors, names and numbers.

    Raises:
        InputError: The file is none, or would have Lightning import a class that it names.
    """
    content = read_torch_file(checkpoint, mmap=True)
    if not isinstance(content, dict):
        raise InputError(f"{checkpoint}: expected a checkpoint of `tw-seg fit`, found a {type(content).__name__}")
    for key in (TASK, DATA):
        arguments = content.get(key, {})
        if not isinstance(arguments, dict):
            raise InputError(f"{checkpoint}: expected names and numbers in {key}, found a {type(arguments).__name__}")
        if "_class_path" in arguments or arguments.get("_instantiator", _INSTANTIATOR) != _INSTANTIATOR:
            raise InputError(f"{checkpoint}: {key} names a class to make, which no checkpoint of `tw-seg fit` does")
    return content


def load_run(checkpoint: Path, *, trust_code: bool = False) -> tuple[SegmentationTask, SegmentationDataModule]:
    """Load the task and the data module of a checkpoint that `tw-seg fit` wrote; nothing else is needed.

    Pretrained weights that the model began with are not read again: they may be gone.

    Args:
        checkpoint: The file.
        trust_code: Whether code that it names, ``"package.module:factory"``, may be imported.

    Raises:
        InputError: The file is no such checkpoint, or names code that is not trusted.
    """
    content = read_checkpoint(checkpoint)
    lacking = [key for key in (TASK, DATA, "state_dict") if key not in content]
    if lacking:
        raise InputError(
            f"{checkpoint}: expected a checkpoint of `tw-seg fit`, which holds the classes and how images are "
            f"prepared; {', '.join(lacking)} is not in it"
        )
    arguments = content[TASK]
    check_code(arguments, source=str(checkpoint), trust_code=trust_code)
    try:
        encoder = arguments["encoder_name"]
        given: dict[str, Any] = {} if depends_on_weights(encoder) else {"encoder_weights": None}
        own = arguments.get("model_kwargs") or {}
        if given and "encoder_weights" in own:
            given["model_kwargs"] = {**own, **given}
        task = SegmentationTask.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True, **given)
        assert isinstance(task, SegmentationTask)
        data = SegmentationDataModule.load_from_checkpoint(checkpoint, weights_only=True)
        assert isinstance(data, SegmentationDataModule)
    except Exception as error:  # of ours, of Lightning, of jsonargparse and of torch
        reason = str(error) if isinstance(error, TwSegError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{checkpoint}: no model can be made of it ({' '.join(reason.split())[:1000]})") from error
    return task.eval(), data
