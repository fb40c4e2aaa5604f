"""``tw-seg export CHECKPOINT``: a trained model as files for other programs, and for other people."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace

from tw_seg.cli import COMMANDS
from tw_seg.cli.config_code import add_trust_code
from tw_seg.cli.short_help import CHECKPOINT_HELP
from tw_seg.data.layouts.pictures import find_pictures
from tw_seg.errors import InputError
from tw_seg.export.deployed import Deployed
from tw_seg.export.onnx_file import check_libraries, convert_to_onnx, run_onnx, write_onnx
from tw_seg.export.parity import Parity, measure_parity
from tw_seg.export.program import export_program, write_program
from tw_seg.models.hub import ModelInfo
from tw_seg.plain_files import read_json
from tw_seg.training.callbacks.gate import GATE_FILE
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.restore import CHECKPOINTS, find_checkpoint, load_run
from tw_seg.training.task import SegmentationTask

FORMATS = {"onnx": "model.onnx", "pt2": "model.pt2", "hub": "hub"}
"""What can be written, and its file or folder."""

PICTURES = 8
"""How many validation images are compared where no pictures are given."""

_DESCRIPTION = f"""tw-seg export: {COMMANDS["export"].summary}. The ONNX and .pt2 files take pictures of any size,
(N, H, W, C), 8-bit RGB unless the run was on others, and return masks, probabilities and mask logits; resizing,
normalisation, classes and gate are inside. What they return is compared with the model's, on pictures or else on
validation images of the run. Example:
tw-seg export runs/heatmap my_pictures --out exported"""


def run_export(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: The arguments, ``export`` first.

    Returns:
        Exit status: 0.

    Raises:
        TwSegError: For a wrong argument or file, or a model that cannot be exported.
        SystemExit: After ``--help``, and for arguments that do not parse.
    """
    given = create_parser().parse_args(args[1:])
    formats = list(dict.fromkeys(given.formats))
    if "onnx" in formats:
        check_libraries()
    checkpoint = find_checkpoint(Path(given.checkpoint))
    task, data = load_run(checkpoint, trust_code=given.trust_code)
    run_dir = checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent
    gate = _read_gate(run_dir) if given.gate is None else given.gate
    info = collect_info(task, data, gate=gate, metrics=_read_metrics(run_dir), given=given)
    out, written = Path(given.out), []
    writers: list[Callable[[], object]] = []
    if {"onnx", "pt2"} & set(formats):
        pictures = _read_pictures(given.pictures, data)
        deployed = Deployed(
            task.model,
            info["size"],
            normalization=data.normalization,
            gate=gate,
            value_range=data.pixels.value_range,
        )
        # All is made and measured in memory before the first file is written.
        writers += _make_files(deployed, formats, pictures, info, out)
    if "hub" in formats:
        task.model.info = info
        writers.append(lambda: task.model.save_pretrained(out / FORMATS["hub"]))
    for write in writers:
        write()
    written = [str(out / FORMATS[name]) for name in formats]
    print(f"written: {', '.join(written)}")
    return 0


def create_parser() -> ArgumentParser:
    """The parser of the command's arguments."""
    result = ArgumentParser("tw-seg export", description=_DESCRIPTION)
    add = result.add_argument
    add("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    add(
        "pictures",
        nargs="*",
        default=[],  # without it the help calls them required
        metavar="PICTURES",
        help="pictures to compare on; by default validation images",
    )
    add("--out", required=True, metavar="FOLDER", help="folder for all that is written")
    add("--formats", nargs="+", default=["onnx", "pt2"], choices=list(FORMATS), help="what is written")
    add(
        "--gate",
        type=float | None,
        default=None,
        metavar="P",
        help="image-level probability below which a class is in no mask; by default that of the run's gate.json, or 0",
    )
    add_trust_code(result)
    add("--license", default=None, metavar="NAME", help="the model's licence, for its card (hub)")
    add("--description", default=None, metavar="TEXT", help="what it was trained on, for its card (hub)")
    return result


def collect_info(
    task: SegmentationTask,
    data: SegmentationDataModule,
    *,
    gate: float,
    metrics: Mapping[str, float],
    given: Namespace,
) -> ModelInfo:
    """What a user of the files must know."""
    size = data.hparams["size"]
    info: ModelInfo = {
        "class_names": list(task.class_names),
        "mean": list(data.normalization.mean),
        "std": list(data.normalization.std),
        "size": [size, size] if isinstance(size, int) else list(size),
        "gate": gate,
        "metrics": dict(metrics),
    }
    if data.pixels.value_range is not None:
        info["value_range"] = list(data.pixels.value_range)
    if given.description is not None:
        info["data"] = given.description
    if given.license is not None:
        info["license"] = given.license
    return info


def _make_files(
    deployed: Deployed, formats: Sequence[str], pictures: Sequence[np.ndarray], info: ModelInfo, out: Path
) -> list[Callable[[], object]]:
    """Make the files in memory and print how far they are from the model; returns what writes them."""
    facts: dict[str, Any] = {key: value for key, value in info.items() if key != "metrics"}
    print("exporting the model, which takes a minute or more ...", flush=True)
    program = export_program(deployed)
    writers: list[Callable[[], object]] = []
    if "pt2" in formats:
        module = program.module()

        def run_program(images: np.ndarray) -> list[np.ndarray]:
            with torch.no_grad():
                return [one.numpy() for one in module(torch.from_numpy(images))]

        _print_parity("pt2", measure_parity(deployed, run_program, pictures))
        writers.append(lambda: write_program(program, out / FORMATS["pt2"], facts))
    if "onnx" in formats:
        converted = convert_to_onnx(program, makes_masks=deployed.model.makes_masks, facts=facts)
        content = converted.model_proto.SerializeToString()
        _print_parity("onnx", measure_parity(deployed, lambda images: run_onnx(content, images), pictures))
        writers.append(lambda: write_onnx(converted, out / FORMATS["onnx"]))
    return writers


def _print_parity(name: str, parity: Parity) -> None:
    print(f"{name}: {parity}")


def _read_pictures(places: Sequence[str], data: SegmentationDataModule) -> list[np.ndarray]:
    """Pictures to compare on, with values as in their files."""
    if places:
        found = [data.pixels.read(file) for file in find_pictures(places).values()]
    else:
        found = data.list_images("val", PICTURES)
    if not found:
        raise InputError("the run has no validation images to compare the files on: name pictures")
    if data.pixels.value_range is None:
        return found
    low, high = data.pixels.value_range
    return [(low + (high - low) * picture).astype(np.float32) for picture in found]


def _read_gate(run_dir: Path) -> float:
    """The gate that was calibrated in a run; 0 without one."""
    path = run_dir / GATE_FILE
    if not path.is_file():
        return 0.0
    try:
        gate = float(read_json(path)["gate"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: expected a number 'gate' ({error}); give --gate, or test the run again") from error
    return gate


def _read_metrics(run_dir: Path) -> dict[str, float]:
    """The scores of the newest test of a run, if there was one."""
    files = sorted(run_dir.glob("metrics/test*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    if not files:
        return {}
    try:
        with open(files[-1], newline="", encoding="utf-8") as file:
            rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
        return {key: float(value) for row in rows for key, value in row.items() if str(key).startswith("test/")}
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{files[-1]}: expected a table of numbers ({error}); test the run again") from error
