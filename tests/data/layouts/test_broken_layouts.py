"""Files that are cut, empty, changed or something else: each layout reads them, or names the file in a DataError."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as pycoco

from tests.data.layouts import test_coco, test_cvat, test_cvat_masks, test_label_studio, test_labelme
from tests.data.layouts.drawn import make_masks, save_image
from tw_seg.data import DATASETS
from tw_seg.errors import DataError

SIZE = (20, 30)

# Pillow, of a picture whose broken header claims to be large; the error comes later, from the pixels.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:.*EXIF:UserWarning")


def write_coco(root: Path) -> str:
    coded = pycoco.encode(np.asfortranarray(np.eye(*SIZE, dtype=np.uint8)))
    test_coco.draw(
        root,
        {"category_id": 4, "segmentation": [test_coco.square(4, 4, 3)], "area": 9},
        {"category_id": 9, "segmentation": {"size": list(SIZE), "counts": [5, 3, 592]}},
        {"category_id": 9, "segmentation": {"size": list(SIZE), "counts": coded["counts"].decode()}},
        {"category_id": 4, "bbox": [2, 2, 10, 10]},
    )
    return "annotations/instances_train.json"


def write_cvat(root: Path) -> str:
    test_cvat.draw(
        root,
        ("polygon", {"points": "3,2;15,2;15,10", "z_order": "1"}),
        ("mask", {"rle": "1,2,1", "left": "3", "top": "4", "width": "2", "height": "2"}),
        ("box", {"xtl": "14.5", "ytl": "1", "xbr": "20", "ybr": "5.2", "rotation": "3"}),
        ("ellipse", {"cx": "8", "cy": "8", "rx": "6", "ry": "3"}),
    )
    return "annotations.xml"


def write_cvat_masks(root: Path) -> str:
    test_cvat_masks.write(root, make_masks(3)[2:])
    return "labelmap.txt"


def write_label_studio(root: Path) -> str:
    test_label_studio.draw(
        root,
        test_label_studio.brush(np.eye(*SIZE, dtype=bool), "cat"),
        test_label_studio.region("polygonlabels", points=test_label_studio.SQUARE),
        test_label_studio.region("rectanglelabels", x=10, y=10, width=40, height=40, rotation=3),
        {**test_label_studio.region("choices"), "value": {"choices": ["cat"]}},
    )
    return "annotations.json"


def write_labelme(root: Path) -> str:
    shapes = [
        test_labelme.shape("polygon", test_labelme.CORNERS),
        test_labelme.shape("circle", [[20.0, 12.0], [23.0, 12.5]]),
        test_labelme.shape("mask", [[1, 2], [4, 4]], mask=test_labelme.encode(np.ones((3, 4)))),
        test_labelme.shape("rectangle", [[12.0, 9.0], [4.5, 2.0]]),
    ]
    test_labelme.write(root, "a.png", *shapes, flags={"dog": True})
    return "a.json"


def write_folder(root: Path) -> str:
    save_image(root / "images" / "a.png", SIZE)
    save_mask(root / "masks" / "a.png")
    (root / "image_labels.csv").write_text("image;cat\na;1\n")
    return "image_labels.csv"


def write_voc(root: Path) -> str:
    save_image(root / "JPEGImages" / "a.png", SIZE)
    save_mask(root / "SegmentationClass" / "a.png")
    (root / "classes.txt").write_text("background\ncat\n")
    path = root / "ImageSets" / "Segmentation" / "train.txt"
    path.parent.mkdir(parents=True)
    path.write_text("a\n")
    return "ImageSets/Segmentation/train.txt"


def save_mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.eye(*SIZE, dtype=np.uint8)).save(path)


LAYOUTS: dict[str, tuple[Callable[[Path], str], dict[str, Any]]] = {
    "coco": (write_coco, {"split": "train"}),
    "cvat": (write_cvat, {}),
    "cvat_masks": (write_cvat_masks, {}),
    "label_studio": (write_label_studio, {}),
    "labelme": (write_labelme, {}),
    "folder": (write_folder, {}),
    "voc": (write_voc, {"split": "train"}),
}
"""For each layout a writer of a small data set, which returns its central file, and the arguments that read it."""
JSON = [name for name in LAYOUTS if name in ("coco", "label_studio", "labelme")]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Each layout's folder and central file."""
    found = {}
    for name, (write, _) in LAYOUTS.items():
        root = tmp_path_factory.mktemp(name)
        found[name] = (root, root / write(root))
    return found


