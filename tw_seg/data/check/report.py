"""The report on a data set: all that was counted and found, as text for a terminal and as JSON."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tw_seg.data.check.contradictions import find_disagreements, find_turned
from tw_seg.data.check.findings import KINDS, Finding, ImageName, Severity, sort_findings
from tw_seg.data.check.problems import (
    TRAIN,
    describe_repeats,
    find_imbalance,
    find_leaks,
    find_mixed_channels,
    list_groups,
)
from tw_seg.data.check.scan import ImageFacts, Track, scan_images, track_nothing
from tw_seg.data.check.suggest import suggest_budget, suggest_split
from tw_seg.data.check.supervision import KINDS as SUPERVISION
from tw_seg.data.check.supervision import SplitCount, count_split, find_images, measure_channels
from tw_seg.data.check.table import format_table
from tw_seg.data.dataset import SegmentationData
from tw_seg.data.grouping.group_column import group_by_column
from tw_seg.data.grouping.join import join_groups
from tw_seg.data.grouping.near_duplicates import group_near_duplicates
from tw_seg.data.layouts.pixels import RGB, PixelFormat
from tw_seg.data.opening import open_splits
from tw_seg.errors import DataError
from tw_seg.printable import make_printable

_SHOWN = 10  # warnings and notes of a kind; errors are shown all


@dataclass(frozen=True)
class CheckReport:
    """What a check counted and found.

    Attributes:
        source: Where the data set is, its layout and its further arguments, and how its images are read.
        classes: The class names.
        splits: What each split holds, by its name.
        channels: How many images have how many channels; 1 is grey.
        mean: Of each channel of the training images, of values in [0, 1]; empty if they are not alike.
        std: The same.
        groups: The groups of near-duplicates.
        findings: All findings, the worst first.
        suggestions: What to do next.
    """

    source: dict[str, Any]
    classes: tuple[str, ...]
    splits: dict[str, SplitCount]
    channels: dict[int, int]
    mean: list[float]
    std: list[float]
    groups: list[tuple[ImageName, ...]]
    findings: list[Finding]
    suggestions: list[str]

    def count(self, severity: Severity) -> int:
        """How many findings there are of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def to_json(self) -> str:
        """All of it as JSON."""
        content = asdict(self)
        content["findings"] = [{"severity": finding.severity, **asdict(finding)} for finding in self.findings]
        return json.dumps(content, indent=1, ensure_ascii=False)

    def format_config(self) -> str:
        """The lines of a config that the data set needs, as YAML."""
        data: dict[str, Any] = {"dataset": self.source["layout"]}
        data["dataset_kwargs"] = {"root": self.source["root"], **self.source["dataset_kwargs"]}
        data["channels"] = self.source["channels"]
        if self.source["value_range"] is not None:
            data["value_range"] = list(self.source["value_range"])
        if self.mean:
            data |= {"mean": [round(value, 4) for value in self.mean], "std": [round(value, 4) for value in self.std]}
        return yaml.safe_dump({"data": data}, sort_keys=False, default_flow_style=None, allow_unicode=True)

    def format_text(self) -> str:
        """All of it as text, with every error and the first few warnings and notes of each kind."""
        parts = []
        if self.splits:
            tables = [_format_splits(self.splits), _format_classes(self.classes, self.splits)]
            parts = [*tables, _format_channels(self.channels)]
        parts += [f"config:\n{self.format_config()}".rstrip()]
        for kind, (severity, title) in KINDS.items():
            texts = [make_printable(finding.text) for finding in self.findings if finding.kind == kind]
            if texts:
                shown = texts if severity == "error" else texts[:_SHOWN]
                more = [] if len(shown) == len(texts) else [f"... and {len(texts) - len(shown)} more, all with --json"]
                parts.append("\n  ".join([f"{severity}: {title} ({len(texts)}):", *shown, *more]))
        parts += ["\n  ".join(["next:", *self.suggestions])] if self.suggestions else []
        parts.append(f"{self.count('error')} errors, {self.count('warning')} warnings")
        return "\n\n".join(parts)


@dataclass(frozen=True)
class CheckResult:
    """A report, and the data sets that it is about."""

    report: CheckReport
    splits: dict[str, SegmentationData]


