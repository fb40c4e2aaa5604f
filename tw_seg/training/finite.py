"""Stops a training whose loss is no number, and says where that came from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tw_seg.errors import NotFiniteError

_SHOWN = 8


def check_finite(loss: Tensor, model: nn.Module, names: Sequence[str], before: Sequence[str], *, step: int) -> None:
    """Refuse a loss that is NaN or infinite, before it spoils the weights and a checkpoint of them.

    Reading it waits for the device. Weights that are no numbers already are the step before's doing, whose loss was
    finite and its gradient not.

    Args:
        loss: The loss of a batch.
        model: What it was computed with.
        names: The images of the batch.
        before: Those of the batch before; empty if it is not known.
        step: Number of steps that were taken before.

    Raises:
        NotFiniteError: Names the images, and a weight that is no number.
    """
    if bool(loss.isfinite()):
        return
    text = f"the loss of step {step} is {loss.item()}, of the images {_list(names)}"
    spoiled = next((name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())), None)
    if spoiled is not None:
        source = f"the step before, of the images {_list(before)}" if before else "what training began with"
        text += f"; the weight {spoiled} was not finite any more, since {source}"
    raise NotFiniteError(
        f"{text}: look at these images and their masks; if nothing is wrong with them, give a smaller --model.lr, or "
        "--trainer.precision 32-true"
    )


def _list(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