def read_or_refuse(layout: str, root: Path) -> str:
    """Read all of a data set; returns the message of its `DataError`, which names a file of it."""
    try:
        data = DATASETS[layout](root, **LAYOUTS[layout][1])
        for sample in data:
            assert sample.mask is None or sample.mask.shape == sample.image.shape[:2]
    except DataError as error:
        assert str(root) in str(error), error
        return str(error)
    return ""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_data_set_that_is_whole(layout, written):
    assert read_or_refuse(layout, written[layout][0]) == ""


def repr_start(content: bytes) -> str:
    return repr(content[:4])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"\xff\xfe\0\0", b"\x89PNG\r\n\x1a\n", b"[" * 100_000, b"null"], ids=repr_start
)
def test_any_file_with_other_content(layout, content, written, tmp_path):
    """Each file of each layout in turn; zero bytes, the beginning of a picture, JSON deeper than Python goes."""
    source, _ = written[layout]
    for file in sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file()):
        root = tmp_path / "_".join(file.parts)
        shutil.copytree(source, root)
        (root / file).write_bytes(content)
        assert read_or_refuse(layout, root), file


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_files_that_are_cut_or_changed(layout, data, written, tmp_path_factory):
    source, _ = written[layout]
    root = tmp_path_factory.mktemp("changed") / "data"
    shutil.copytree(source, root)
    file = data.draw(st.sampled_from(sorted(path for path in root.rglob("*") if path.is_file())))
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
            content[place] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    read_or_refuse(layout, root)
    shutil.rmtree(root)


def list_places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, entry in inner for found in list_places(entry, (*place, key)))][:400]


ODD = [None, True, 0, -1, 0.5, 10**30, 1e308, float("nan"), "", "x", "\0", "../..", "a" * 3000, [], [[]], {}, {"id": 1}]


@pytest.mark.parametrize("layout", JSON)
@given(data=st.data())
def test_values_that_are_something_else(layout, data, written, tmp_path_factory):
    """Everything in a JSON file in turn is left out, or replaced by what nobody expects."""
    source, file = written[layout]
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    place = data.draw(st.sampled_from(list_places(content)))
    odd = data.draw(st.sampled_from([*ODD, "left out"]))
    if place:
        inner = content
        for key in place[:-1]:
            inner = inner[key]
        if odd == "left out":
            del inner[place[-1]]
        else:
            inner[place[-1]] = odd
    else:
        content = odd
    root = tmp_path_factory.mktemp("odd") / "data"
    shutil.copytree(source, root)
    (root / file.relative_to(source)).write_text(json.dumps(content))
    read_or_refuse(layout, root)
    shutil.rmtree(root)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_images_of_one_row_or_column(size, tmp_path):
    annotation = {"category_id": 4, "segmentation": {"size": size, "counts": [0, size[0] * size[1]]}}
    save_image(tmp_path / "images" / "a.png", size)
    test_coco.write(tmp_path, test_coco.describe(annotation, size=size))
    assert DATASETS["coco"](tmp_path, "train")[0].mask.all()


def test_masks_that_the_shared_helper_makes_have_every_class():
    assert all(set(np.unique(mask)) <= {0, 1, 2} for mask in make_masks(5))
    assert {mask.shape for mask in make_masks(2)} == {(1, 37), (1, 1)}
