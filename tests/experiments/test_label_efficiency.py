"""The picture of label efficiency shows the means of the table's numbers, for all runs of its title."""

from __future__ import annotations

import csv
import statistics

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from experiments.label_efficiency.draw import TABLE, draw, main, read_table


def mean_of_runs(masks: str, step: str, model: str, classes: str, columns: list[str]) -> float:
    """Found from the table by other means than the script's."""
    with open(TABLE, newline="", encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["split"] == "val" and (r["masks"], r["step"]) == (masks, step)]
    rows = [r for r in rows if r["model"] == model and r["classes_in_masks"] == classes]
    assert len(rows) == 3
    return statistics.fmean(statistics.fmean(float(row[name]) for name in columns) for row in rows)


def test_the_curves_are_the_means() -> None:
    figure = draw(read_table(TABLE))
    curves = {line.get_label(): line for axis in figure.axes for line in axis.get_lines()}
    expected = {
        "heatmap segmenter, 5 masks": mean_of_runs("5", "1600", "heatmap", "all", ["miou"]),
        "multi-task U-Net, 20 masks": mean_of_runs("20", "1600", "multi-task U-Net", "all", ["miou"]),
        "heatmap segmenter, never a mask": mean_of_runs("20", "1600", "heatmap, share_offset", "0-4", list("56789")),
    }
    for label, score in expected.items():
        assert curves[label].get_xdata()[-1] == 1600
        np.testing.assert_allclose(curves[label].get_ydata()[-1], score, rtol=1e-6)
    assert len(curves) == 8
    plt.close(figure)


def test_the_picture_is_written(tmp_path) -> None:
    main(["--output", str(tmp_path / "digits.png")])
    with Image.open(tmp_path / "digits.png") as picture:
        assert picture.size[0] > 1000
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["digits.png"]
