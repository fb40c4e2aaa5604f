"""``tw-seg reliability fit`` and ``score``: can masks be trusted that nobody has checked? Its help needs no torch."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tw_seg.cli import COMMANDS
from tw_seg.cli.config_code import add_trust_code
from tw_seg.errors import InputError
from tw_seg.files import write_text

if TYPE_CHECKING:
    from tw_seg.explain.reliability.judge import Judged
    from tw_seg.explain.reliability.score import ReliabilityScore
    from tw_seg.training.datamodule import SegmentationDataModule

FILE = "reliability.json"
SETS = ("output", "cheap", "full")
_DESCRIPTION = f"""tw-seg reliability: {COMMANDS["reliability"].summary}. fit learns on the validation
images of a run, whose masks are known, how likely the Dice of a predicted mask is at least --min_dice, and writes names
and numbers as JSON; score gives that number to the masks of pictures, or of test. Example: tw-seg reliability
fit runs/heatmap --min_dice 0.7, then tw-seg reliability score runs/heatmap my_pictures --out trust"""


def run_reliability(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: The arguments, ``reliability`` first.

    Returns:
        Exit status: 0.

    Raises:
        TwSegError: For a wrong argument or file, or masks that a score cannot be fitted on.
        SystemExit: After ``--help``, and for arguments that do not parse.
    """
    given = create_parser().parse_args(args[1:])
    return _fit(given) if given.action == "fit" else _score(given)


def create_parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    result = argparse.ArgumentParser("tw-seg reliability", description=_DESCRIPTION)
    actions = result.add_subparsers(dest="action", required=True, metavar="fit|score")
    fit = actions.add_parser("fit", help="learn from the masks of the validation images which predictions are good")
    score = actions.add_parser("score", help="rate the masks of pictures, or of the test images")
    for parser in (fit, score):
        parser.add_argument("model", metavar="RUN", help="a checkpoint of tw-seg fit, or its run directory")
        parser.add_argument(
            "--dataset_kwargs",
            type=json.loads,
            default={},
            metavar="JSON",
            help='where the data are now, if they were moved: \'{"root": "data/tiles"}\'',
        )
        add_trust_code(parser)
    fit.add_argument("--min_dice", type=float, default=0.7, metavar="DICE", help="from which on a mask is good enough")
    fit.add_argument(
        "--features",
        default="cheap",
        choices=SETS,
        help="output: of one run of the model; cheap: also mirrored; full: also MiSuRe, tens of runs",
    )
    fit.add_argument("--fill", default="mean", help="what MiSuRe's hidden pixels become: zero, mean, blur or noise")
    fit.add_argument(
        "--steps", type=int, default=30, metavar="N", help="of MiSuRe's search; 0 for training-free models"
    )
    fit.add_argument("--output", metavar="FILE", help=f"the score; by default {FILE} in the run directory")
    score.add_argument("pictures", nargs="*", metavar="PICTURES", help="picture files, and folders of them")
    score.add_argument("--test", action="store_true", help="the run's test images, in place of pictures")
    score.add_argument("--score", metavar="FILE", help=f"what fit wrote; by default {FILE} in the run directory")
    score.add_argument("--out", required=True, metavar="FOLDER", help="folder for trust.csv and what is measured")
    return result


def _fit(given: argparse.Namespace) -> int:
    from tw_seg.explain.reliability.features import FEATURE_SETS
    from tw_seg.explain.reliability.judge import judge_predictions
    from tw_seg.explain.reliability.region_features import RegionOptions
    from tw_seg.explain.reliability.score import fit_score

    regions = RegionOptions(given.fill, steps=given.steps)
    checkpoint, task, data = _open(given)
    found = judge_predictions(task.model, data.val_dataloader(), groups=FEATURE_SETS[given.features], regions=regions)
    labelled = found.choose(~found.dice.isnan())
    if not labelled.names:
        raise InputError("the validation images have no mask, so nothing tells which predictions are good: add some")
    score = fit_score(labelled.features, labelled.dice, labelled.names, min_dice=given.min_dice, regions=regions)
    output = Path(given.output) if given.output else _find_default(checkpoint)
    score.save(output)
    good = (labelled.dice >= given.min_dice).double().mean()
    print(f"{len(labelled.names)} validation images, {good:.0%} with a Dice of at least {given.min_dice:g}")
    print(f"score: {output}")
    return 0


