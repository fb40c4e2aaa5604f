"""``tw-seg explain``: which part of each picture a segmentation model needs for its masks. Its help needs no torch."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tw_seg.cli import COMMANDS
from tw_seg.cli.config_code import add_trust_code
from tw_seg.errors import DataError, InputError
from tw_seg.files import file_name, write_text, write_whole
from tw_seg.printable import make_printable

if TYPE_CHECKING:
    from tw_seg.cli.models import UsedModel
    from tw_seg.explain.model import ExplainedModel
    from tw_seg.explain.picture import ExplainedPicture, Method

METHODS = ("misure", "occlusion", "rise", "lrp", "seg_grad_cam")
FILLS = ("zero", "mean", "blur", "noise")
TABLE = "explanations.csv"
_DESCRIPTION = f"""tw-seg explain: {COMMANDS["explain"].summary}. Written are overlays/, the picture
with the mask's outline and what it needs; maps/, the same as numbers (NumPy's npz); and {TABLE}, a row for each
class that is predicted. The exit status is 1 if a picture could not be read; the others are explained. Example: tw-seg
explain runs/unet my_pictures --out why"""


def run_explain(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: The arguments, ``explain`` first.

    Returns:
        Exit status: 0, or 1 if a picture could not be read.

    Raises:
        TwSegError: For a wrong argument, or a model that cannot be explained so.
        SystemExit: After ``--help``, and for arguments that do not parse.
    """
    given = create_parser().parse_args(args[1:])
    from tw_seg.cli.models import open_model  # here, as the help needs no torch
    from tw_seg.data.layouts.pictures import find_pictures
    from tw_seg.explain.model import ExplainedModel
    from tw_seg.explain.picture import Method

    out = Path(given.out)
    if (out / TABLE).exists():
        raise InputError(f"--out {out} already holds explanations: choose another folder, or delete it")
    options = {"size": given.size, "model_kwargs": given.model_kwargs, "part": given.part}
    used = open_model(given.model, **options, trust_code=given.trust_code)
    layer = None if given.layer is None else used.find_module(given.layer)
    method = Method(given.method, given.fill, given.min_dice, given.steps, given.rise_masks, layer)
    model = ExplainedModel(used.function, batch_size=given.batch_size)
    files = find_pictures(given.pictures, without=out)
    rows, failed = [], 0
    with model.evaluating():
        for name, file in files.items():
            try:
                found = _explain_file(model, used, method, name, file, out)
                rows += found
                shown = ", ".join(str(row["class"]) for row in found) or "no class"
                print(make_printable(f"{name}: {shown}"), flush=True)  # each takes a while
            except DataError as error:
                failed += 1
                print(f"tw-seg: {make_printable(str(error))}", file=sys.stderr)
    _write_table(out / TABLE, rows)
    print(f"{len(rows)} masks of {len(files) - failed} pictures explained: {out}")
    return 1 if failed else 0


def create_parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    result = argparse.ArgumentParser("tw-seg explain", description=_DESCRIPTION)
    add = result.add_argument
    add(
        "model",
        metavar="MODEL",
        help="a checkpoint of tw-seg fit, its run directory, or 'package.module:factory': a function that returns a "
        "model from images (N, 3, H, W) to mask logits (N, K, h, w)",
    )
    add("pictures", nargs="+", metavar="PICTURES", help="picture files, and folders of them")
    add("--out", required=True, metavar="FOLDER", help="folder for all that is written")
    add("--method", default="misure", choices=METHODS, help="misure: regions; the others: heatmaps")
    add("--fill", default="zero", choices=FILLS, help="what hidden pixels become; results depend on it")
    add("--min_dice", type=float, default=0.9, metavar="DICE", help="from which on a region is enough for a mask")
    add(
        "--steps", type=int, default=100, metavar="N", help="of the search for minimal regions; 0: sufficient ones only"
    )
    add("--rise_masks", type=int, default=500, metavar="N", help="random masks of RISE")
    add("--layer", metavar="PATH", help="the module that seg_grad_cam reads, such as encoder.model.layer4")
    add("--part", metavar="PATH", help="the module in the model to explain, such as net of a U-Net, which lrp needs")
    add("--size", type=int, nargs="+", metavar="PIXELS", help="height and width that a factory's model gets (224)")
    add("--model_kwargs", type=_read_mapping, metavar="JSON", help="arguments of the factory: '{\"classes\": 3}'")
    add_trust_code(result)
    add("--batch_size", type=int, default=16, metavar="N", help="images of one model call")
    return result


def _read_mapping(text: str) -> dict[str, object]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(text)
    return found


def _explain_file(
    model: ExplainedModel, used: UsedModel, method: Method, name: str, file: Path, out: Path
) -> list[dict[str, object]]:
    """Explain one picture, write its overlays and maps; returns its rows."""
    import numpy as np

    from tw_seg.explain.picture import explain_picture
    from tw_seg.pictures import save_picture

    picture, image = used.read_picture(file)
    found: ExplainedPicture = explain_picture(model, image, picture, method)
    labels = [used.name_class(k) for k in found.classes]
    for label, overlay in zip(labels, found.overlays, strict=True):
        save_picture(out / "overlays" / file_name(f"{name}-{label}", ".png"), overlay)

    def write(draft: Path) -> None:
        with open(draft, "wb") as target:
            arrays: dict[str, Any] = {"classes": np.array(labels, dtype=str), **found.maps}
            np.savez_compressed(target, **arrays)

    write_whole(out / "maps" / file_name(name, ".npz"), write)
    return [{"picture": name, "class": label, **row} for label, row in zip(labels, found.rows, strict=True)]


def _write_table(path: Path, rows: list[dict[str, object]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["picture", "class"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.4f}" if isinstance(value, float) else value for key, value in row.items()})
    write_text(path, text.getvalue())
