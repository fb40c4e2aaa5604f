"""Each writer against an independent reader, and against our own layout, pixel for pixel."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lxml import etree
from pycocotools.coco import COCO

from tests.data.layouts.drawn import CLASSES, NAMES, make_masks, save_image
from tests.data.layouts.test_brush_rle import unpack
from tw_seg.data import DATASETS
from tw_seg.data.export import EXPORTS
from tw_seg.data.export.label_studio import write_label_studio
from tw_seg.data.export.masks import MaskedImage, count_runs, list_objects
from tw_seg.errors import InputError

# pycocotools 2.0 on numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")

FILES = {"coco": "annotations/instances_train.json", "cvat": "annotations.xml", "label_studio": "annotations.json"}
MASKS = [*make_masks(2), make_masks(3, values=(0, 1, 2, 255), seed=1)[2]]


def write(layout: str, root: Path, *, predicted: bool = False) -> Path:
    for name, mask in zip(NAMES, MASKS, strict=True):
        save_image(root / "images" / name, mask.shape)
    path = root / FILES[layout]
    images = (MaskedImage(name, mask) for name, mask in zip(NAMES, MASKS, strict=True))
    assert EXPORTS[layout](path, images, CLASSES, predicted=predicted) == 3
    return path


@pytest.mark.parametrize("layout", EXPORTS)
def test_our_own_layouts_read_what_was_written(layout, tmp_path):
    write(layout, tmp_path)
    data = DATASETS[layout](tmp_path, "train" if layout == "coco" else None)
    assert data.classes == CLASSES and data.names == ("a b", "sub/caf\u00e9", "c;,|.1")
    assert (MASKS[2] == 255).any() and (MASKS[2] == 1).any()
    for mask, sample in zip(MASKS, data, strict=True):
        np.testing.assert_array_equal(sample.mask, mask)


def test_pycocotools_reads_coco(tmp_path):
    path = write("coco", tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        read = COCO(str(path))
    names = {category["id"]: category["name"] for category in read.loadCats(read.getCatIds())}
    assert list(names.values()) == [*CLASSES[1:], "ignore"]
    for image in read.loadImgs(read.getImgIds()):
        mask = MASKS[NAMES.index(image["file_name"])]
        found = np.zeros((image["height"], image["width"]), dtype=np.uint8)
        for entry in read.loadAnns(read.getAnnIds(imgIds=image["id"])):
            inside = read.annToMask(entry) > 0
            value = 255 if entry["iscrowd"] else CLASSES.index(names[entry["category_id"]])
            assert not found[inside].any() and inside.sum() == entry["area"]
            rows, columns = np.nonzero(inside)
            left, top, width, height = entry["bbox"]
            assert (left, top, left + width, top + height) == (
                columns.min(),
                rows.min(),
                columns.max() + 1,
                rows.max() + 1,
            )
            found[inside] = value
        np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize(("predicted", "source"), [(True, "auto"), (False, "manual")])
def test_lxml_reads_cvat(tmp_path, predicted, source):
    root = etree.parse(str(write("cvat", tmp_path, predicted=predicted))).getroot()
    assert root.xpath("meta/task/labels/label/name/text()") == [*CLASSES[1:], "ignore"]
    for name, mask, image in zip(NAMES, MASKS, root.findall("image"), strict=True):
        assert image.get("name") == name
        found = np.zeros((int(image.get("height")), int(image.get("width"))), dtype=np.uint8)
        for shape in image.findall("mask"):
            assert shape.get("source") == source
            left, top, width, height = (int(shape.get(key)) for key in ("left", "top", "width", "height"))
            pixels: list[bool] = []
            for number, count in enumerate(shape.get("rle").split(",")):
                pixels += [number % 2 == 1] * int(count)
            label = shape.get("label")
            value = 255 if label == "ignore" else CLASSES.index(label)
            found[top : top + height, left : left + width][np.reshape(pixels, (height, width))] = value
        np.testing.assert_array_equal(found, mask)


@pytest.mark.parametrize("predicted", [True, False])
def test_the_published_description_reads_label_studio(tmp_path, predicted):
    tasks = json.loads(write("label_studio", tmp_path, predicted=predicted).read_text(encoding="utf-8"))
    urls = ["a%20b.JPG", "sub/caf%C3%A9.png", "c%3B%2C%7C.1.png"]
    assert [task["data"]["image"] for task in tasks] == [f"/data/local-files/?d={url}" for url in urls]
    for mask, task in zip(MASKS, tasks, strict=True):
        found = np.zeros(mask.shape, dtype=np.uint8)
        [given] = task["predictions" if predicted else "annotations"]
        assert task["annotations" if predicted else "predictions"] == []
        for result in given["result"]:
            assert (result["original_height"], result["original_width"]) == mask.shape
            [label] = result["value"]["brushlabels"]
            opacity = np.reshape(unpack(bytes(result["value"]["rle"])), (*mask.shape, 4))[..., 3]
            found[opacity > 0] = 255 if label == "ignore" else CLASSES.index(label)
        np.testing.assert_array_equal(found, mask)


def test_predictions_are_no_annotations(tmp_path):
    write("label_studio", tmp_path, predicted=True)
    data = DATASETS["label_studio"](tmp_path, classes=list(CLASSES))
    assert not data.has_mask.any() and np.isnan(data.labels[:, 1:]).all()


@given(arrays(np.bool_, st.integers(1, 30)).filter(lambda flat: flat.any()))
def test_runs_add_up_to_the_pixels(flat):
    counts = count_runs(np.flatnonzero(flat), flat.size)
    assert sum(counts) == flat.size and all(count > 0 for count in counts[1:])
    np.testing.assert_array_equal(np.repeat(np.arange(len(counts)) % 2 == 1, counts), flat)


def test_objects_are_connected_pixels():
    mask = np.array([[1, 0, 2, 2], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=np.uint8)
    found = [(one.label, one.left, one.top, one.inside.shape) for one in list_objects(mask, CLASSES)]
    assert found == [(CLASSES[1], 0, 0, (2, 2)), (CLASSES[1], 3, 2, (1, 1)), (CLASSES[2], 2, 0, (1, 2))]


@pytest.mark.parametrize("layout", EXPORTS)
def test_what_cannot_be_written_leaves_nothing(layout, tmp_path):
    images = [MaskedImage("a.png", MASKS[0]), MaskedImage("b.png", np.full((2, 2), 3, dtype=np.uint8))]
    with pytest.raises(InputError, match="a mask has the value 3, but there are only 3 classes: name them all"):
        EXPORTS[layout](tmp_path / "out" / "file", images, CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_names_that_xml_cannot_hold(tmp_path):
    with pytest.raises(InputError, match=r"'a\\x01.png' holds a character that XML cannot hold"):
        EXPORTS["cvat"](tmp_path / "a.xml", [MaskedImage("a\x01.png", MASKS[0])], CLASSES)


def test_addresses_of_images(tmp_path):
    write_label_studio(tmp_path / "a.json", [MaskedImage("a b.png", MASKS[0])], CLASSES, url="https://example.org/")
    assert json.loads((tmp_path / "a.json").read_text())[0]["data"]["image"] == "https://example.org/a%20b.png"
