"""A trained task and its data module, from a checkpoint alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_warn

from tw_seg.errors import InputError, TwSegError
from tw_seg.models.by_name import check_code
from tw_seg.models.published import depends_on_weights
from tw_seg.torch_files import find_damage, read_torch_file
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.run_directory import BEST, LAST, PREVIOUS
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


def find_last_checkpoint(run_dir: Path) -> Path:
    """The checkpoint to resume a run from: the last one, or if that is damaged the one before, with a warning.

    Raises:
        InputError: There is none, or none that can be read.
    """
    last, previous = (run_dir / CHECKPOINTS / name for name in (LAST, PREVIOUS))
    if not last.is_file() and not previous.is_file():
        raise InputError(
            f"--ckpt_path last: there is no {last}; give the run's directory as --run_dir, or if the run was stopped "
            "before its first checkpoint, delete that directory and begin anew"
        )
    damage = find_damage(last) if last.is_file() else "missing"
    if damage is None:
        return last
    whole = _find_whole((previous, last.with_name(BEST)))
    if whole is None:
        raise InputError(
            f"{last} is damaged ({damage}), and there is no whole checkpoint beside it: delete {run_dir} to begin anew"
        )
    rank_zero_warn(f"{last} is damaged ({damage}): going on from {whole}, which was written before it")
    if whole == previous:  # the next checkpoint must not replace it by the damaged one
        os.replace(previous, last)
        return last
    return whole


def _find_whole(checkpoints: Iterable[Path]) -> Path | None:
    """The first that is there and not damaged."""
    return next((path for path in checkpoints if path.is_file() and find_damage(path) is None), None)


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint of Lightning's holds: tensors, names and numbers.

    Raises:
        InputError: The file is none, is damaged, or would have Lightning import a class that it names.
    """
    if os.access(checkpoint, os.R_OK) and (damage := find_damage(checkpoint)) is not None:
        raise InputError(
            f"{checkpoint}: the file is damaged, or no checkpoint of `tw-seg fit` ({damage}); "
            f"{_suggest_other(checkpoint)}"
        )
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


def _suggest_other(damaged: Path) -> str:
    """What to do about a checkpoint that cannot be read: take another one of its run, if one is whole."""
    whole = _find_whole(damaged.with_name(name) for name in (BEST, LAST, PREVIOUS) if name != damaged.name)
    if whole is not None:
        return f"give {whole}, which is whole"
    return "there is no whole checkpoint beside it: copy it once more from where it came, or train again"


def leave_out_weights(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What to change in the arguments of a task so that its model does not read weights that a checkpoint replaces.

    Nothing where the weights also choose what the model is, see `tw_seg.models.published.depends_on_weights`.
    """
    if depends_on_weights(arguments["encoder_name"]):
        return {}
    changed: dict[str, Any] = {"encoder_weights": None}
    own = arguments.get("model_kwargs") or {}
    return changed | ({"model_kwargs": {**own, **changed}} if "encoder_weights" in own else {})


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
        task = SegmentationTask.load_from_checkpoint(
            checkpoint, map_location="cpu", weights_only=True, **leave_out_weights(arguments)
        )
        assert isinstance(task, SegmentationTask)
        data = SegmentationDataModule.load_from_checkpoint(checkpoint, weights_only=True)
        assert isinstance(data, SegmentationDataModule)
    except Exception as error:  # of ours, of Lightning, of jsonargparse and of torch
        reason = str(error) if isinstance(error, TwSegError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{checkpoint}: no model can be made of it ({' '.join(reason.split())[:1000]})") from error
    return task.eval(), data