def check_data(
    root: Path,
    layout: str,
    dataset_kwargs: Mapping[str, Any] | None = None,
    *,
    pixels: PixelFormat = RGB,
    group_column: str | None = None,
    table: Path | None = None,
    track: Track = track_nothing,
) -> CheckResult:
    """Read a whole data set once and say what is in it and what is wrong.

    Args:
        root: Where it is.
        layout: A name in `tw_seg.data.DATASETS`.
        dataset_kwargs: Its further arguments.
        pixels: How its images are read.
        group_column: Column of a table by which images belong together; groups in several splits are then errors.
        table: The table; by default ``image_labels.csv`` in ``root``.
        track: Sees each image pass.

    Raises:
        InputError: For another layout or arguments that it does not have.
    """
    findings: list[Finding] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        splits = open_splits(
            root,
            layout,
            dataset_kwargs,
            pixels=pixels,
            on_error=lambda error: findings.append(Finding("list", str(error))),
        )
        splits = {name: data for name, data in splits.items() if len(data)}
        facts, unread = scan_images(splits, track)
    findings += [*unread, *(Finding("files", str(warning.message)) for warning in caught)]

    images = {split: found for split, found in find_images(facts, splits).items() if found}
    counts = {split: count_split(found, splits[split]) for split, found in images.items()}
    for split, found in images.items():
        findings += [*find_disagreements(split, found, splits[split]), *find_turned(split, found)]
    findings += [*find_imbalance(counts), *find_mixed_channels(facts)]

    names = [(fact.split, fact.name) for fact in facts]
    hashes = np.stack([fact.hashes for fact in facts]) if facts else np.empty((0, 8, 3), dtype=np.uint64)
    group_of = group_near_duplicates(hashes)
    groups = list_groups(names, group_of)
    findings += [*find_leaks(groups, "duplicates", "near-duplicates"), *describe_repeats(groups)]
    if group_column is not None:
        column = _group_by_column(names, table or root / "image_labels.csv", group_column, findings)
        findings += find_leaks(list_groups(names, column), "group", f"a group of the column {group_column!r}")
        group_of = join_groups(group_of, column)

    findings = sort_findings(findings)
    source = {"root": str(root), "layout": layout, "dataset_kwargs": dict(dataset_kwargs or {}), **asdict(pixels)}
    train = TRAIN if TRAIN in images else next(iter(images), None)
    report = CheckReport(
        source=source,
        classes=next(iter(splits.values())).classes if splits else (),
        splits=counts,
        channels=_count_channels(facts),
        **_measure(images[train] if train else []),
        groups=groups,
        findings=findings,
        suggestions=_suggest(
            splits, images, group_of, findings, arguments=_format_arguments(source, pixels, group_column)
        ),
    )
    return CheckResult(report, splits)


def _group_by_column(names: Sequence[ImageName], table: Path, column: str, findings: list[Finding]) -> np.ndarray:
    try:
        return group_by_column(table, column, [name for _, name in names])
    except DataError as error:
        findings.append(Finding("list", str(error)))
        return np.arange(len(names))


def _count_channels(facts: Sequence[ImageFacts]) -> dict[int, int]:
    channels = [fact.channels for fact in facts]
    return {number: channels.count(number) for number in sorted(set(channels))}


def _measure(facts: Sequence[ImageFacts]) -> dict[str, list[float]]:
    if len({len(fact.mean) for fact in facts}) != 1:
        return {"mean": [], "std": []}
    mean, std = measure_channels(facts)
    return {"mean": mean, "std": std}


def _format_arguments(source: Mapping[str, Any], pixels: PixelFormat, group_column: str | None) -> str:
    """The arguments that mean this data set to the other commands."""
    arguments = [source["root"], "--layout", source["layout"]]
    if source["dataset_kwargs"]:
        text = yaml.safe_dump(source["dataset_kwargs"], default_flow_style=True, sort_keys=False, width=10_000)
        arguments += ["--dataset_kwargs", text.strip()]
    if pixels.channels != RGB.channels:
        arguments += ["--channels", str(pixels.channels)]
    if pixels.value_range is not None:
        arguments += ["--value_range", str(list(pixels.value_range))]
    if group_column is not None:
        arguments += ["--group_column", group_column]
    return shlex.join(arguments)


def _suggest(
    splits: Mapping[str, SegmentationData],
    images: Mapping[str, Sequence[ImageFacts]],
    group_of: np.ndarray,
    findings: Sequence[Finding],
    *,
    arguments: str,
) -> list[str]:
    broken = any(finding.severity == "error" for finding in findings)
    suggestions: list[str | None] = ["correct the errors, and check again"] if broken else []
    suggestions += [suggest_split(splits, findings, arguments)] if images else []
    if TRAIN in images:
        facts = [fact for found in images.values() for fact in found]
        chosen = [i for i, fact in enumerate(facts) if fact.split == TRAIN and fact.pixels is not None]
        rows = [facts[i].index for i in chosen]
        suggestions.append(suggest_budget(splits[TRAIN], rows, group_of[chosen], arguments))
    return [text for text in suggestions if text is not None]


def _format_splits(splits: Mapping[str, SplitCount]) -> str:
    counts = list(splits.values())
    lines = [["", *splits], ["images", *(str(count.images) for count in counts)]]
    lines += [["with a mask", *(str(count.masks) for count in counts)]]
    for place, name in enumerate(("smallest", "largest")):
        lines.append([f"{name}, height x width", *("x".join(map(str, count.sizes[place])) for count in counts)])
    for kind, meaning in SUPERVISION.items():
        if any(kind in count.supervision for count in counts):
            lines.append([meaning, *(str(count.supervision.get(kind, 0)) for count in counts)])
    return format_table(lines)


def _format_channels(channels: Mapping[int, int]) -> str:
    return "channels: " + ", ".join(f"{_spell(number)} in {count} images" for number, count in channels.items())


def _spell(channels: int) -> str:
    return "1 (grey)" if channels == 1 else str(channels)


def _format_classes(classes: Sequence[str], splits: Mapping[str, SplitCount]) -> str:
    unknown = any(found.unknown for count in splits.values() for found in count.classes.values())
    columns = ["images", *(["unknown"] if unknown else []), "masks", "pixels"]
    lines = [["class", *(f"{split}: {column}" for split in splits for column in columns)]]
    for name in classes:
        line = [name]
        for count in splits.values():
            found = count.classes[name]
            numbers = [str(found.positive), *([str(found.unknown)] if unknown else []), str(found.masks)]
            line += [*numbers, f"{found.share:.2%}"]
        lines.append(line)
    return format_table(lines)
