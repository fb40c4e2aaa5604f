"""Masks against image-level labels: two statements about the same images, compared once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np

from tw_seg.data.dataset import SegmentationData
from tw_seg.errors import ContradictionError, InputError
from tw_seg.types import BACKGROUND, IGNORE_INDEX

_SHOWN = 3
_OFTEN = 0.05  # of the images that show an object
_SAVE = (
    f"{IGNORE_INDEX} means 'ignore', so an object that is saved as {IGNORE_INDEX} is never learned: save it as its "
    "class id, 1 for the first class"
)


Contradictions = Literal["refuse", "warn"]
CONTRADICTIONS: tuple[Contradictions, ...] = get_args(Contradictions)
"""What is done about masks with pixels of a class that the labels say is not there."""


@runtime_checkable
class MaskFiles(Protocol):
    """A data set whose masks can be read without their images, as those on disk can.

    It may also have ``annotated``, see `tw_seg.data.dataset.SegmentationData`.
    """

    classes: tuple[str, ...]
    labels: np.ndarray

    def mask_file(self, index: int, /) -> Path: ...

    def read_mask_ids(self, index: int, /) -> tuple[np.ndarray, bool]: ...


def check_masks(
    data: MaskFiles, rows: Sequence[int] | np.ndarray, what: str, *, contradictions: Contradictions = "refuse"
) -> None:
    """Compare masks with the image-level labels of their images, and each mask's size with its image's.

    Turned images are named where sizes cannot tell whether masks are too.

    Args:
        data: The data set.
        rows: The images whose masks are compared.
        what: Which images these are, for messages.
        contradictions: Whether pixels of a class that the labels deny are refused or warned of.

    Raises:
        DataError: If a mask is unreadable or does not fit its image.
        ContradictionError: As `compare_masks`.
    """
    rows = [int(row) for row in rows]
    if not rows:
        return
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(data.read_mask_ids, rows))
    files = [data.mask_file(row) for row in rows]
    held = np.stack([ids for ids, _ in found])
    labels = find_expected(data, rows, held)
    compare_masks(held, labels, classes=data.classes, files=files, what=what, contradictions=contradictions)
    warn_of_turned_images([turned for _, turned in found], files, what)


def find_expected(data: SegmentationData | MaskFiles, rows: Sequence[int], held: np.ndarray) -> np.ndarray:
    """What masks should show, by the labels of their images.

    A class that was not annotated, or that is in a set of classes, as in a box, need not have a pixel of its own.

    Args:
        data: The data set.
        rows: The images.
        held: Which values the mask of each of them holds, bool, shape (rows, 256).

    Returns:
        1 where a mask should have a pixel of a class, 0 where it should not, NaN where either may be; (rows, K).
    """
    labels = data.labels[rows]
    annotated: np.ndarray | None = getattr(data, "annotated", None)
    need_not = held[:, len(data.classes) : IGNORE_INDEX].any(axis=1, keepdims=True)
    if annotated is not None:
        need_not = need_not | ~annotated[rows]
    return np.where((labels > 0) & need_not, np.nan, labels)


def compare_masks(
    held: np.ndarray,
    labels: np.ndarray,
    *,
    classes: Sequence[str],
    files: Sequence[Path],
    what: str,
    contradictions: Contradictions = "refuse",
) -> None:
    """Compare what masks hold with the image-level labels of their images.

    Labels without a pixel are warnings with counts and files: an object may be too small to be drawn. Pixels of a class
    that the labels deny are refused, unless ``contradictions`` says otherwise: a model would be taught both. Data in
    which no mask at all agrees with its labels are always refused.

    Args:
        held: Which values each mask holds, bool, shape (N, 256).
        labels: Image-level labels, shape (N, K); NaN is unknown and contradicts nothing.
        classes: The K class names.
        files: The N masks, for messages.
        what: Which images these are, for messages.
        contradictions: Whether pixels of a class that the labels deny are refused or warned of.

    Raises:
        ContradictionError: If no mask has a pixel of a class that its labels name, and pixels of 255 or of other
            classes instead; if masks have pixels of a class that the labels deny.
    """
    if contradictions not in CONTRADICTIONS:
        raise InputError(f"contradictions must be one of {', '.join(CONTRADICTIONS)}, got {contradictions!r}")
    names = classes[BACKGROUND + 1 :]
    shown, ignored = held[:, BACKGROUND + 1 : len(classes)], held[:, IGNORE_INDEX]
    named = labels[:, BACKGROUND + 1 :] > 0
    denied, missing = find_contradictions(held, labels)
    _refuse_if_none_agrees(shown, named, denied, ignored=ignored, files=files, what=what)
    _tell_of_denied_pixels(denied, names, files, what=what, refuse=contradictions == "refuse")
    lost = ignored.any() and _find_lost_classes(shown, named).any()
    hint = f"; {_SAVE}" if lost or _find_hidden(held, labels).any() else ""
    _warn_of_missing_pixels(missing, names, files, what=what, hint=hint)


def find_contradictions(held: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which masks contradict the image-level labels, in which object classes.

    A pixel of 255 may hide an object, so a label without a pixel is certainly wrong only where the mask has no 255, and
    a pixel of a class that the labels deny always is; that 255 hides all objects of several images is not believed
    either.

    Args:
        held: Which values each mask holds, bool, shape (N, 256).
        labels: Image-level labels, shape (N, K); NaN is unknown.

    Returns:
        Where a mask has pixels of a class that the labels deny, and where it has none of one that they name; bool,
        shape (N, K - 1), without the background.
    """
    shown, ignored = held[:, BACKGROUND + 1 : labels.shape[1]], held[:, IGNORE_INDEX]
    named, denied = labels[:, BACKGROUND + 1 :] > 0, labels[:, BACKGROUND + 1 :] <= 0
    believed = ignored[:, None] & ~_find_lost_classes(shown, named) & ~_find_hidden(held, labels)[:, None]
    return shown & denied, named & ~shown & ~believed


