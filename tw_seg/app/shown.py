"""What the page shows, as pictures and words."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tw_seg.app.session import Learned
from tw_seg.pictures import draw_heatmap
from tw_seg.types import BACKGROUND


def encode_picture(rgb: np.ndarray) -> str:
    """A picture (h, w, 3), uint8, as a data URL, which a browser shows without asking for it."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def tint_picture(picture: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """A picture in grey, red where a heatmap is positive and blue where it is negative, the more the stronger it is.

    Args:
        picture: RGB, uint8, shape (h, w, 3).
        heatmap: Signed, shape (h, w).

    Returns:
        uint8, shape (h, w, 3); the picture in grey where the heatmap is 0.
    """
    largest = max(float(np.abs(heatmap).max(initial=0)), 1e-12)
    colors = draw_heatmap(np.sign(heatmap))
    weight = 0.85 * np.sqrt(np.abs(heatmap) / largest)[..., None]
    grey = picture.mean(axis=2, keepdims=True)
    return ((1 - weight) * grey + weight * colors).round().astype(np.uint8)


def choose_class(probabilities: Sequence[float]) -> int:
    """The likeliest object; the background if there is no other class."""
    return max(range(BACKGROUND + 1, len(probabilities)), key=probabilities.__getitem__, default=BACKGROUND)


def rank_classes(names: Sequence[str], probabilities: Sequence[float]) -> dict[str, float]:
    """The objects with their probabilities; the background, which every picture has, is left out."""
    pairs = list(zip(names, probabilities, strict=True))
    return dict(pairs[BACKGROUND + 1 :] or pairs)


def describe_trust(trust: float | None, min_dice: float) -> str:
    """In words, how far a mask can be trusted; nothing if it was not rated.

    Example:
        >>> describe_trust(0.25, 0.7)
        'Trust in this mask: **25 %** (that it overlaps the truth with a Dice of at least 0.7)'
    """
    if trust is None:
        return ""
    return (
        f"Trust in this mask: **{100 * trust:.0f} %** (that it overlaps the truth with a Dice of at least {min_dice:g})"
    )


def describe_lesson(learned: Learned, *, asked: int) -> str:
    """In words, what a model learned.

    Args:
        learned: What it did.
        asked: How many steps were allowed.
    """
    if learned.steps == 0:
        return "The model agrees with all your marks already: nothing to learn."
    pictures = "this picture" if learned.pictures == 1 else f"{learned.pictures} pictures"
    steps = f"{learned.steps} {'step' if learned.steps == 1 else 'steps'}"
    changed = 100 * float((learned.before != learned.after).mean())
    more = "" if learned.steps < asked else " Not all marks may be right yet: learn once more, or mark more."
    return f"Learned from {pictures} in {steps}; {changed:.1f} % of this mask changed.{more}"
