"""Draws what 20 and 5 masks of DigitScenes were worth, step by step, from ``digits_h100.csv``.

python -m experiments.label_efficiency.draw --output picture.png

Curves are means over the seeds, bands reach from the least to the greatest.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from tw_seg.files import write_whole

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

TABLE = Path(__file__).parent / "digits_h100.csv"
MODELS = {"heatmap": "heatmap segmenter", "multi-task U-Net": "multi-task U-Net"}
SHARED = {"heatmap": "heatmap, share_offset"}  # what the heatmap segmenter is called where classes have no mask
COLOURS = {"heatmap": "tab:orange", "multi-task U-Net": "tab:blue"}
SEEN, UNSEEN = [str(k) for k in range(5)], [str(k) for k in range(5, 10)]


def main(args: Sequence[str] | None = None) -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    options = parser.parse_args(args)
    figure = draw(read_table(TABLE))
    write_whole(options.output, lambda draft: figure.savefig(draft, dpi=110, format="png"))
    plt.close(figure)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of validation."""
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["split"] == "val"]


def draw(rows: Sequence[dict[str, str]]) -> plt.Figure:
    """Two panels: all classes have masks, and half of them never have one; means over seeds and their range."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for model, title in MODELS.items():
        for masks, style in (("20", "-"), ("5", "--")):
            chosen = [r for r in rows if (r["model"], r["masks"], r["classes_in_masks"]) == (model, masks, "all")]
            _curve(left, chosen, ["miou"], f"{title}, {masks} masks", COLOURS[model], style)
        name = SHARED.get(model, model)
        chosen = [r for r in rows if (r["model"], r["classes_in_masks"]) == (name, "0-4")]
        for classes, what, style in ((SEEN, "with masks", "-"), (UNSEEN, "never a mask", ":")):
            _curve(right, chosen, classes, f"{title}, {what}", COLOURS[model], style)
    left.set_title("Every class has masks")
    right.set_title("20 masks that show digits 0 to 4 only")
    left.set_ylabel("mean IoU on val")
    for axis in (left, right):
        axis.set(xlabel="training step", ylim=(-0.02, 0.8), xlim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right" if axis is left else "center right")
    figure.tight_layout()
    return figure


def _curve(
    axis: Axes, rows: Sequence[dict[str, str]], columns: Sequence[str], label: str, colour: str, style: str
) -> None:
    """Mean over the seeds at each step that all of them have, and the range from the least to the greatest."""
    seeds = sorted({row["seed"] for row in rows})
    scores = {(int(r["step"]), r["seed"]): float(np.mean([float(r[name]) for name in columns])) for r in rows}
    steps = [k for k in sorted({step for step, _ in scores}) if all((k, seed) in scores for seed in seeds)]
    values = np.array([[scores[step, seed] for seed in seeds] for step in steps])
    axis.plot(steps, values.mean(1), style, color=colour, label=label)
    axis.fill_between(steps, values.min(1), values.max(1), color=colour, alpha=0.15, linewidth=0)


if __name__ == "__main__":
    main()
