"""Masks against image-level labels: two statements about the same images, compared once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from tw_seg.errors import DataError
from tw_seg.types import BACKGROUND, IGNORE_INDEX

_SHOWN = 3
_OFTEN = 0.05  # of the images that show an object
_SAVE = (
    f"{IGNORE_INDEX} means 'ignore', so an object that is saved as {IGNORE_INDEX} is never learned: save it as its "
    "class id, 1 for the first class"
)


@runtime_checkable
class MaskFiles(Protocol):
    """A data set whose masks can be read without their images, as those on disk can.

    It may also have ``annotated``, see `tw_seg.data.dataset.SegmentationData`.
    """

    classes: tuple[str, ...]
    labels: np.ndarray

    def mask_file(self, index: int, /) -> Path: ...

    def read_mask_ids(self, index: int, /) -> tuple[np.ndarray, bool]: ...


def check_masks(data: MaskFiles, rows: Sequence[int] | np.ndarray, what: str) -> None:
    """Compare masks with the image-level labels of their images, and each mask's size with its image's.

    A pixel of 255 may hide an object, so a label without a pixel is certainly wrong only where the mask has no 255, and
    a pixel without its label always is; that 255 hides all objects of several images is not believed either. Single
    contradictions are warnings with counts and files. Where no mask at all agrees with its labels, the data are
    refused. Turned images are named where sizes cannot tell whether masks are too.

    Args:
        data: The data set.
        rows: The images whose masks are compared.
        what: Which images these are, for messages.

    Raises:
        DataError: If a mask is unreadable or does not fit its image; if no mask has a pixel of a class that its labels
            name, and pixels of 255 or of other classes instead.
    """
    rows = [int(row) for row in rows]
    if not rows:
        return
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(data.read_mask_ids, rows))
    objects = slice(BACKGROUND + 1, len(data.classes))
    held = np.stack([ids for ids, _ in found])
    shown, ignored = held[:, objects], held[:, IGNORE_INDEX]
    labels = data.labels[rows][:, objects]
    named, denied = labels > 0, labels <= 0  # neither where nobody knows (NaN)
    # A class that was not annotated, or that is in a set of classes, as in a box, need not have a pixel of its own.
    annotated = getattr(data, "annotated", None)
    named &= True if annotated is None else annotated[rows][:, objects]
    named &= ~held[:, len(data.classes) : IGNORE_INDEX].any(axis=1, keepdims=True)
    files = [data.mask_file(row) for row in rows]
    _refuse_if_none_agrees(shown, named, shown & denied, ignored=ignored, files=files, what=what)
    names = data.classes[objects]
    _warn_of_unlabelled_pixels(shown & denied, names, files, what)
    _warn_of_missing_pixels(shown, named, ignored, names=names, files=files, what=what)
    _warn_of_turned_images([turned for _, turned in found], files, what)


def _refuse_if_none_agrees(
    shown: np.ndarray, named: np.ndarray, extra: np.ndarray, *, ignored: np.ndarray, files: Sequence[Path], what: str
) -> None:
    concerned = (named | extra).any(axis=1)
    first = [file for file, wanted in zip(files, concerned, strict=True) if wanted]
    if (shown & named).any():
        return
    if not shown.any() and ignored[concerned].any():
        raise DataError(
            f"{what}: the labels of {len(first)} images name an object, and no mask of theirs has a pixel of one, only "
            f"values {BACKGROUND} and {IGNORE_INDEX} ({_show(first)}); {_SAVE}"
        )
    if extra.any() and len(first) > 1:
        raise DataError(
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


def _warn_of_unlabelled_pixels(extra: np.ndarray, names: Sequence[str], files: Sequence[Path], what: str) -> None:
    wrong = [file for file, row in zip(files, extra, strict=True) if row.any()]
    if wrong:
        warnings.warn(
            f"{what}: {len(wrong)} of {len(files)} masks have pixels of a class that the labels say is not there: "
            f"{_count(extra, names)}; first {_show(wrong)}; correct the labels or the masks",
            stacklevel=3,
        )


def _warn_of_missing_pixels(
    shown: np.ndarray,
    named: np.ndarray,
    ignored: np.ndarray,
    *,
    names: Sequence[str],
    files: Sequence[Path],
    what: str,
) -> None:
    missing = named & ~shown
    # Ignored pixels may hide an object, but hardly the same class in every image.
    never = ~shown.any(axis=0) & (named.sum(axis=0) > 1)
    # All that the labels name may be ignored in an image, but hardly in many: some masks are of 0 and 255.
    empty = ignored & named.any(axis=1) & ~shown.any(axis=1)
    empty &= empty.sum() > max(1, _OFTEN * named.any(axis=1).sum())
    missing &= ~ignored[:, None] | never | empty[:, None]
    wrong = [file for file, row in zip(files, missing, strict=True) if row.any()]
    if wrong:
        hint = f"; {_SAVE}" if (ignored.any() and never.any()) or empty.any() else ""
        warnings.warn(
            f"{what}: {len(wrong)} of {len(files)} masks have no pixel of a class that the labels say is there: "
            f"{_count(missing, names)}; first {_show(wrong)}; correct the labels or the masks{hint}",
            stacklevel=3,
        )


def _warn_of_turned_images(turned: Sequence[bool], files: Sequence[Path], what: str) -> None:
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
