"""A new task that begins as a trained one, whose classes it has, others, or more: classes are matched by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.models.factory import create_model
from tw_seg.training.restore import leave_out_weights
from tw_seg.training.task import SegmentationTask
from tw_seg.types import BACKGROUND

_SAME = ("model", "encoder_name", "encoder_kwargs", "in_channels")


def extend_task(task: SegmentationTask, trained: SegmentationTask) -> None:
    """Give a task all weights of a trained one of the same model.

    What is kept for each class (rows of heads, offsets) goes to the class of the same name. A class that the trained
    task does not know keeps the random rows that it has; its scale and offset are the mean of those of the objects
    that it does know, so that no class begins by covering the others. A heatmap segmenter decodes a new class
    with the network of the old ones from its first step on.

    Args:
        task: Changed in place, and only if everything fits.
        trained: Of the same model and encoder.

    Raises:
        InputError: The model differs, or no object class has the same name.
    """
    for name in _SAME:
        ours, theirs = task.hparams[name], trained.hparams[name]
        if (ours or None) != (theirs or None):
            raise InputError(f"the trained run has {name}={theirs!r}, this one {ours!r}: give this one the same")
    names, known = task.class_names, trained.class_names
    if not set(names[BACKGROUND + 1 :]) & set(known[BACKGROUND + 1 :]):
        raise InputError(
            f"the trained run has the classes {', '.join(known)}, this one {', '.join(names)}: no object class has the "
            "same name; begin with its classifier instead (warm_start)"
        )
    state, old = task.model.state_dict(), trained.model.state_dict()
    dimensions = _find_class_dimensions(task)
    problems = sorted(state.keys() ^ old.keys())
    problems += [
        f"{key} {tuple(old[key].shape)} instead of {tuple(state[key].shape)}"
        for key in sorted(state.keys() & old.keys())
        if _drop(old[key].shape, dimensions.get(key)) != _drop(state[key].shape, dimensions.get(key))
    ]
    if problems:
        listed = ", ".join(problems[:6]) + (", ..." if len(problems) > 6 else "")
        raise InputError(f"the trained run has other weights ({listed}): give this one the same model_kwargs")
    means = {key for key in task.model.scale_names if key in dimensions}
    new = {
        key: _match(value, old[key], names, known, key, dimensions[key], mean=key in means)
        if key in dimensions
        else old[key].to(value)
        for key, value in state.items()
    }
    task.model.load_state_dict(new)
    added, gone = [n for n in names if n not in known], [n for n in known if n not in names]
    rank_zero_info(f"classes that are new: {', '.join(added) or 'none'}; left out: {', '.join(gone) or 'none'}")


def _match(
    value: Tensor, old: Tensor, names: Sequence[str], known: Sequence[str], key: str, dimension: int, *, mean: bool
) -> Tensor:
    """A tensor of the new model, with what the old one has for the classes of the same name."""
    lacking = len(names) - value.shape[dimension]  # 1 where the background is no class of the classifier
    if lacking not in (0, 1) or len(known) - old.shape[dimension] != lacking:
        raise InputError(
            f"{key} has the shape {tuple(value.shape)} for {len(names)} classes, and {tuple(old.shape)} in the trained "
            f"run for {len(known)}: what belongs to a class is not known"
        )
    ours, theirs = names[lacking:], known[lacking:]
    result = value.clone()
    if mean:
        objects = torch.tensor([row for row, name in enumerate(theirs) if name != known[BACKGROUND]])
        result.copy_(old.index_select(dimension, objects).mean(dimension, keepdim=True).expand_as(result))
    rows = [(ours.index(name), row) for row, name in enumerate(theirs) if name in ours]
    for new_row, old_row in rows:
        result.select(dimension, new_row).copy_(old.select(dimension, old_row))
    return result


def _find_class_dimensions(task: SegmentationTask) -> dict[str, int]:
    """The dimension of each tensor that counts classes: the one that grows in a model of one class more."""
    arguments = {**task.hparams, **leave_out_weights(task.hparams)}
    kwargs = {name: arguments[name] for name in ("encoder_name", "encoder_weights", "in_channels", "encoder_kwargs")}
    kwargs |= {**(arguments["model_kwargs"] or {}), "classes": task.num_classes + 1}
    with torch.random.fork_rng(devices=[]):
        larger = create_model(arguments["model"], **kwargs).state_dict()
    found: dict[str, int] = {}
    for key, value in task.model.state_dict().items():
        grown = [d for d, size in enumerate(value.shape) if larger[key].shape[d] != size]
        if len(grown) > 1:
            raise InputError(f"{key} counts classes in more than one dimension: what belongs to a class is not known")
        if grown:
            found[key] = grown[0]
    return found


def _drop(shape: Sequence[int], dimension: int | None) -> list[int]:
    return [size for d, size in enumerate(shape) if d != dimension]
