"""``tw-seg data convert``: the masks of a data set, or predicted ones, as a file of an annotation tool."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from tw_seg.cli.data import SUBCOMMANDS
from tw_seg.cli.data.arguments import add_source_arguments, find_pixels, find_source, show_progress
from tw_seg.data.dataset import SegmentationData
from tw_seg.data.export import EXPORTS
from tw_seg.data.export.masks import MaskedImage
from tw_seg.data.layouts.image_files import ImageFiles
from tw_seg.data.layouts.pictures import find_pictures
from tw_seg.data.layouts.pixels import PixelFormat
from tw_seg.data.layouts.readers import read_lines, read_mask
from tw_seg.data.opening import open_split, open_splits
from tw_seg.errors import DataError, InputError
from tw_seg.predict.folder import TABLE
from tw_seg.predict.outputs import find_output
from tw_seg.types import BACKGROUND, IGNORE_INDEX

_PROBABILITY = "probability/"

_DESCRIPTION = f"""tw-seg data convert: {SUBCOMMANDS["convert"].summary}. Masks are written pixel for pixel; images
without one are left out, pixels of boxes are ignored ones. With --predictions, a folder that tw-seg predict wrote,
PATH are the pictures, and the masks become predictions to be corrected in the tool. Examples: tw-seg data convert
my_images coco.json --to coco; tw-seg data convert my_pictures tasks.json --to label_studio --predictions masks_out"""


def run_convert(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: The arguments.

    Returns:
        Exit status: 0.

    Raises:
        TwSegError: For a wrong argument, or a file that cannot be read or written.
        SystemExit: After ``--help``, and for arguments that do not parse.
    """
    given = create_parser().parse_args(list(args))
    out = Path(given.out)
    if given.predictions is not None:
        classes, images, total = _find_predictions(Path(given.path), Path(given.predictions))
    else:
        classes, images, total = _find_masks(given)
    try:
        count = EXPORTS[given.to](out, show_progress(images, total), classes, predicted=given.predictions is not None)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another path") from error
    print(f"{count} images with their masks written: {out}")
    return 0


def create_parser() -> ArgumentParser:
    """The parser of the command's arguments."""
    result = ArgumentParser("tw-seg data convert", description=_DESCRIPTION)
    add_source_arguments(result)
    add = result.add_argument
    add("out", metavar="FILE", help="the file to write")
    add("--to", required=True, choices=list(EXPORTS), help="whose file it is")
    add("--split", metavar="NAME", help="write the images of one split; without it all")
    add("--predictions", metavar="FOLDER", help="take masks that tw-seg predict wrote, not the data set's")
    return result


def _find_masks(given: Namespace) -> tuple[tuple[str, ...], Iterator[MaskedImage], int]:
    """The classes and the images with a mask of a data set, and how many there are."""
    root, layout, kwargs = find_source(given)
    parts = _open(root, layout, kwargs, given.split, pixels=find_pixels(given))
    masked = [(data, row) for data in parts for row in np.flatnonzero(data.has_mask).tolist()]
    if not masked:
        raise DataError(f"{root}: no image has a mask; {parts[0].mask_search}")
    if any(not _shows_all_classes(data, row) for data, row in masked):
        raise InputError(
            f"{root}: some masks show some of the classes only (the column 'annotated'), which no tool's file can say: "
            "the others would be background; choose masks of all classes, as a split, or leave these classes out"
        )
    classes = parts[0].classes
    if any(data.classes != classes for data in parts):
        raise DataError(f"{root}: its splits have different classes; give one list with --dataset_kwargs.classes")
    return classes, (_load(data, row) for data, row in masked), len(masked)


def _shows_all_classes(data: ImageFiles, row: int) -> bool:
    """Whether all classes were annotated in a mask."""
    annotated: np.ndarray | None = getattr(data, "annotated", None)
    return annotated is None or bool(annotated[row][BACKGROUND + 1 :].all())


def _open(
    root: Path, layout: str, kwargs: Mapping[str, Any], split: str | None, *, pixels: PixelFormat
) -> list[ImageFiles]:
    found: list[SegmentationData] = (
        list(open_splits(root, layout, kwargs, pixels=pixels).values())
        if split is None
        else [open_split(root, layout, split, kwargs, pixels=pixels)]
    )
    files = [data for data in found if isinstance(data, ImageFiles)]
    if len(files) < len(found):
        raise InputError(f"layout: {layout!r} makes its images itself, so no tool could show them; choose one of files")
    return files


def _load(data: ImageFiles, row: int) -> MaskedImage:
    mask, regions = data.load_mask(row)
    if regions is not None:
        mask = np.where(mask >= len(data.classes), IGNORE_INDEX, mask).astype(np.uint8)
    name, suffix = data.names[row], data.image_file(row).suffix
    return MaskedImage(name if name.endswith(suffix) else name + suffix, mask)


def _find_predictions(pictures: Path, folder: Path) -> tuple[tuple[str, ...], Iterator[MaskedImage], int]:
    """The classes and the pictures with a mask of a folder of predictions, and how many there are."""
    classes = _read_classes(folder / TABLE)
    start = pictures / "images" if (pictures / "images").is_dir() else pictures
    files = find_pictures([pictures], without=folder)
    masks = {name: find_output(folder, "masks", name) for name in files}
    there = [name for name in files if masks[name].is_file()]
    if not there:
        raise DataError(f"{folder / 'masks'}: no mask belongs to a picture of {pictures}; predict these pictures first")
    images = (
        MaskedImage(
            Path(os.path.relpath(files[name], start)).as_posix(), read_mask(masks[name], num_classes=len(classes))
        )
        for name in there
    )
    return classes, images, len(there)


def _read_classes(table: Path) -> tuple[str, ...]:
    """The classes that the table of predictions has probabilities of."""
    header = next(csv.reader(read_lines(table)[:1]), [])
    classes = tuple(column.removeprefix(_PROBABILITY) for column in header if column.startswith(_PROBABILITY))
    if len(classes) < 2:
        raise DataError(
            f"{table}: expected columns {_PROBABILITY}CLASS, found {header[:5]}; give a folder that tw-seg predict "
            "wrote"
        )
    return classes
