"""What a training step changes and how fast: parameter groups and the schedule of the learning rate."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl

from tw_seg.arguments import check_counts
from tw_seg.errors import InputError
from tw_seg.models.base import SegModel

SCHEDULERS = ("cosine", "onecycle", "none")


def group_parameters(
    model: SegModel, *, lr: float, weight_decay: float, decoder_lr_factor: float, scale_lr_factor: float
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups with a learning rate and a weight decay, as an optimiser takes them.

    Args:
        model: The model, which knows the role of each of its parameters.
        lr: Learning rate of the encoder.
        weight_decay: Weight decay of weights; biases, norms and scales have none.
        decoder_lr_factor: Learning rate of the decoder's own parameters, relative to ``lr``.
        scale_lr_factor: Learning rate of the parameters that scale and shift mask logits, relative to ``lr``.

    Returns:
        The groups that are not empty, each with a name.
    """
    rates = {"": lr, "decoder ": lr * decoder_lr_factor}
    groups: dict[str, dict[str, Any]] = {
        f"{part}{kind}": {"params": [], "lr": rate, "weight_decay": decay}
        for part, rate in rates.items()
        for kind, decay in (("weights", weight_decay), ("biases", 0.0))
    }
    groups["scales"] = {"params": [], "lr": lr * scale_lr_factor, "weight_decay": 0.0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = model.parameter_role(name)
            part, kind = "decoder " if role == "decoder" else "", "weights" if parameter.ndim > 1 else "biases"
            groups["scales" if role == "scale" else f"{part}{kind}"]["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def check_schedule(kind: str, warmup: int) -> None:
    """Check the name of a schedule and its number of warm-up steps.

    Raises:
        InputError: For anything else.
    """
    if kind not in SCHEDULERS:
        raise InputError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {kind!r}")
    check_counts(0, warmup_steps=warmup)


def count_steps(trainer: pl.Trainer, kind: str, *, warmup: int) -> int:
    """Number of optimiser steps of a run; 0 if a run without schedule has no end.

    Raises:
        InputError: A schedule needs an end, or the warm-up is as long as the run.
    """
    total = trainer.estimated_stepping_batches
    if kind != "none" and not math.isfinite(total):
        raise InputError(
            f"scheduler {kind!r} needs to know where training ends: set trainer.max_epochs or max_steps, "
            "or use the scheduler 'none'"
        )
    if kind != "none" and warmup >= total:
        raise InputError(f"warmup_steps={warmup} does not fit into a run of {total} steps: lower it")
    return int(total) if math.isfinite(total) else 0


def compute_lr_factor(kind: str, step: int, *, warmup: int, total: int) -> float:
    """Learning rate at a step, relative to its peak.

    Args:
        kind: ``"cosine"``: linear warm-up, then a half cosine to 0. ``"onecycle"``: from 1/25 up and down to
            1/250,000 by half cosines, as torch's ``OneCycleLR``. ``"none"``: linear warm-up, then 1.
        step: Optimiser steps taken so far, 0 for the first.
        warmup: Steps of the warm-up; ``"onecycle"`` climbs that long, or for 30 % of the run if 0.
        total: Steps of the run; not used for the first step.

    Examples:
        >>> [compute_lr_factor("cosine", step, warmup=1, total=3) for step in range(4)]
        [0.5, 1.0, 0.5, 0.0]
    """
    if kind == "onecycle":
        climb = max((warmup or 0.3 * total) - 1, 1)
        if step <= climb:
            return _half_cosine(1 / 25, 1.0, step / climb)
        return _half_cosine(1.0, 1 / 25e4, (step - climb) / max(total - 1 - climb, 1))
    factor = min(1.0, (step + 1) / (warmup + 1))
    if kind == "cosine" and step > warmup:
        factor *= _half_cosine(1.0, 0.0, (step - warmup) / (total - warmup))
    return factor


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
