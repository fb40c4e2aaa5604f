"""Findings about masks and labels that do not agree."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from tw_seg.data.check.findings import Finding
from tw_seg.data.check.scan import ImageFacts
from tw_seg.data.consistency import MaskFiles, compare_masks, find_contradictions, find_expected, find_silent
from tw_seg.data.dataset import SegmentationData
from tw_seg.data.layouts.file_names import show_names
from tw_seg.errors import ContradictionError
from tw_seg.types import BACKGROUND, IGNORE_INDEX


def find_disagreements(split: str, facts: Sequence[ImageFacts], data: SegmentationData) -> list[Finding]:
    """A finding for each mask of a split that contradicts the labels of its image, or one for all of them.

    Args:
        split: The name of the split.
        facts: Its images that can be read.
        data: The data set.
    """
    masked = [fact for fact in facts if fact.pixels is not None]
    if not masked:
        return []
    rows = [fact.index for fact in masked]
    held = np.stack([fact.pixels for fact in masked if fact.pixels is not None]) > 0
    labels = find_expected(data, rows, held)
    denied, missing = find_contradictions(held, labels)
    files = [_find_file(data, row) for row in rows]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            compare_masks(
                held, labels, classes=data.classes, files=files, what=f"masks of {split}", contradictions="warn"
            )
    except ContradictionError as error:
        concerned = denied | (labels[:, BACKGROUND + 1 :] > 0)
        images = [(split, fact.name) for fact, row in zip(masked, concerned, strict=True) if row.any()]
        return [Finding("refused", str(error), tuple(images))]
    hidden = [Finding("missing", str(w.message), ()) for w in caught if "no mask has a pixel of any" in str(w.message)]
    wrong = _describe(split, masked, data, files=files, denied=denied, missing=missing)
    silent = find_silent(held, labels) & ~missing.any(axis=1)
    return [*hidden, *wrong, *_describe_silent(split, masked, files, silent)]


def _describe_silent(
    split: str, facts: Sequence[ImageFacts], files: Sequence[Path], silent: np.ndarray
) -> Iterator[Finding]:
    """One finding about masks whose 255 may hide every object of the image, or be an object saved as 255."""
    if silent.any():
        names = show_names([str(file) for file, is_silent in zip(files, silent, strict=True) if is_silent])
        text = (
            f"{names}: pixels of {IGNORE_INDEX} ('ignore') and none of an object that the labels name "
            f"({silent.sum()} of {len(files)} masks of {split}); fine where they hide it, but an object saved as "
            f"{IGNORE_INDEX} is not learned"
        )
        images = tuple((split, fact.name) for fact, is_silent in zip(facts, silent, strict=True) if is_silent)
        yield Finding("ignored", text, images)


def find_turned(split: str, facts: Sequence[ImageFacts]) -> list[Finding]:
    """One finding about the images of a split that viewers turn, and of which sizes do not tell if masks are too."""
    images = tuple((split, fact.name) for fact in facts if fact.turned)
    if not images:
        return []
    text = (
        f"{len(images)} images of {split} are turned by their EXIF tag 'orientation', as viewers turn them; see that "
        f"their masks are drawn on what is shown, not on the stored pixels: {show_names([name for _, name in images])}"
    )
    return [Finding("turned", text, images)]


def _find_file(data: SegmentationData, row: int) -> Path:
    return data.mask_file(row) if isinstance(data, MaskFiles) else Path(data.names[row])


def _describe(
    split: str,
    facts: Sequence[ImageFacts],
    data: SegmentationData,
    *,
    files: Sequence[Path],
    denied: np.ndarray,
    missing: np.ndarray,
) -> Iterator[Finding]:
    names = np.array(data.classes[BACKGROUND + 1 :], dtype=object)
    for fact, file, no, lost in zip(facts, files, denied, missing, strict=True):
        image = ((split, fact.name),)
        if no.any():
            shown = ", ".join(names[no])
            yield Finding("denied", f"{file}: the mask shows {shown}, which the labels say is not there", image)
        if lost.any():
            text = f"{file}: the labels name {', '.join(names[lost])}, of which the mask has no pixel"
            yield Finding("missing", text, image)
