"""Which score finds the masks that are not good enough? Fitted on val, judged on other images, also changed ones.

    python -m experiments.reliability.compare runs/unet/checkpoints/best.ckpt --output runs/reliability/unet

Every row is a score of `tw_seg.explain.reliability` on some of the features, fitted in the same way on val alone: the
maximum softmax, the entropy, the soft Dice, the agreement under test-time augmentation and Monte Carlo dropout, and the
sets "output", "cheap" and "full" (MiSuRe). Images for the judgement are those of test, or a half of val where there
is no other split, which then leaves the fit; in each shift they are blurred, noisy or of other colours.

What is measured of the images goes into the folder, one file for each split and shift, and is not measured again by the
same command; `results.csv` has a line for each shift and score.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from tw_seg.errors import InputError
from tw_seg.explain.reliability.features import FEATURE_SETS, GROUPS, list_features
from tw_seg.explain.reliability.judge import Judged, judge_predictions
from tw_seg.explain.reliability.measures import (
    compare_detection,
    measure_calibration_error,
    measure_detection,
    trace_risk,
)
from tw_seg.explain.reliability.region_features import RegionOptions
from tw_seg.explain.reliability.score import ReliabilityScore, fit_score
from tw_seg.files import write_text, write_whole
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.task import SegmentationTask

COLUMNS = ("shift", "score", "images", "bad", "AUROC", "AUPR", "risk", "ECE", "AUROC - entropy", "low", "high")
ALONE = {
    "maximum softmax": ("max_probability",),
    "entropy": ("entropy",),
    "soft Dice": ("soft_dice", "empty"),
    "test-time augmentation": GROUPS["augmentation"],
    "MC dropout": GROUPS["dropout"],
}
"""The features of the scores that are compared with, by name."""


def blur(images: Tensor) -> Tensor:
    sigma = min(images.shape[-2:]) / 48
    radius = round(3 * sigma)
    return gaussian_blur(images, [2 * radius + 1] * 2, [sigma] * 2)


def add_noise(images: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return images + 0.4 * torch.randn(images.shape, generator=generator).to(images)


def recolor(images: Tensor) -> Tensor:
    """Other gains and offsets of the channels."""
    gain = torch.tensor([0.6, 1.0, 1.3]).to(images)[:, None, None]
    return gain * images + torch.tensor([0.4, 0.0, -0.4]).to(images)[:, None, None]


SHIFTS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "blur": blur,
    "noise": add_noise,
    "colour": recolor,
}
"""What happens to the normalised images, (N, 3, H, W)."""


def main(args: Sequence[str] | None = None) -> int:
    """Measure, fit, judge; the exit status."""
    parser = argparse.ArgumentParser(
        "python -m experiments.reliability.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="of a model that makes masks")
    parser.add_argument("--min_dice", type=float, help="what is good enough; by default the median of val")
    parser.add_argument("--halves", action="store_true", help="judge on a half of val, and fit on the other")
    parser.add_argument("--images", type=int, help="so many images of each split at most")
    parser.add_argument("--shifts", nargs="+", choices=SHIFTS, default=list(SHIFTS), help="what happens to the images")
    parser.add_argument("--no_regions", action="store_true", help="leave out MiSuRe, which takes nearly all the time")
    parser.add_argument("--steps", type=int, default=20, help="of the search for minimal regions")
    parser.add_argument("--output", type=Path, default=Path("runs/reliability"), help="a folder")
    given = parser.parse_args(args)
    torch.set_num_threads(1)
    task = SegmentationTask.load_from_checkpoint(given.checkpoint, map_location="cpu", weights_only=True)
    data = SegmentationDataModule.load_from_checkpoint(given.checkpoint, weights_only=True, eval_batch_size=16)
    groups = [*FEATURE_SETS["full"], "augmentation", "dropout"]
    if given.no_regions:
        groups.remove("regions")
    options = RegionOptions(steps=given.steps)

    def measure(split: str, shift: str) -> Judged:
        loader = {"val": data.val_dataloader, "test": data.test_dataloader}[split]()
        batches = (batch for number, batch in enumerate(loader) if given.images is None or 16 * number < given.images)
        return judge_predictions(task.model, batches, groups=groups, regions=options, change=SHIFTS[shift])

    known = remember(given.output / "val-none.npz", lambda: measure("val", "none"))
    half = torch.arange(len(known.names)) % 2 == 0
    min_dice = float(known.dice.nanmedian()) if given.min_dice is None else given.min_dice
    scores = fit_scores(known.choose(half) if given.halves else known, min_dice, options)
    lines = []
    for shift in given.shifts:
        split = "val" if given.halves else "test"
        found = remember(given.output / f"{split}-{shift}.npz", lambda s=split, t=shift: measure(s, t))
        lines += judge(scores, found.choose(~half) if given.halves else found, shift)
        write_table(given.output / "results.csv", lines)
    print(f"good enough: a Dice of at least {min_dice:.3f}")
    print((given.output / "results.csv").read_text(encoding="utf-8"))
    return 0


def remember(path: Path, measure: Callable[[], Judged]) -> Judged:
    """What a file has, or else what is measured now and put into it."""
    if not path.is_file():
        found = measure()
        columns = {f"feature/{name}": one.numpy() for name, one in found.features.items()}

        def write(draft: Path) -> None:
            with open(draft, "wb") as file:
                np.savez(file, names=np.array(found.names), dice=found.dice.numpy(), **columns)

        write_whole(path, write)
    with np.load(path, allow_pickle=False) as content:
        features = {key.partition("/")[2]: torch.from_numpy(content[key]) for key in content if "/" in key}
        return Judged(tuple(content["names"].tolist()), features, torch.from_numpy(content["dice"]))


def fit_scores(known: Judged, min_dice: float, options: RegionOptions) -> dict[str, ReliabilityScore]:
    """Every score by its name, each fitted in the same way on its own features, if they were measured."""
    known = known.choose(~known.dice.isnan())
    sets = {f"{name} features": list_features(groups) for name, groups in FEATURE_SETS.items()}
    scores = {}
    for name, wanted in {**ALONE, **sets}.items():
        chosen = {key: known.features[key] for key in wanted if key in known.features}
        if chosen and (name != "full features" or chosen.keys() >= set(GROUPS["regions"])):
            scores[name] = fit_score(chosen, known.dice, known.names, min_dice=min_dice, regions=options)
    return scores


def judge(scores: dict[str, ReliabilityScore], judged: Judged, shift: str) -> list[list[str]]:
    """The lines of one shift: all scores, each with the interval of its lead over the entropy."""
    judged = judged.choose(~judged.dice.isnan())
    dice, entropy = judged.dice.numpy(), scores["entropy"].rate(judged.features).numpy()
    lines = []
    for name, score in scores.items():
        score.check_unseen(judged.names)
        trust, good = score.rate(judged.features).numpy(), dice >= score.min_dice
        auroc, aupr = measure_detection(trust, dice, score.min_dice)
        risk, error = trace_risk(trust, dice).area, measure_calibration_error(trust, good)
        numbers = [auroc, aupr, risk, error, *compare_detection(trust, entropy, dice, score.min_dice)]
        lines.append([shift, name, str(len(dice)), f"{(~good).mean():.3f}", *(f"{number:.3f}" for number in numbers)])
    return lines


def write_table(path: Path, lines: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *lines])
    write_text(path, text.getvalue())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