def _score(given: argparse.Namespace) -> int:
    from tw_seg.data.layouts.pictures import Pictures, find_pictures
    from tw_seg.explain.reliability.judge import judge_predictions
    from tw_seg.explain.reliability.score import ReliabilityScore

    if bool(given.pictures) == given.test:
        raise InputError("give pictures, or --test for the test images of the run's data, and not both")
    checkpoint, task, data = _open(given)
    score = ReliabilityScore.load(Path(given.score) if given.score else _find_default(checkpoint))
    if given.test:
        batches = data.test_dataloader()
    else:
        files = find_pictures(given.pictures, without=Path(given.out))
        batches = data.load_pictures(Pictures(files, task.class_names))
    found = judge_predictions(task.model, batches, groups=score.groups, regions=score.regions)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = list(score.terms)
    writer.writerow(["image", "trust", "dice", *names])
    for row, (name, trust) in enumerate(zip(found.names, score.rate(found.features).tolist(), strict=True)):
        values = [trust, found.dice[row].item(), *(found.features[key][row].item() for key in names)]
        writer.writerow([name, *("" if value != value else f"{value:.6f}" for value in values)])
    lines = _describe(score, found)  # before anything is written: it refuses images that the score was fitted on
    write_text(Path(given.out) / "trust.csv", text.getvalue())
    if lines:
        write_text(Path(given.out) / "measures.md", "\n".join([*lines, ""]))
    print("\n".join([*lines, f"trust of {len(found.names)} masks: {Path(given.out) / 'trust.csv'}"]))
    return 0


def _describe(score: ReliabilityScore, found: Judged) -> list[str]:
    """How good the score is where masks are known, beside two that need no fit; nothing where none is."""
    from tw_seg.explain.reliability.measures import measure_calibration_error, measure_detection, trace_risk

    known = found.choose(~found.dice.isnan())
    if not known.names:
        return []
    score.check_unseen(known.names)
    dice, features = known.dice.numpy(), known.features
    scores = {"trust": score.rate(features).numpy()}
    if "max_probability" in features:
        scores["maximum softmax"] = features["max_probability"].nan_to_num(0.0).numpy()
    if "entropy" in features:
        scores["1 - entropy"] = 1 - features["entropy"].nan_to_num(1.0).numpy()
    good = dice >= score.min_dice
    lines = [
        f"{len(dice)} images, mean Dice {dice.mean():.3f}, below {score.min_dice:g} in {(~good).mean():.0%} of them",
        "",
        "| score | AUROC | AUPR | risk | ECE |",
        "|---|---|---|---|---|",
    ]
    for name, values in scores.items():
        auroc, aupr = measure_detection(values, dice, score.min_dice)
        risk, error = trace_risk(values, dice).area, measure_calibration_error(values.clip(0, 1), good)
        lines.append(f"| {name} | {auroc:.3f} | {aupr:.3f} | {risk:.3f} | {error:.3f} |")
    return [*lines, ""]


def _open(given: argparse.Namespace) -> tuple[Path, Any, SegmentationDataModule]:
    from tw_seg.training.restore import find_checkpoint, load_run

    checkpoint = find_checkpoint(Path(given.model))
    task, data = load_run(checkpoint, trust_code=given.trust_code)
    data.hparams["dataset_kwargs"] = {**(data.hparams["dataset_kwargs"] or {}), **given.dataset_kwargs}
    if not task.makes_masks:
        raise InputError(f"{checkpoint} is an image-level classifier, which makes no masks: give a segmentation model")
    return checkpoint, task, data


def _find_default(checkpoint: Path) -> Path:
    """Where the score of a run lies: in its run directory, or beside a checkpoint that lies elsewhere."""
    from tw_seg.training.restore import CHECKPOINTS

    folder = checkpoint.parent
    return (folder.parent if folder.name == CHECKPOINTS else folder) / FILE
