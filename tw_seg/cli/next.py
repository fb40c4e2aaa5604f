"""``tw-seg next``: which images to mask next, by what a trained model says of them.

In the output folder there are::

    next.csv     the images, the most useful first, with the numbers behind the choice
    masks/       the model's masks of them, palette PNG
    task.xml     the same for an annotation tool, to begin with; task.json of Label Studio and COCO
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from tw_seg.active.choose import Choice
from tw_seg.cli import COMMANDS
from tw_seg.cli.config_code import add_trust_code
from tw_seg.cli.lightning import list_failures, quiet_lightning
from tw_seg.cli.short_help import CHECKPOINT_HELP
from tw_seg.data.dataset import SegmentationData
from tw_seg.data.export import EXPORTS
from tw_seg.data.export.masks import MaskedImage
from tw_seg.data.layouts.image_files import ImageFiles
from tw_seg.data.layouts.pictures import Pictures, find_pictures
from tw_seg.data.rows import Rows
from tw_seg.errors import InputError
from tw_seg.files import file_name, write_text
from tw_seg.metrics import predict_masks
from tw_seg.pictures import save_mask
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.restore import find_checkpoint, load_run
from tw_seg.training.survey import COUNT, Survey, choose_next
from tw_seg.training.task import SegmentationTask
from tw_seg.types import BACKGROUND

LIST = "next.csv"
TASK = "task"
NO_TASK = "none"
COLUMNS = ("rank", "image", "gain", "distance", "doubt", "disagreement", "label_uncertainty", "classes")
_DESCRIPTION = f"""tw-seg next: {COMMANDS["next"].summary}. An image is worth a mask where the model doubts its own
masks, where masks and image-level answer differ, where labels are not known and the classifier is unsure, for classes
that few masks show; and where it is unlike the images that have a mask or were chosen before it. Written are a list,
the most useful first, and the model's masks of these images, also as a task to be corrected in a tool. Example: tw-seg
next runs/heatmap --count 20 --out next_20"""


def run_next(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: The arguments, ``next`` first.

    Returns:
        Exit status: 0, or 1 if an image could not be read.

    Raises:
        TwSegError: For a wrong argument or file.
        SystemExit: After ``--help``, and for arguments that do not parse.
    """
    given = create_parser().parse_args(list(args[1:]))
    out, tool = Path(given.out), None if given.task == NO_TASK else given.task
    if (out / LIST).exists() and not given.overwrite:
        raise InputError(f"{out / LIST} is there already; give another --out, or --overwrite to replace it")
    files = find_pictures(given.pictures, without=out) if given.pictures else None
    with quiet_lightning():
        task, data = load_run(find_checkpoint(Path(given.checkpoint)), trust_code=given.trust_code)
        task.to("cuda" if torch.cuda.is_available() else "cpu")
        pictures = None if files is None else Pictures(files, task.class_names)
        choices, survey = choose_next(task, data, given.count, pictures=pictures)
        source = data.divide_by_budget()[0] if pictures is None else pictures
        write_choices(out, choices, survey, task=task, data=data, source=source, tool=tool)
    print(f"{len(choices)} of {len(survey.names)} images: {out / LIST}")
    return list_failures(survey.failures)


def create_parser() -> ArgumentParser:
    """The parser of the command's arguments."""
    result = ArgumentParser("tw-seg next", description=_DESCRIPTION)
    add = result.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    add(
        "--count",
        type=int | None,
        default=None,
        metavar="N",
        help=f"how many images to choose; by default {COUNT}, or all there are",
    )
    add("--out", required=True, metavar="FOLDER", help="folder for all that is written")
    add(
        "--pictures",
        nargs="+",
        metavar="PICTURES",
        help="choose among these pictures or folders; by default among the training images outside the label budget",
    )
    add(
        "--task",
        default="cvat",
        choices=[*EXPORTS, NO_TASK],
        help="the tool whose file the masks are written to as well, to be corrected there",
    )
    add_trust_code(result)
    add("--overwrite", action="store_true", help="replace the list that is there")
    return result


def write_choices(
    out: Path,
    choices: Sequence[Choice],
    survey: Survey,
    *,
    task: SegmentationTask,
    data: SegmentationDataModule,
    source: SegmentationData,
    tool: str | None,
) -> None:
    """Write the masks of the chosen images, a file of them for an annotation tool, and then the list.

    Raises:
        InputError: If the folder cannot be written, or a tool could not show the images, which are not files.
    """
    row_of = {name: row for row, name in enumerate(source.names)}
    rows = [row_of[survey.names[choice.row]] for choice in choices]
    paths = None if tool is None else [find_file(source, row) for row in rows]
    masks = predict_rows(task, data, source, rows)
    try:
        for name, mask in masks:
            save_mask(out / "masks" / file_name(name, ".png"), mask)
        if tool is not None and paths is not None:
            images = [
                MaskedImage(name if name.endswith(path.suffix) else name + path.suffix, mask)
                for path, (name, mask) in zip(paths, masks, strict=True)
            ]
            suffix = ".xml" if tool == "cvat" else ".json"
            EXPORTS[tool](out / f"{TASK}{suffix}", images, task.class_names, predicted=True)
        write_text(out / LIST, format_list(choices, survey, task.class_names))
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}); give another --out") from error


def find_file(source: SegmentationData, row: int) -> Path:
    """The file of an image.

    Raises:
        InputError: If the data set makes its images itself.
    """
    if isinstance(source, ImageFiles):
        return source.image_file(row)
    if isinstance(source, Pictures):
        return source.files[row]
    raise InputError(f"--task: {type(source).__name__} makes its images itself, so no tool could show them; give none")


def predict_rows(
    task: SegmentationTask, data: SegmentationDataModule, source: SegmentationData, rows: Sequence[int]
) -> list[tuple[str, np.ndarray]]:
    """Names and masks, uint8 at native size, of some images of a data set."""
    data.show_pictures(Rows(source, rows), data.make_view("resize"))
    device = next(task.parameters()).device
    found: list[tuple[str, np.ndarray]] = []
    with torch.no_grad():
        for batch in data.predict_dataloader():
            logits: Tensor = task(batch.images.to(device)).mask_logits
            masks = predict_masks(logits, batch.sizes)
            found += [(name, mask.byte().cpu().numpy()) for name, mask in zip(batch.names, masks, strict=True)]
    return found


def format_list(choices: Sequence[Choice], survey: Survey, class_names: Sequence[str]) -> str:
    """The list as CSV: for each image its numbers and the classes that it probably shows.

    The doubt is the mean over classes by their probability, disagreement and uncertainty are the largest of any class.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    evidence = survey.evidence
    for rank, choice in enumerate(choices, start=1):
        presence = evidence.presence[choice.row]
        shown = [class_names[k + BACKGROUND + 1] for k in np.flatnonzero(presence > 0.5).tolist()]
        weights = presence / max(presence.sum(), 1e-12)
        numbers = (
            choice.gain,
            choice.distance,
            float(weights @ evidence.doubt[choice.row]),
            float(evidence.disagreement[choice.row].max()),
            float(evidence.label_uncertainty[choice.row].max()),
        )
        name = survey.names[choice.row]
        writer.writerow([rank, name, *(f"{number:.4g}" for number in numbers), ", ".join(shown)])
    return text.getvalue()