def _refuse_if_none_agrees(
    shown: np.ndarray, named: np.ndarray, extra: np.ndarray, *, ignored: np.ndarray, files: Sequence[Path], what: str
) -> None:
    concerned = (named | extra).any(axis=1)
    first = [file for file, wanted in zip(files, concerned, strict=True) if wanted]
    if (shown & named).any():
        return
    if not shown.any() and ignored[concerned].any():
        raise ContradictionError(
            f"{what}: the labels of {len(first)} images name an object, and no mask of theirs has a pixel of one, only "
            f"values {BACKGROUND} and {IGNORE_INDEX} ({_show(first)}); {_SAVE}"
        )
    if extra.any() and len(first) > 1:
        raise ContradictionError(
            f"{what}: in none of {len(first)} images the mask has a pixel of a class that the labels name "
            f"({_show(first)}); check the order of the class list against the class ids in the masks, and the 0/1 "
            "columns of the label table"
        )
    if not (shown.any() or concerned.any()) and ignored.any():
        hidden = [file for file, wanted in zip(files, ignored, strict=True) if wanted]
        warnings.warn(
            f"{what}: no mask has a pixel of any object, and {len(hidden)} have pixels of {IGNORE_INDEX} "
            f"({_show(hidden)}); {_SAVE}",
            stacklevel=4,
        )


def _find_lost_classes(shown: np.ndarray, named: np.ndarray) -> np.ndarray:
    """Classes that are named and never shown, (K - 1,): ignored pixels may hide one, but hardly in every image."""
    lost: np.ndarray = ~shown.any(axis=0) & (named.sum(axis=0) > 1)
    return lost


def find_silent(held: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Masks that ignore pixels and show no object at all, though the labels name one; bool, (N,).

    Args:
        held: Which values each mask holds, bool, shape (N, 256).
        labels: Image-level labels, shape (N, K); NaN is unknown.
    """
    shown, named = held[:, BACKGROUND + 1 : labels.shape[1]], labels[:, BACKGROUND + 1 :] > 0
    silent: np.ndarray = held[:, IGNORE_INDEX] & named.any(axis=1) & ~shown.any(axis=1)
    return silent


def _find_hidden(held: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Masks that ignore all that the labels name, (N,), if they are many: some masks are of 0 and 255."""
    hidden, named = find_silent(held, labels), labels[:, BACKGROUND + 1 :] > 0
    return hidden & (hidden.sum() > max(1, _OFTEN * named.any(axis=1).sum()))


def _tell_of_denied_pixels(
    denied: np.ndarray, names: Sequence[str], files: Sequence[Path], *, what: str, refuse: bool
) -> None:
    wrong = [file for file, row in zip(files, denied, strict=True) if row.any()]
    if not wrong:
        return
    text = (
        f"{what}: {len(wrong)} of {len(files)} masks have pixels of a class that the labels say is not there: "
        f"{_count(denied, names)}; first {_show(wrong)}; correct the labels or the masks"
    )
    if refuse:
        raise ContradictionError(f"{text} (tw-seg data check lists all), or train on both: --data.contradictions warn")
    warnings.warn(text, stacklevel=4)


def _warn_of_missing_pixels(
    missing: np.ndarray, names: Sequence[str], files: Sequence[Path], *, what: str, hint: str
) -> None:
    wrong = [file for file, row in zip(files, missing, strict=True) if row.any()]
    if wrong:
        warnings.warn(
            f"{what}: {len(wrong)} of {len(files)} masks have no pixel of a class that the labels say is there: "
            f"{_count(missing, names)}; first {_show(wrong)}; correct the labels or the masks{hint}",
            stacklevel=4,
        )


def warn_of_turned_images(turned: Sequence[bool], files: Sequence[Path], what: str) -> None:
    """Warn of images that an EXIF tag turns at the same size: sizes do not tell whether masks are turned too."""
    wrong = [file for file, is_turned in zip(files, turned, strict=True) if is_turned]
    if wrong:
        warnings.warn(
            f"{what}: {len(wrong)} of {len(files)} images are turned by their EXIF tag 'orientation', as viewers turn "
            f"them; see that their masks are drawn on what is shown, not on the stored pixels: first {_show(wrong)}",
            stacklevel=3,
        )


def _count(wrong: np.ndarray, names: Sequence[str]) -> str:
    """How many masks are wrong in each class."""
    counts = wrong.sum(axis=0)
    return ", ".join(f"{name} in {count}" for name, count in zip(names, counts, strict=True) if count)


def _show(files: Sequence[Path]) -> str:
    return ", ".join(map(str, files[:_SHOWN])) + (", ..." if len(files) > _SHOWN else "")
