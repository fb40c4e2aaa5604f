"""Findings about the data set as a whole: groups across splits, classes that are rare, channels that differ."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tw_seg.data.check.findings import Finding, ImageName
from tw_seg.data.check.scan import ImageFacts
from tw_seg.data.check.supervision import SplitCount
from tw_seg.data.layouts.file_names import show_names
from tw_seg.types import BACKGROUND

TRAIN = "train"
_RATIO = 20  # between the images of the commonest class and of the rarest


def list_groups(names: Sequence[ImageName], groups: np.ndarray) -> list[tuple[ImageName, ...]]:
    """The groups of several images, in the order of their first ones."""
    members: dict[int, list[ImageName]] = defaultdict(list)
    for name, group in zip(names, groups.tolist(), strict=True):
        members[group].append(name)
    return [tuple(found) for found in members.values() if len(found) > 1]


def find_leaks(groups: Sequence[tuple[ImageName, ...]], kind: str, what: str) -> list[Finding]:
    """A finding for each group with images in several splits, whose scores are then those of images trained on.

    Args:
        groups: Groups of images.
        kind: The kind of the findings.
        what: What a group is, for messages.
    """
    return [
        Finding(kind, f"{what} in {_join(group)}: {_show(group)}", group)
        for group in groups
        if len({split for split, _ in group}) > 1
    ]


def describe_repeats(groups: Sequence[tuple[ImageName, ...]]) -> list[Finding]:
    """One finding about the groups that lie within a split."""
    inside = [group for group in groups if len({split for split, _ in group}) == 1]
    if not inside:
        return []
    images = sum(map(len, inside))
    largest = max(inside, key=len)
    text = (
        f"{len(inside)} groups of near-duplicates hold {images} images (the largest: {_show(largest)}): "
        "a budget by tw-seg data budget chooses one of each"
    )
    return [Finding("repeated", text, largest)]


def find_imbalance(counts: Mapping[str, SplitCount]) -> Iterator[Finding]:
    """Classes that a split lacks, or that are far rarer than others."""
    for split, count in counts.items():
        objects = dict(list(count.classes.items())[BACKGROUND + 1 :])
        absent = [name for name, found in objects.items() if not found.positive]
        if absent:
            yield Finding("balance", f"no image of {split} shows {show_names(absent)} ({len(absent)} classes)")
        if not count.masks:
            yield Finding("balance", f"no image of {split} has a mask")
            continue
        hidden = [name for name, found in objects.items() if found.positive and not found.masks]
        if hidden:
            yield Finding("balance", f"no mask of {split} shows {show_names(hidden)} ({len(hidden)} classes)")
        known = [(found.positive, name) for name, found in objects.items() if found.positive]
        if split == TRAIN and known and max(known)[0] > _RATIO * min(known)[0]:
            (most, often), (least, rarely) = max(known), min(known)
            yield Finding("balance", f"{often} is in {most} images of {split}, {rarely} in {least}")


def find_mixed_channels(facts: Sequence[ImageFacts]) -> list[Finding]:
    """Images of several numbers of channels."""
    counts = Counter(fact.channels for fact in facts)
    if len(counts) < 2:
        return []
    rare = min(counts, key=lambda channels: (counts[channels], channels))
    images = tuple((fact.split, fact.name) for fact in facts if fact.channels == rare)
    text = ", ".join(f"{count} images with {_spell(channels)}" for channels, count in sorted(counts.items()))
    return [Finding("channels", f"{text}; {_spell(rare)}: {_show(images)}", images)]


def _spell(channels: int) -> str:
    return "1 channel (grey)" if channels == 1 else f"{channels} channels"


def _join(group: tuple[ImageName, ...]) -> str:
    return " and ".join(sorted({split for split, _ in group}))


def _show(images: Sequence[ImageName]) -> str:
    return show_names([f"{split}/{name}" for split, name in images])
