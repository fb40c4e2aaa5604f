from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lxml import etree
from pycocotools import mask as pycoco

from tests.data.layouts.drawn import CLASSES, NAMES, make_masks, save_image
from tw_seg.data.layouts.cvat import CVATDataset
from tw_seg.errors import DataError

SIZE = (20, 30)

# pycocotools 2.0 on numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def start(*labels: str) -> etree._Element:
    """The beginning of an export, with the labels of the task."""
    root = etree.Element("annotations")
    etree.SubElement(root, "version").text = "1.1"
    task = etree.SubElement(etree.SubElement(root, "meta"), "task")
    listed = etree.SubElement(task, "labels")
    for name in labels:
        label = etree.SubElement(listed, "label")
        etree.SubElement(label, "name").text = name
        attribute = etree.SubElement(etree.SubElement(label, "attributes"), "attribute")
        etree.SubElement(attribute, "name").text = "colour"
    return root


def add_image(root: etree._Element, name: str, size: tuple[int, int], **attributes: str) -> etree._Element:
    place = {"id": "0", "name": name, "width": str(size[1]), "height": str(size[0])}
    return etree.SubElement(root, "image", place | attributes)


def write(root: Path, content: etree._Element, encoding: str = "utf-8") -> None:
    etree.ElementTree(content).write(str(root / "annotations.xml"), encoding=encoding, xml_declaration=True)


def draw(root: Path, *shapes: tuple[str, dict[str, str]]) -> object:
    save_image(root / "images" / "a.png", SIZE)
    content = start("cat", "dog")
    image = add_image(content, "a.png", SIZE)
    for tag, attributes in shapes:
        etree.SubElement(image, tag, {"label": "cat", "source": "manual", "occluded": "0"} | attributes)
    write(root, content)
    return CVATDataset(root)[0]


def count_runs(inside: np.ndarray) -> str:
    """Lengths of runs outside and inside in turn, by loops."""
    counts, value = [0], False
    for pixel in inside.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return ", ".join(map(str, counts))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_masks_come_back_pixel_for_pixel(tmp_path, encoding):
    masks = make_masks(3)
    content = start(*CLASSES[1:])
    for name, mask in zip(NAMES, masks, strict=True):
        save_image(tmp_path / "images" / name, mask.shape)
        image = add_image(content, name, mask.shape)
        for class_id in (1, 2):
            rows, columns = np.nonzero(mask == class_id)
            if not len(rows):
                continue
            top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
            box = {"left": left, "top": top, "width": right - left, "height": bottom - top}
            runs = count_runs((mask == class_id)[top:bottom, left:right])
            shape = {"label": CLASSES[class_id], "rle": runs} | {key: str(value) for key, value in box.items()}
            etree.SubElement(image, "mask", shape)
    write(tmp_path, content, encoding)
    data = CVATDataset(tmp_path)
    assert data.classes == CLASSES and data.names == ("a b", "sub/caf\u00e9", "c;,|.1")
    for mask, sample in zip(masks, data, strict=True):
        np.testing.assert_array_equal(sample.mask, mask)


def test_shapes_are_drawn_by_z_order_and_then_in_the_order_of_the_file(tmp_path):
    corners = "3.00,2.00;15.00,2.00;15.00,10.00"
    shapes = [
        ("polygon", {"points": corners, "z_order": "1"}),
        ("polygon", {"points": "2,1;20,1;20,12", "z_order": "0", "label": "dog"}),
        ("polygon", {"points": "3,3;9,3;9,9;3,9", "z_order": "0"}),
    ]
    expected = np.zeros(SIZE, dtype=np.uint8)
    rings = [([2, 1, 20, 1, 20, 12], 2), ([3, 3, 9, 3, 9, 9, 3, 9], 1), ([3, 2, 15, 2, 15, 10], 1)]
    for ring, value in rings:
        expected[pycoco.decode(pycoco.frPyObjects([[float(v) for v in ring]], *SIZE))[..., 0] > 0] = value
    np.testing.assert_array_equal(draw(tmp_path, *shapes).mask, expected)


