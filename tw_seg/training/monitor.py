"""Whether what a callback monitors can be computed at all."""

from __future__ import annotations

import pytorch_lightning as pl

from tw_seg.errors import InputError

REMEDY = "'val/cls/map' (--best.monitor val/cls/map), or 'val/loss' (with --best.mode min)"
"""What to monitor where no mask can be scored."""


def check_monitors(trainer: pl.Trainer, masks: int) -> None:
    """Refuse a callback that would choose, or stop, by scores of masks that do not exist, or keep the worst epoch.

    Args:
        trainer: With its callbacks, and a module that names its scores of masks as ``mask_metrics`` and says with
            ``makes_masks`` whether there are any, and with ``monitor_modes`` whether less or more of a value is better.
        masks: Number of validation images that have a mask.

    Raises:
        InputError: Names the callback, what it monitors and what it could monitor.
    """
    scores: frozenset[str] = getattr(trainer.lightning_module, "mask_metrics", frozenset())
    _check_modes(trainer)
    makes_masks = getattr(trainer.lightning_module, "makes_masks", True)
    if (masks and makes_masks) or not trainer.limit_val_batches:
        return
    if makes_masks:
        reason = "is NaN in every epoch, as no validation image has a mask: add masks to val, or"
    else:
        reason = "is a score of masks, and the model is an image-level classifier, which makes none:"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if monitor in scores:
            raise InputError(f"{type(callback).__name__} monitors {monitor!r}, which {reason} monitor {REMEDY}")


def _check_modes(trainer: pl.Trainer) -> None:
    """Refuse a callback that takes less for better where more is, or the other way round."""
    modes: dict[str | None, str] = getattr(trainer.lightning_module, "monitor_modes", {})
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
        better = modes.get(monitor, mode)
        if mode != better:
            raise InputError(
                f"{type(callback).__name__} monitors {monitor!r} with mode {mode!r}, and would take the worst epoch "
                f"for the best: set its mode to {better!r} (--best.mode {better})"
            )
