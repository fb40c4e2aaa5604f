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


def _read_predictions(root: Path) -> None:
    shutil.copy(root / "input", root / "prediction.json")
    shutil.copy(root / "input", root / "images.jsonl")
    try:
        PredictionFolder(root, {"checkpoint": "abc", "size": 64}, outputs=["masks"])
    finally:
        PredictionFolder(root, {}, outputs=["masks"], overwrite=True).finish()


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


def _read_list(root: Path) -> None:
    path = shutil.copy(root / "input", root / "list.txt")
    found = find_pictures([path])
    pictures = Pictures(found, CLASSES)
    for row in range(len(pictures)):
        pictures[row]


def _read_brush(root: Path) -> None:
    decode_brush((root / "input").read_bytes(), (5, 7))


def _read_runs(root: Path) -> None:
    text = (root / "input").read_bytes().decode("latin-1")
    try:
        counts = tuple(int(word) for word in text.split())
    except ValueError:
        counts = ()
    for outline in (Runs(text, (5, 7)), Runs(counts, (5, 7)), Runs(text, (10**6, 10**6))):
        outline.fill((5, 7))


# --------------------------------------------------------------------------------------------------------- decoder


@cache
def _decoder(composite: str) -> HeatmapDecoder:
    return HeatmapDecoder(nets.tiny().float(), composite).eval()


@st.composite
def make_images(draw: st.DrawFn) -> bytes:
    """Arguments of a decode, as JSON."""
    sizes = st.integers(0, 20)
    value = st.floats(width=32) | st.sampled_from([0.0, 1e-45, 3e38, -3e38])
    indices = (
        st.none() | st.lists(st.integers(-4, 6), max_size=4) | st.integers(-3, 3) | st.floats() | st.text(max_size=2)
    )
    made = {
        "shape": draw(st.lists(sizes, max_size=5) | st.tuples(st.integers(0, 2), st.just(3), sizes, sizes)),
        "dtype": draw(
            st.sampled_from(["float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool", "complex64"])
        ),
        "values": draw(st.lists(value, min_size=1, max_size=3)),
        "classes": draw(indices),
        "samples": draw(indices),
        "composite": draw(st.sampled_from(["epsilon", "epsilon_plus", "epsilon_gamma_box", "no such"])),
    }
    return json.dumps(made).encode()


def _decode(root: Path) -> None:
    given = json.loads((root / "input").read_text())
    count = int(np.prod(given["shape"], dtype=np.int64))
    values = torch.tensor(given["values"], dtype=torch.float64).repeat(count // len(given["values"]) + 1)[:count]
    images = values.reshape(given["shape"]).to(getattr(torch, given["dtype"]))
    samples = torch.tensor(given["samples"]) if isinstance(given["samples"], list | int | float) else given["samples"]
    decoder = _decoder(given["composite"])
    with torch.no_grad():
        try:
            decoder.classifier(images)
        except Exception as error:  # of torch: what the classifier itself does not take, nobody need decode
            raise InputError(f"the classifier refuses these images: {error}") from error
        if isinstance(samples, torch.Tensor) and not bool(((samples >= 0) & (samples < len(images))).all()):
            raise InputError("torch itself refuses rows that are not there: values on a device are not looked at")
        decoded = decoder(images, classes=given["classes"], samples=samples)
    assert decoded.heatmaps.shape[-2:] == images.shape[-2:]


DECODE = {"shape": [2, 3, 9, 8], "dtype": "float32", "values": [0.5, 1.0], "classes": [0, 1], "samples": [1],
          "composite": "epsilon"}  # fmt: skip

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
    "predictions": Target(partial(write, json.dumps(SETTINGS)), _read_predictions, make_json({**SETTINGS, "image": "a",
        "stamp": None})),
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
    "picture list": Target(partial(write, "# mine\na.png\n../b.jpg\n"), _read_list, make_table("a.png", "../b.png"),
                           names_file=False),  # an error may name a picture that the list means
    "torch zip": Target(partial(_save_torch, True), on_file(read_torch_file)),
    "torch pickle": Target(partial(_save_torch, False), on_file(read_torch_file), st.binary(max_size=60)),
    "safetensors": Target(_save_safetensors, _read_safetensors),
    "brush": Target(lambda root: (root / "input").write_bytes(encode_brush(np.eye(5, 7) > 0)), _read_brush,
                    st.binary(max_size=60), names_file=False),
    "runs": Target(partial(write, "3 2 30"), _read_runs, st.binary(max_size=30) | st.lists(st.integers(-9, 40)).map(
        lambda counts: " ".join(map(str, counts)).encode()), names_file=False),
    "decoder": Target(partial(write, json.dumps(DECODE)), _decode, make_images(), share=0.3, names_file=False,
                      changed=False),
}  # fmt: skip
"""Every reader by its name."""
