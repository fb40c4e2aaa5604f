"""``tw-seg predict CHECKPOINT PICTURES --out FOLDER``: masks of pictures, with nothing but a checkpoint.

The same command with the options of a run, ``tw-seg predict --config ... --ckpt_path best``, predicts the images of a
data set into the run directory, see `tw_seg.cli.lightning`; both are one prediction loop, Lightning's, with one
writer of files.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning import Trainer
from torch import Tensor, nn

from tw_seg.arguments import check_counts, check_numbers
from tw_seg.cli import COMMANDS
from tw_seg.cli.config_code import add_trust_code
from tw_seg.cli.faults import name_faults
from tw_seg.cli.lightning import list_failures, quiet_lightning, run_and_report
from tw_seg.cli.short_help import CHECKPOINT_HELP
from tw_seg.data.layouts.pictures import Pictures, find_pictures
from tw_seg.data.loading.windows import VIEWS
from tw_seg.errors import InputError
from tw_seg.explain.reliability.score import ReliabilityScore, rate_batch
from tw_seg.locks import lock_folder
from tw_seg.predict.folder import PredictionFolder, name_errors
from tw_seg.predict.outputs import OUTPUTS, check_outputs
from tw_seg.training.callbacks import AveragedViews, GatedInference, PredictionWriter
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.restore import find_checkpoint, load_run
from tw_seg.types import SegOutput

_DESCRIPTION = f"""tw-seg predict: {COMMANDS["predict"].summary}. What is done is not done again: the same
command completes a folder, also after a kill, and refuses one that was made with another checkpoint or other options.
The exit status is 1 if a picture could not be read; the others are predicted. Example: tw-seg predict runs/heatmap
my_pictures --out masks_out"""


def run_predict(args: Sequence[str]) -> int:
    """Run the command, in either form.

    Args:
        args: The arguments, ``predict`` first.

    Returns:
        Exit status: 0, or 1 if a picture could not be read.

    Raises:
        TwSegError: For a wrong argument or file.
        SystemExit: After ``--help``, and for arguments that do not parse.
    """
    rest = list(args[1:])
    names_pictures = bool(rest) and not rest[0].startswith("-")
    if names_pictures or any(arg.partition("=")[0] == "--out" for arg in rest):
        return predict_pictures(create_parser().parse_args(rest))
    if "-h" in rest or "--help" in rest:
        print(create_parser().format_help())
        print("or, with the OPTIONS OF A RUN, for the images of its data set:\n")
    return run_and_report(list(args))


def create_parser() -> ArgumentParser:
    """The parser of the arguments."""
    result = ArgumentParser("tw-seg predict", description=_DESCRIPTION)
    add = result.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    add(
        "pictures",
        nargs="+",
        metavar="PICTURES",
        help="pictures, folders, patterns such as 'photos/*.jpg', or .txt files that list pictures, one a line",
    )
    add("--out", required=True, metavar="FOLDER", help="folder for all that is written")
    add(
        "--outputs",
        nargs="+",
        default=["masks", "overlays"],
        choices=list(OUTPUTS),
        help="what is written of each picture, beside its row in images.csv",
    )
    add("--view", default="resize", choices=VIEWS, help="what the model sees: the whole picture, or tiles of it")
    add(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="side of a tile in the picture; by default the model's size",
    )
    add("--overlap", type=float, default=0.25, metavar="SHARE", help="share of a tile that it shares with the next one")
    add("--flip", action="store_true", help="average over the pictures and their mirror images")
    add(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="X",
        help="average over sizes, such as 0.75 1 1.25",
    )
    add(
        "--gate_tolerance",
        type=float | None,
        default=None,
        metavar="X",
        help="decode only likely classes; the mIoU of the run's validation images may change by this, as 0.001",
    )
    add(
        "--trust",
        type=str | None,
        default=None,
        metavar="FILE",
        help="what tw-seg reliability fit wrote: adds how far each mask can be trusted; not with tiles, flip, scales "
        "or gate_tolerance, as it was fitted on masks of one plain run",
    )
    add("--batch_size", type=int | None, default=None, metavar="N", help="images in a batch; by default as in the run")
    add("--num_workers", type=int, default=0, metavar="N", help="processes that read pictures")
    add("--accelerator", default="auto", metavar="NAME", help="cpu, gpu, ...")
    add("--precision", default="32-true", metavar="NAME", help="of the computation: 32-true, bf16-mixed, ...")
    add_trust_code(result)
    add("--overwrite", action="store_true", help="begin anew: remove an earlier prediction from the folder")
    return result


def predict_pictures(given: Namespace) -> int:
    """Predict what the arguments name; returns the exit status."""
    check_counts(1, batch_size=given.batch_size, tile=given.tile)
    check_counts(0, num_workers=given.num_workers)
    check_numbers(gate_tolerance=given.gate_tolerance or 0.0)
    out = Path(given.out)
    files = find_pictures(given.pictures, without=out)
    checkpoint = find_checkpoint(Path(given.checkpoint))
    score = None if given.trust is None else _read_score(given)
    with quiet_lightning(), name_faults(lambda: "the same command goes on"), ExitStack() as held:
        task, data = load_run(checkpoint, trust_code=given.trust_code)
        if score is not None:
            task.rate = partial(_rate, score, task.model)
        outputs = check_outputs(given.outputs)
        view = data.make_view(given.view, tile=given.tile, overlap=given.overlap)
        callbacks = [GatedInference(given.gate_tolerance), AveragedViews(flip=given.flip, scales=given.scales)]
        with name_errors(out):
            held.enter_context(lock_folder(out))
        folder = PredictionFolder(
            out, _describe_settings(given, checkpoint, data), outputs=outputs, overwrite=given.overwrite
        )
        waiting = {name: file for name, file in files.items() if not folder.is_done(name, file)}
        if len(waiting) < len(files):
            print(f"{len(files) - len(waiting)} of {len(files)} pictures are done already", file=sys.stderr)
        data.show_pictures(Pictures(waiting, task.class_names), view, thumbnails="overlays" in outputs)
        data.hparams["num_workers"] = given.num_workers
        data.hparams["eval_batch_size"] = given.batch_size or data.hparams["eval_batch_size"]
        writer = PredictionWriter(folder, waiting, progress=True)
        trainer = Trainer(
            accelerator=given.accelerator,
            devices=1,
            precision=given.precision,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=out,
            callbacks=[*callbacks, writer],
        )
        if waiting:
            trainer.predict(task, datamodule=data, return_predictions=False)
        else:
            folder.finish()
    print(f"{len(files) - len(writer.failures)} pictures predicted: {out}")
    return list_failures(writer.failures)


def _read_score(given: Namespace) -> ReliabilityScore:
    """The score of masks that was asked for, if these are such as it was fitted on."""
    if given.view != "resize" or given.flip or given.scales != [1.0] or given.gate_tolerance is not None:
        raise InputError(
            "--trust rates masks of one plain run of the model over the whole picture, as those that it was fitted on: "
            "leave out --view tiles, --flip, --scales and --gate_tolerance, or --trust"
        )
    return ReliabilityScore.load(Path(given.trust))


def _rate(score: ReliabilityScore, model: nn.Module, images: Tensor, output: SegOutput) -> Tensor:
    return rate_batch(score, model, images, output)


def _describe_settings(given: Namespace, checkpoint: Path, data: SegmentationDataModule) -> dict[str, Any]:
    """All that the files of a prediction depend on."""
    names = ("view", "flip", "scales", "gate_tolerance", *(("tile", "overlap") if given.view == "tiles" else ()))
    return {
        "checkpoint": _compute_hash(checkpoint),
        "size": data.hparams["size"],
        **({} if given.trust is None else {"trust": _compute_hash(Path(given.trust))}),
        **{name: given[name] for name in names},
    }


def _compute_hash(file: Path) -> str:
    try:
        with open(file, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