def test_ellipses_boxes_and_tags(tmp_path):
    sample = draw(
        tmp_path,
        ("ellipse", {"cx": "8", "cy": "8", "rx": "6", "ry": "3", "rotation": "90"}),
        ("box", {"xtl": "14.5", "ytl": "1", "xbr": "20", "ybr": "5.2"}),
        ("tag", {"label": "dog"}),
    )
    expected = np.zeros(SIZE, dtype=np.uint8)
    expected[1:6, 14:20] = 3
    for y, x in np.ndindex(*SIZE):
        if ((x + 0.5 - 8) / 3) ** 2 + ((y + 0.5 - 8) / 6) ** 2 <= 1:
            expected[y, x] = 1
    np.testing.assert_array_equal(sample.mask, expected)
    assert sample.regions.tolist() == [[True, True, False]] and sample.labels.tolist() == [1, 1, 1]


def test_a_turned_box(tmp_path):
    sample = draw(tmp_path, ("box", {"xtl": "4", "ytl": "8", "xbr": "16", "ybr": "12", "rotation": "90"}))
    expected = np.zeros(SIZE, dtype=np.uint8)
    expected[4:16, 8:12] = 3
    np.testing.assert_array_equal(sample.mask, expected)


def test_subsets_are_splits(tmp_path):
    content = start("cat")
    for name, subset in (("a.png", "Train"), ("b.png", "Validation"), ("c.png", "Train")):
        save_image(tmp_path / name, SIZE)
        add_image(content, name, SIZE, subset=subset)
    write(tmp_path, content)
    assert [CVATDataset(tmp_path, split).names for split in ("train", "val")] == [("a", "c"), ("b",)]
    assert CVATDataset.list_splits(tmp_path) == ("Train", "Validation")
    with pytest.raises(DataError, match=r"the split 'test' is empty; the file has: Train, Validation"):
        CVATDataset(tmp_path, "test")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (("points", {"points": "1,2"}), r"image 'a.png', <points>: expected <polygon>, <mask>, .* or <tag>; draw it"),
        (("polygon", {"points": "1,2;3,4"}), r"at least 3 corners, got 4 numbers"),
        (("polygon", {"points": "1,2;3,x;4,5"}), r"expected a number in 'points', found 'x'"),
        (("polygon", {}), r"expected 'points', found 'label', 'occluded', 'source'"),
        (("polygon", {"points": "1,2;3,4;5,6", "z_order": "1.5"}), r"expected a whole number in 'z_order'"),
        (("polygon", {"points": "1,2;3,inf;5,6"}), r"expected a number .* in 'points'"),
        (
            ("mask", {"rle": "1,2", "left": "0", "top": "0", "width": "2", "height": "2"}),
            r"add up to 3 pixels, not to 2x2",
        ),
        (
            ("mask", {"rle": "4", "left": "29", "top": "0", "width": "2", "height": "2"}),
            r"reaches beyond the image, 20x30",
        ),
        (("mask", {"rle": "4", "left": "-1", "top": "0", "width": "2", "height": "2"}), r"reaches beyond the image"),
        (("mask", {"rle": "", "left": "0", "top": "0", "width": "2", "height": "2"}), r"expected a number in 'rle'"),
        (("ellipse", {"cx": "1e6", "cy": "8", "rx": "6", "ry": "3"}), r"the point \(1e\+06, 8\) is far outside"),
    ],
)
def test_broken_shapes(tmp_path, shape, message):
    with pytest.raises(DataError, match=rf"annotations.xml.*{message}"):
        draw(tmp_path, shape)


BOMB = '<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;&b;">]><annotations><image name="&d;"/></annotations>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected XML \(no element found"),
        ("<annotations><image", r"it is no XML file or truncated"),
        ("{}", r"it is no XML file"),
        ('<?xml version="1.0" encoding="nothing"?><annotations/>', r"expected XML"),
        (BOMB, r"XML with entities or references is not read .* take them out"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotations/>', r"there is no image in it"),
        ("<annotation/>", r"expected <annotations> with an <image> for each image, found <annotation>"),
        ("<annotations><track/></annotations>", r"found tracks of a video; export the task as 'CVAT for images 1.1'"),
        ("<annotations/>", r"there is no image in it"),
        ('<annotations><image name="a.png" width="3"/></annotations>', r"image 0: expected 'height', found"),
        ("<a>" * 100_000, r"expected XML"),
    ],
)
def test_broken_files(tmp_path, text, message):
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match=rf"annotations.xml.*{message}"):
        CVATDataset(tmp_path)
    (tmp_path / "annotations.xml").unlink()
    with pytest.raises(DataError, match=r"annotations.xml: cannot read the file \(No such file or directory\)"):
        CVATDataset(tmp_path)
