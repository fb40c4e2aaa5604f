"""Scores of predicted masks by groups of images, with intervals: what `tw-seg predict` wrote, against a folder's masks.

    python -m experiments.score_masks data/magnetic_tile runs/lrp_mask --by defect_type --resample shot_group

Every object counts as one class: a pixel is an object's or background, 255 is ignored. Of each value of the column
``by`` of ``image_labels.csv``, and of all images together: IoU, precision, recall and F1 of the pixels of all these
images (never a mean over images), and the AUROC of the largest image-level probability of an object, for these images
against those whose mask shows none. Intervals (95 %) are those of a bootstrap over the values of ``resample``, so that
pictures of one thing are drawn together; without it over images. What is undefined is left empty, so is the interval
where all pictures are of one thing.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from tw_seg.data.layouts.file_names import IMAGE_SUFFIXES
from tw_seg.data.layouts.readers import read_lines, read_mask
from tw_seg.errors import DataError
from tw_seg.types import IGNORE_INDEX

NAMES = ("IoU", "precision", "recall", "F1")
MOST_CLASSES = 255
RESAMPLES = 1000


def count_pixels(predicted: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pixels of objects that were found, painted wrongly and missed, (3,)."""
    labelled, object_, found = mask != IGNORE_INDEX, mask > 0, predicted > 0
    return np.array([(labelled & hit).sum() for hit in (object_ & found, ~object_ & found, object_ & ~found)])


def compute_scores(counts: np.ndarray) -> np.ndarray:
    """IoU, precision, recall and F1 from summed counts (..., 3), shape (..., 4); NaN where undefined."""
    hits, wrong, missed = np.moveaxis(counts.astype(float), -1, 0)
    with np.errstate(invalid="ignore"):
        return np.stack(
            [
                hits / (hits + wrong + missed),
                hits / (hits + wrong),
                hits / (hits + missed),
                2 * hits / (2 * hits + wrong + missed),
            ],
            axis=-1,
        )


def resample_scores(counts: np.ndarray, units: Sequence[str], seed: int = 0) -> np.ndarray:
    """The 95 % interval of each score, (2, 4): units are drawn with replacement, each with all its images.

    Args:
        counts: Of N images, (N, 3).
        units: What each image is drawn with, N names.
        seed: Of the draws.
    """
    names, unit_of = np.unique(np.asarray(units), return_inverse=True)
    if len(names) == 1:
        return np.full((2, len(NAMES)), np.nan)
    sums = np.zeros((len(names), 3))
    np.add.at(sums, unit_of, counts)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    scores = compute_scores(drawn @ sums)
    defined = ~np.isnan(scores).all(axis=0)
    found = np.full((2, len(NAMES)), np.nan)
    found[:, defined] = np.nanpercentile(scores[:, defined], [2.5, 97.5], axis=0)
    return found


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file that has a column ``image``."""
    lines = read_lines(path)
    reader = csv.DictReader(lines)
    if "image" not in (reader.fieldnames or ()):
        raise DataError(f"{path}: expected a column 'image' and commas between columns, found {lines[:1]}")
    return list(reader)


def find_name(entry: str) -> str:
    """The name of an image in the column ``image``, which may have its file's suffix."""
    return Path(entry).stem if Path(entry).suffix.lower() in IMAGE_SUFFIXES else entry


def read_column(rows: list[dict[str, str]], name: str | None, path: Path) -> list[str]:
    """A column of a table; of no name, one empty text for each row."""
    if name is not None and name not in rows[0]:
        raise DataError(f"{path}: no column {name!r}; found {', '.join(rows[0])}")
    return [row[name] if name else "" for row in rows]


def score(root: Path, run: Path, *, split: str, by: str | None, resample: str | None) -> list[list[str]]:
    """The rows of the table for one run: run, group, images, units of the bootstrap, four scores, AUROC."""
    table = root / "image_labels.csv"
    rows = [row for row in read_table(table) if row.get("split", split) == split]
    rows = [row for row in rows if (root / "masks" / f"{find_name(row['image'])}.png").is_file()]
    if not rows:
        raise DataError(f"{table}: no image of the split {split!r} has a mask in {root / 'masks'}; check --split")
    names = [find_name(row["image"]) for row in rows]
    counts, shown = [], []
    for name in names:
        mask = read_mask(root / "masks" / f"{name}.png", num_classes=MOST_CLASSES)
        predicted = read_mask(run / "predictions" / "masks" / f"{name}.png", num_classes=MOST_CLASSES, shape=mask.shape)
        counts.append(count_pixels(predicted, mask))
        shown.append(((mask > 0) & (mask != IGNORE_INDEX)).any())
    table_of_run = read_table(run / "predictions" / "images.csv")
    scores = {key for key in table_of_run[0] if key.startswith("probability/")} - {"probability/background"}
    probabilities = {row["image"]: max(float(row[key]) for key in scores) for row in table_of_run}
    if lacking := [name for name in names if name not in probabilities]:
        raise DataError(
            f"{run / 'predictions' / 'images.csv'}: no row for the image {lacking[0]!r}, which has a mask; run "
            "`tw-seg predict` on the same split"
        )
    likely = np.array([probabilities[name] for name in names])
    groups = np.array(read_column(rows, by, table))
    units = np.array(read_column(rows, resample, table) if resample else names)
    found = []
    for group in (*sorted(set(groups) - {""}), "all"):
        chosen = np.ones(len(rows), dtype=bool) if group == "all" else groups == group
        found.append(
            [
                run.name,
                group,
                str(chosen.sum()),
                str(len(set(units[chosen]))),
                *_describe(np.array(counts)[chosen], units[chosen]),
                _compare(likely, np.array(shown), chosen),
            ]
        )
    return found


def _describe(counts: np.ndarray, units: np.ndarray) -> list[str]:
    values, (low, high) = compute_scores(counts.sum(axis=0)), resample_scores(counts, list(units))
    return [
        ("" if np.isnan(value) else f"{value:.3f}") + ("" if np.isnan(bottom) else f" ({bottom:.3f} to {top:.3f})")
        for value, bottom, top in zip(values, low, high, strict=True)
    ]


def _compare(likely: np.ndarray, shown: np.ndarray, chosen: np.ndarray) -> str:
    """AUROC of the chosen images that show an object against all that show none."""
    compared = (chosen & shown) | ~shown
    return f"{roc_auc_score(shown[compared], likely[compared]):.3f}" if len(set(shown[compared])) == 2 else ""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with masks/ and image_labels.csv")
    parser.add_argument("runs", type=Path, nargs="+", help="run directories of `tw-seg predict`")
    parser.add_argument("--split", default="val", help="value of the column split")
    parser.add_argument("--by", help="column whose values are scored apart")
    parser.add_argument("--resample", help="column whose values are drawn in the bootstrap")
    given = parser.parse_args(argv)
    header = ["run", given.by or "images of", "images", given.resample or "drawn", *NAMES, "AUROC"]
    lines = [header, ["---"] * len(header)]
    for run in given.runs:
        lines += score(given.root, run, split=given.split, by=given.by, resample=given.resample)
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))


if __name__ == "__main__":
    main()
