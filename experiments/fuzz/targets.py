"""What reads files from elsewhere: for each reader a small valid input, and inputs that Hypothesis makes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import tifffile
import torch
import yaml
from faster_coco_eval import mask as coco
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from tests.data.layouts.test_broken_layouts import LAYOUTS
from tests.oracles import nets
from tw_seg.cli.config_code import list_config_code
from tw_seg.data import DATASETS
from tw_seg.data.budget import LabelBudget, select_budget
from tw_seg.data.layouts.boxes import read_boxes
from tw_seg.data.layouts.brush_rle import decode_brush, encode_brush
from tw_seg.data.layouts.colors import read_color_mask, read_color_table
from tw_seg.data.layouts.pictures import Pictures, find_pictures
from tw_seg.data.layouts.pixels import PixelFormat
from tw_seg.data.layouts.points import read_points
from tw_seg.data.layouts.readers import read_classes, read_image, read_label_table, read_mask, read_size
from tw_seg.data.layouts.shapes import Runs
from tw_seg.data.layouts.splits import choose_rows
from tw_seg.data.layouts.tables import read_table
from tw_seg.errors import InputError, TwSegError
from tw_seg.explain.reliability.score import ReliabilityScore, Term
from tw_seg.lrp import HeatmapDecoder
from tw_seg.models.hub import read_config
from tw_seg.models.weights import read_normalization, read_weights
from tw_seg.predict.folder import PredictionFolder
from tw_seg.sweeps.definition import read_sweep
from tw_seg.torch_files import read_torch_file

CLASSES = ("background", "cat", "dog")
ODD_TEXT = st.text(max_size=8) | st.sampled_from(
    [
        "",
        "\0",
        "..",
        "../../etc/passwd",
        "a\nb",
        "\x1b[2J",
        "<script>",
        "nan",
        "-1",
        "1e400",
        "9" * 5000,
        "\ud800",
        "?",
        "|",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ODD_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ODD_TEXT, inner, max_size=4),
    max_leaves=12,
)
FAULT = st.integers(0, 5).map(lambda number: number == 5)
"""Whether one thing of a valid input becomes a wrong one."""


@dataclass(frozen=True)
class Target:
    """A reader, and what it is given.

    Attributes:
        write: Writes a valid input into a folder.
        read: Reads what is there; its errors name the folder, or a file in it.
        make: What Hypothesis writes into ``file`` in its place; ``None``: nothing.
        file: The file that is made.
        share: How often it is tried, relative to the others.
        names_file: Whether it knows a file that its errors could name.
        changed: Whether changed bytes of the valid input are tried as well.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    make: st.SearchStrategy[bytes] | None = None
    file: str = "input"
    share: float = 1.0
    names_file: bool = True
    changed: bool = True


