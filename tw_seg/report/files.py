"""The files of a report: an HTML page for people, CSV for spreadsheets, JSON for programs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tw_seg.files import write_text, write_whole
from tw_seg.report.evaluation import PER_CLASS, Evaluation, Results, Score
from tw_seg.report.page import Shown, render_page

PAGE, CLASSES, IMAGES, SCORES = "report.html", "classes.csv", "images.csv", "report.json"


def write_report(
    folder: Path,
    evaluation: Evaluation,
    results: Results,
    *,
    title: str,
    facts: Mapping[str, object],
    shown: Mapping[str, Shown],
    show: int,
) -> None:
    """Write a report, each file whole; the arguments are those of `tw_seg.report.page.render_page`.

    ``classes.csv`` has a row for each class, ``images.csv`` one for each image with a mask, ``report.json`` all scores.
    """
    page = render_page(evaluation, results, title=title, facts=facts, shown=shown, show=show)
    write_text(folder / PAGE, page)
    _write_csv(folder / CLASSES, _list_classes(evaluation, results))
    names = [evaluation.names[row] for row in evaluation.masked]
    rows = zip(names, results.image_miou.tolist(), results.lost_miou.tolist(), strict=True)
    _write_csv(folder / IMAGES, [["image", "miou", "lost_miou"], *([name, *map(_cell, two)] for name, *two in rows)])
    content = {
        "facts": dict(facts),
        "classes": list(evaluation.classes),
        "overall": {name: _plain(score) for name, score in results.overall.items()},
        "per_class": {name: [_plain(score) for score in scores] for name, scores in results.per_class.items()},
        "confusion": results.confusion.tolist(),
    }
    write_text(folder / SCORES, json.dumps(content, indent=2) + "\n")


def _list_classes(evaluation: Evaluation, results: Results) -> list[list[Any]]:
    header = ["class", *(f"{name}{end}" for name in PER_CLASS for end in ("", "_low", "_high")), "pixels"]
    rows: list[list[Any]] = [header]
    for k, name in enumerate(evaluation.classes):
        cells = [_cell(value) for key in PER_CLASS for value in results.per_class[key][k]]
        rows.append([name, *cells, int(results.confusion[k].sum())])
    return rows


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    def write(draft: Path) -> None:
        with open(draft, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows(rows)

    write_whole(path, write)


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"


def _plain(score: Score) -> dict[str, float | None]:
    """JSON knows no NaN."""
    return {name: None if math.isnan(value) else value for name, value in score._asdict().items()}