def _to_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def make_json(keys: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """A mapping with the keys of a real file, most of the values as they are there."""
    entries = {key: st.just(value) | st.just(value) | VALUES for key, value in keys.items()}
    mapping = st.fixed_dictionaries({}, optional=entries) | st.fixed_dictionaries(entries) | VALUES
    return mapping.map(lambda value: _to_bytes(json.dumps(value)))


def make_table(*header: str) -> st.SearchStrategy[bytes]:
    """Lines of cells, of which the header may be the expected one."""
    cell = st.sampled_from(["a", "cat", "1", "0", "train", "-5", "3.5"]) | ODD_TEXT
    separator = st.sampled_from(",;\t|")
    lines = st.lists(st.lists(cell, max_size=7), max_size=5)
    known = st.just(list(header)) | st.lists(st.sampled_from([*header, "x"]) | ODD_TEXT, max_size=7)
    tables = st.tuples(separator, known, lines).map(lambda made: "\n".join(map(made[0].join, [made[1], *made[2]])))
    return tables.map(_to_bytes)


# ------------------------------------------------------------------------------------------------------ data sets


def read_layout(name: str, root: Path) -> None:
    """Read a data set with all its images and masks."""
    data = DATASETS[name](root, **LAYOUTS[name][1])
    for row in range(len(data)):
        sample = data[row]
        assert sample.mask is None or sample.mask.shape == sample.image.shape[:2]


# ---------------------------------------------------------------------------------------------------------- images


def _save(mode: str, kind: str, size: tuple[int, int], options: dict[str, Any], folder: Path) -> None:
    values = np.random.default_rng(0).integers(0, 3, (*size, 4), dtype=np.uint8)
    image = Image.fromarray(values, "RGBA").convert(mode) if mode != "I;16" else Image.new("I;16", size[::-1], 300)
    image.save(folder / "input", format=kind, **options)


IMAGES: dict[str, Callable[[Path], None]] = {
    "png": partial(_save, "RGB", "PNG", (9, 7), {}),
    "palette": partial(_save, "P", "PNG", (9, 7), {"transparency": 1}),
    "grey": partial(_save, "L", "PNG", (9, 7), {}),
    "deep": partial(_save, "I;16", "PNG", (9, 7), {}),
    "jpeg": partial(_save, "RGB", "JPEG", (9, 7), {"exif": Image.Exif()}),
    "webp": partial(_save, "RGBA", "WEBP", (9, 7), {}),
    "bmp": partial(_save, "RGB", "BMP", (9, 7), {}),
    "gif": partial(_save, "P", "GIF", (9, 7), {}),
    "tiff": partial(_save, "RGB", "TIFF", (9, 7), {}),
    "packed": partial(_save, "RGB", "TIFF", (9, 7), {"compression": "tiff_lzw"}),
    "channels": lambda folder: tifffile.imwrite(
        folder / "input",
        np.arange(9 * 7 * 5, dtype=np.uint16).reshape(9, 7, 5),
        photometric="minisblack",
        planarconfig="contig",
    ),
}


def read_picture(root: Path) -> None:
    """Read a file in every way; large pictures are left out, as it is slow and no fault to read one in 24 ways."""
    with patch.object(Image, "MAX_IMAGE_PIXELS", 10**6):
        _read_in_every_way(root)


def _read_in_every_way(root: Path) -> None:
    """Read a file in every way in which images and masks are read, also under the suffixes that choose another way."""
    content = (root / "input").read_bytes()
    table = root / "labelmap.txt"
    table.write_text("background:0,0,0::\ncat:1,1,1::\n")
    refusals: list[TwSegError] = []
    taken = 0
    for suffix in (".png", ".tif", ".jpg"):
        path = root / f"input{suffix}"
        path.write_bytes(content)
        reads: list[Callable[[], object]] = [
            partial(read_image, path),
            partial(read_size, path),
            partial(read_mask, path, num_classes=3),
            partial(PixelFormat(5, (0.0, 9.0)).read, path),
            partial(PixelFormat(1, (0.0, 9.0)).read, path),
            partial(PixelFormat(4).read_size, path),
            lambda path=path: read_color_mask(path, read_color_table(table)),
            lambda path=path: Pictures({"a": path}, CLASSES)[0],
        ]
        for read in reads:
            try:
                read()
                taken += 1
            except TwSegError as error:
                assert str(path) in str(error), error
                refusals.append(error)
    if not taken:
        raise refusals[-1]


@st.composite
def make_picture(draw: st.DrawFn) -> bytes:
    """A picture of any mode, size and format."""
    import io

    mode = draw(st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16", "LAB", "HSV"]))
    kind = draw(st.sampled_from(["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "ICO", "TGA"]))
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    exif = Image.Exif()
    exif[274] = draw(st.integers(0, 9))
    pages = draw(st.integers(0, 2))
    made = Image.new(mode, size, 1) if mode != "P" else Image.new("P", size, draw(st.integers(0, 255)))
    file = io.BytesIO()
    try:
        more = [made.copy() for _ in range(pages)]
        made.save(file, kind, exif=exif, **({"save_all": True, "append_images": more} if pages else {}))
    except (OSError, ValueError, KeyError, TypeError, SystemError):
        return b"II*\0" + file.getvalue()
    return file.getvalue()


# --------------------------------------------------------------------------------------------------------- parsers


def write(text: str | bytes, root: Path) -> None:
    """Write the one file of a parser."""
    (root / "input").write_bytes(text.encode() if isinstance(text, str) else text)


def on_file(read: Callable[[Path], object]) -> Callable[[Path], object]:
    """A reader of the one file of a folder."""
    return lambda root: read(root / "input")


def _save_budget(root: Path) -> None:
    select_budget(np.ones((3, 2)), ["a", "b", "c"], 2).save(root / "input")


SCORE = ReliabilityScore(0.7, {"max_probability": Term(0.5, 0.1, 1.0)}, 0.0, ("a",))
SWEEP = {
    "name": "lr", "method": "random", "run_cap": 3, "program": "tw_seg", "command": ["${env}", "${program}", "${args}"],
    "metric": {"name": "val/miou", "goal": "maximize"},
    "parameters": {"model.lr": {"min": 0.1, "max": 1.0, "distribution": "log_uniform_values"}, "data": {
        "parameters": {"budget": {"values": [1, "all"]}}}, "seed": {"value": 3}},
}  # fmt: skip
HUB = {"class": "UNet", "arguments": {"encoder_name": "resnet18", "classes": 3}, "info": {"class_names": ["a"]}}
RUN = {
    "seed_everything": 1, "trainer": {"callbacks": [{"class_path": "pytorch_lightning.callbacks.Timer"}]},
    "model": {"encoder_name": "resnet18", "model_kwargs": {"compress": 2}}, "data": {"dataset": "digits"},
}  # fmt: skip
SETTINGS = {"checkpoint": "abc", "size": 64, "outputs": ["masks"]}
ROW = {"image": "a", "probability cat": 0.5, "pixels cat": 12, "stamp": [3, 4]}


def _save_predictions(root: Path) -> None:
    (root / "prediction.json").write_text(json.dumps(SETTINGS))
    (root / "images.jsonl").write_text("".join(json.dumps({**ROW, "image": name}) + "\n" for name in ("a", "b/c")))


def _read_predictions(root: Path) -> None:
    """As a prediction that goes on, and as one that begins anew; both in a copy, as they change the folder."""
    for overwrite in (False, True):
        copy = root / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for name in ("prediction.json", "images.jsonl"):
            shutil.copy(root / name, copy / name)
        PredictionFolder(copy, {"checkpoint": "abc", "size": 64}, outputs=["masks"], overwrite=overwrite).finish()


@st.composite
def make_rows(draw: st.DrawFn) -> bytes:
    """Lines about pictures, some of them with another value or key, and sometimes the last one cut."""
    names = st.sampled_from(["a", "b/c", "é"])
    rows = [{**ROW, "image": name} for name in draw(st.lists(names, max_size=4))]
    for row in rows:
        if draw(FAULT):
            row[draw(st.sampled_from([*row]) | ODD_TEXT)] = draw(VALUES)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return _to_bytes(text[: draw(st.integers(0, len(text)))] if draw(FAULT) else text)


def _read_safetensors(root: Path) -> None:
    path = shutil.copy(root / "input", root / "a.safetensors")
    read_weights(path)
    read_normalization(path)


def _save_safetensors(root: Path) -> None:
    text = json.dumps({"mean": [0.5], "std": [1.0]})
    save_file({"a": torch.eye(3), "b": torch.ones(2, dtype=torch.int64)}, root / "input", {"normalization": text})


def _save_torch(zipped: bool, root: Path) -> None:
    content = {"state_dict": {"a": torch.eye(3), "b": torch.ones(2).long()}, "hyper_parameters": {"lr": 0.1, "x": [1]}}
    torch.save(content, root / "input", _use_new_zipfile_serialization=zipped)


def _save_list(root: Path) -> None:
    for path in (root / "a.png", root / "sub" / "b.jpg"):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 3)).save(path)
    (root / "list.txt").write_text("# mine\na.png\nsub/b.jpg\n")


def _read_list(root: Path) -> None:
    pictures = Pictures(find_pictures([root / "list.txt"]), CLASSES)
    for row in range(len(pictures)):
        image = pictures[row].image  # of any size: the change may be one of a picture's own header
        assert image.ndim == 3 and image.shape[2] == 3


@st.composite
def make_list(draw: st.DrawFn) -> bytes:
    """Lines that name pictures which are there, in several ways, and now and then something else."""
    known = st.sampled_from(["a.png", "sub/b.jpg", "./a.png", " sub/../a.png ", "# a.png", ""])
    lines = draw(st.lists(known, min_size=1, max_size=5))
    if draw(FAULT):
        lines[draw(st.integers(0, len(lines) - 1))] = draw(ODD_TEXT)
    start, end = draw(st.sampled_from(["", "\ufeff"])), draw(st.sampled_from(["\n", "\r\n"]))
    return _to_bytes(start + end.join(lines))


def _read_brush(root: Path) -> None:
    decode_brush((root / "input").read_bytes(), (5, 7))


SHAPE = (5, 7)


def _read_runs(root: Path) -> None:
    given = json.loads((root / "input").read_text(errors="surrogateescape"))
    counts = given["counts"]
    outline = Runs(counts if isinstance(counts, str) else tuple(counts), tuple(given["size"]))
    inside = outline.fill(SHAPE)
    assert inside.shape == SHAPE and inside.dtype == bool
    assert "mask" not in given or inside.tolist() == given["mask"]


@st.composite
def make_runs(draw: st.DrawFn) -> bytes:
    """Run lengths of a mask as numbers or in COCO's code, and the mask; or with one thing wrong, without it."""
    mask = np.array(draw(st.lists(st.booleans(), min_size=35, max_size=35))).reshape(SHAPE)
    columns = mask.T.ravel()
    starts = np.flatnonzero(np.diff(columns, prepend=False))
    numbers = np.diff(starts, prepend=0, append=columns.size).tolist()
    text = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    made: dict[str, Any] = {"size": [*SHAPE], "counts": draw(st.sampled_from([numbers, text])), "mask": mask.tolist()}
    if draw(FAULT):
        del made["mask"]
        counts = made["counts"]
        place = draw(st.integers(0, len(counts)))
        wrong = st.text(max_size=4) if counts is text else st.lists(st.integers(), max_size=3)
        cut = st.sampled_from([counts[:place], counts[place:]])
        made["counts"] = draw(cut | wrong.map(lambda new: counts[:place] + new + counts[place:]))
        made["size"] = draw(st.just([*SHAPE]) | st.lists(st.integers(), min_size=2, max_size=2))
    return _to_bytes(json.dumps(made))


# --------------------------------------------------------------------------------------------------------- decoder


@cache
def _decoder(composite: str) -> HeatmapDecoder:
    return HeatmapDecoder(nets.tiny().float(), composite).eval()


@st.composite
def make_images(draw: st.DrawFn) -> bytes:
    """Arguments of a decode, as JSON: each valid, or now and then wrong."""
    count, sides = draw(st.integers(0, 3)), st.integers(1, 20)
    rows = st.lists(st.integers(0, count - 1), max_size=4) if count else st.just([])
    valid: dict[str, st.SearchStrategy[Any]] = {
        "shape": st.tuples(st.just(count), st.just(3), sides, sides),
        "dtype": st.just("float32"),
        "values": st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30),
        "classes": st.none() | st.lists(st.integers(0, 2), max_size=4),
        "samples": st.none() | rows,
        "composite": st.sampled_from(["epsilon", "epsilon_plus", "epsilon_gamma_box"]),
        "requires_grad": st.booleans(),
    }
    long = st.integers(-(2**63), 2**63 - 1)
    indices = st.lists(st.integers(-4, 6) | long, max_size=4) | long | st.floats() | ODD_TEXT
    wrong: dict[str, st.SearchStrategy[Any]] = {
        "shape": st.lists(st.integers(0, 20), max_size=5),
        "dtype": st.sampled_from(["float64", "float16", "bfloat16", "int64", "uint8", "bool", "complex64"]),
        "values": st.lists(st.floats(width=32) | st.sampled_from([1e-45, 3e38, -3e38]), min_size=1, max_size=3),
        "classes": indices,
        "samples": indices,
        "composite": st.just("no such"),
    }
    spoiled = draw(st.sampled_from(list(wrong))) if draw(FAULT) else None
    made = {name: draw(wrong[name] if name == spoiled else one) for name, one in valid.items()}
    return json.dumps(made).encode()


def _decode(root: Path) -> None:
    """Decode, and differentiate what was decoded."""
    given = json.loads((root / "input").read_text())
    count = int(np.prod(given["shape"], dtype=np.int64))
    values = torch.tensor(given["values"], dtype=torch.float64).repeat(count // len(given["values"]) + 1)[:count]
    images = values.reshape(given["shape"]).to(getattr(torch, given["dtype"]))
    samples = given["samples"]
    if isinstance(samples, list | int | float):
        samples = torch.tensor(samples, dtype=torch.int64 if samples == [] else None)
    decoder = _decoder(given["composite"])
    try:
        decoder.classifier(images)
    except Exception as error:  # of torch: what the classifier itself does not take, nobody need decode
        raise InputError(f"the classifier refuses these images: {error}") from error
    with torch.set_grad_enabled(given["requires_grad"]):
        heatmaps = decoder(images, classes=given["classes"], samples=samples).heatmaps
    rows = len(images) if samples is None else len(samples)
    classes = 3 if given["classes"] is None else len(given["classes"])
    assert heatmaps.shape == (rows, classes, *images.shape[-2:])
    if heatmaps.requires_grad:
        heatmaps.square().sum().backward()
        decoder.zero_grad()
    if bool((images.abs() < 5).all()):  # else its values may leave the range of floats on the way
        assert bool(heatmaps.isfinite().all())


DECODE = {"shape": [2, 3, 9, 8], "dtype": "float32", "values": [0.5, 1.0], "classes": [0, 1], "samples": [1],
          "composite": "epsilon", "requires_grad": True}  # fmt: skip

TARGETS: dict[str, Target] = {
    **{
        f"layout {name}": Target(make, partial(read_layout, name), share=0.5)
        for name, (make, _) in LAYOUTS.items()
    },
    **{f"image {name}": Target(make, read_picture, share=0.2) for name, make in IMAGES.items()},
    "image made": Target(IMAGES["png"], read_picture, make_picture(), share=0.3),
    "coco made": Target(
        LAYOUTS["coco"][0],
        partial(read_layout, "coco"),
        make_json({"images": [], "annotations": [], "categories": [{"id": 4, "name": "cat"}]}),
        "annotations/instances_train.json",
    ),
    "budget": Target(_save_budget, on_file(LabelBudget.load), make_json({"kind": "tw_seg label budget, version 2",
        "budget": 1, "budget_share": None, "split_seed": 0, "fingerprint": "a", "names": ["a"], "sha256": "b"})),
    "score": Target(lambda root: SCORE.save(root / "input"), on_file(ReliabilityScore.load), make_json({
        "format": 1, "min_dice": 0.5, "intercept": 0.0, "images": ["a"], "regions": {},
        "features": {"max_probability": {"mean": 0, "scale": 1, "weight": 2}}})),
    "sweep": Target(partial(write, yaml.safe_dump(SWEEP)), on_file(read_sweep), make_json(SWEEP)),
    "hub": Target(partial(write, json.dumps(HUB)), lambda root: read_config(root / "input", source=str(root)),
                  make_json(HUB)),
    "run config": Target(partial(write, yaml.safe_dump(RUN)), on_file(list_config_code), make_json(RUN)),
    "predictions": Target(_save_predictions, _read_predictions, make_rows(), "images.jsonl"),
    "classes": Target(partial(write, "background\ncat\ndog\n"), on_file(read_classes), make_table("background")),
    "labels": Target(partial(write, "image;split;cat;annotated\na;train;1;cat\nb;val;?;\n"), on_file(read_label_table),
                     make_table("image", "split", "cat", "annotated")),
    "table": Target(partial(write, "image,group\na,1\n"), on_file(read_table), make_table("image", "group")),
    "boxes": Target(partial(write, "image,class,x_min,y_min,x_max,y_max\na,cat,1,2,3,4\n"),
                    on_file(lambda path: read_boxes(path, CLASSES)),
                    make_table("image", "class", "x_min", "y_min", "x_max", "y_max")),
    "points": Target(partial(write, "image,class,x,y\na,cat,1,2\n"), on_file(lambda path: read_points(path, CLASSES)),
                     make_table("image", "class", "x", "y")),
    "colours": Target(partial(write, "# label:color\nbackground:0,0,0::\ncat:128,0,0::\n"), on_file(read_color_table),
                      make_table("background:0", "0", "0::")),
    "split list": Target(partial(write, "a\nb.jpg\n"),
                         lambda root: choose_rows(["a", "b"], "train", {"files": "input"}, root=root), make_table("a")),
    "picture list": Target(_save_list, _read_list, make_list(), "list.txt",
                           names_file=False),  # an error may name a picture that the list means
    "torch zip": Target(partial(_save_torch, True), on_file(read_torch_file)),
    "torch pickle": Target(partial(_save_torch, False), on_file(read_torch_file), st.binary(max_size=60)),
    "safetensors": Target(_save_safetensors, _read_safetensors),
    "brush": Target(lambda root: (root / "input").write_bytes(encode_brush(np.eye(5, 7) > 0)), _read_brush,
                    st.binary(max_size=60), names_file=False),
    "runs": Target(partial(write, json.dumps({"size": SHAPE, "counts": [3, 2, 30]})), _read_runs, make_runs(),
                   names_file=False, changed=False),
    "decoder": Target(partial(write, json.dumps(DECODE)), _decode, make_images(), share=0.3, names_file=False,
                      changed=False),
}  # fmt: skip
"""Every reader by its name."""
