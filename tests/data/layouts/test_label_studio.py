from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as pycoco

from tests.data.layouts.drawn import CLASSES, NAMES, make_masks, save_image
from tests.data.layouts.test_brush_rle import pack
from tw_seg.data.layouts.label_studio import LabelStudioDataset
from tw_seg.errors import DataError

SIZE = (20, 30)
SQUARE = [[10, 10], [50, 10], [50, 50], [10, 50]]

# pycocotools 2.0 on numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def region(kind: str, label: str = CLASSES[1], *, size: tuple[int, int] = SIZE, **value: Any) -> dict[str, Any]:
    """A region as Label Studio exports it."""
    return {
        "original_height": size[0],
        "original_width": size[1],
        "image_rotation": 0,
        "value": {**value, kind: [label]},
        "id": f"r{id(value)}",
        "from_name": "tag",
        "to_name": "image",
        "type": kind,
        "origin": "manual",
    }


def brush(mask: np.ndarray, label: str) -> dict[str, Any]:
    values = np.repeat(mask.astype(np.uint8).ravel() * 255, 4).tolist()
    chunks = [(False, min(7, len(values) - place)) for place in range(0, len(values), 7)]
    return region("brushlabels", label, size=mask.shape, format="rle", rle=list(pack(values, chunks)))


def task(url: str, *results: dict[str, Any], **annotation: Any) -> dict[str, Any]:
    return {"id": 1, "data": {"image": url}, "annotations": [{"id": 2, "result": list(results), **annotation}]}


def write(root: Path, *tasks: Any) -> Path:
    path = root / "annotations.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


def draw(root: Path, *results: dict[str, Any], **options: Any) -> Any:
    save_image(root / "images" / "a.png", SIZE)
    write(root, task("a.png", *results))
    return LabelStudioDataset(root, **options)[0]


def test_masks_of_brushes_come_back_pixel_for_pixel(tmp_path):
    """Written by the published description of the code, see `pack`."""
    masks = make_masks(3)
    tasks = []
    for name, mask in zip(NAMES, masks, strict=True):
        save_image(tmp_path / "images" / name, mask.shape)
        tasks.append(task(name, *(brush(mask == k, CLASSES[k]) for k in (1, 2))))
    write(tmp_path, *tasks)
    data = LabelStudioDataset(tmp_path)
    assert data.classes == CLASSES and data.has_mask.all()
    for mask, sample in zip(masks, data, strict=True):
        np.testing.assert_array_equal(sample.mask, mask)


def test_polygons_are_shares_of_the_sides(tmp_path):
    sample = draw(
        tmp_path, region("polygonlabels", points=SQUARE), region("polygonlabels", CLASSES[2], points=SQUARE[:3])
    )
    expected = np.zeros(SIZE, dtype=np.uint8)
    for ring, value in (([3, 2, 15, 2, 15, 10, 3, 10], 1), ([3, 2, 15, 2, 15, 10], 2)):
        expected[pycoco.decode(pycoco.frPyObjects([[float(v) for v in ring]], *SIZE))[..., 0] > 0] = value
    np.testing.assert_array_equal(sample.mask, expected)


@pytest.mark.parametrize("angle", [0, 30])
def test_ellipses(tmp_path, angle):
    sample = draw(tmp_path, region("ellipselabels", x=50, y=50, radiusX=30, radiusY=20, rotation=angle))
    turn = np.exp(-1j * np.deg2rad(angle))
    for y, x in np.ndindex(*SIZE):
        place = (x + 0.5 - 15 + 1j * (y + 0.5 - 10)) * turn
        assert sample.mask[y, x] == ((place.real / 9) ** 2 + (place.imag / 4) ** 2 <= 1)


def test_rectangles_are_sets_of_classes(tmp_path):
    straight = draw(tmp_path, region("rectanglelabels", x=10, y=10, width=40, height=40))
    assert straight.regions.tolist() == [[True, True]]
    expected = np.zeros(SIZE, dtype=np.uint8)
    expected[2:10, 3:15] = 2
    np.testing.assert_array_equal(straight.mask, expected)
    turned = draw(tmp_path, region("rectanglelabels", x=50, y=10, width=20, height=40, rotation=90))
    expected = np.zeros(SIZE, dtype=np.uint8)
    ring = [15.0, 2.0, 15.0, 8.0, 7.0, 8.0, 7.0, 2.0]  # about its first corner, as Label Studio turns
    expected[pycoco.decode(pycoco.frPyObjects([ring], *SIZE))[..., 0] > 0] = 2
    np.testing.assert_array_equal(turned.mask, expected)


@pytest.mark.parametrize(
    "url",
    [
        "a b#.png",
        "/data/upload/3/0123abcd-a%20b%23.png",
        "/data/local-files/?d=folder/a%20b%23.png",
        "https://example.org/x/a%20b%23.png?token=1",
        "s3://bucket/some/a b#.png",
        "C:\\pictures\\a b#.png",
    ],
)
def test_the_image_of_an_address(tmp_path, url):
    save_image(tmp_path / "images" / "a b#.png", SIZE)
    write(tmp_path, task(url, region("polygonlabels", points=SQUARE)))
    assert LabelStudioDataset(tmp_path).names == ("a b#",)


def test_which_annotation_counts(tmp_path):
    for name in "abcde":
        save_image(tmp_path / "images" / f"{name}.png", SIZE)
    one, two = ({"result": [region("polygonlabels", label, points=SQUARE)]} for label in CLASSES[1:])
    lists = {
        "a": [one, two],
        "b": [one, {**two, "was_cancelled": True}],
        "c": [{**one, "ground_truth": True}, two],
        "d": [],
        "e": [{"result": []}],
    }
    write(tmp_path, *({"data": {"image": f"{name}.png"}, "annotations": given} for name, given in lists.items()))
    data = LabelStudioDataset(tmp_path)
    assert data.has_mask.tolist() == [True, True, True, False, True]
    np.testing.assert_array_equal(data.labels[:, 1:], [[0, 1], [1, 0], [1, 0], [np.nan, np.nan], [0, 0]])
    assert LabelStudioDataset(tmp_path, unannotated="unlabelled").has_mask.tolist() == [True] * 3 + [False] * 2


def test_choices_are_image_level_labels_and_say_nothing_of_pixels(tmp_path):
    choice = {**region("choices"), "value": {"choices": [CLASSES[1]]}}
    data_of = {"classes": list(CLASSES)}
    assert draw(tmp_path, choice, **data_of).mask is None
    np.testing.assert_array_equal(LabelStudioDataset(tmp_path, **data_of).labels, [[1, 1, np.nan]])
    assert draw(tmp_path, choice, region("polygonlabels", CLASSES[2], points=SQUARE)).labels.tolist() == [1, 1, 1]


def test_labels_in_a_result_of_their_own(tmp_path):
    shape = {**region("polygon", points=SQUARE), "id": "x"}
    del shape["value"]["polygon"]
    name = {**region("labels", CLASSES[2], points=SQUARE), "id": "x"}
    assert draw(tmp_path, shape, name).mask[5, 5] == 1
    assert LabelStudioDataset(tmp_path).classes == ("background", CLASSES[2])


def test_splits(tmp_path):
    for i in range(20):
        save_image(tmp_path / "images" / f"{i}.png", SIZE)
    write(tmp_path, *(task(f"{i}.png", region("polygonlabels", points=SQUARE)) for i in range(20)))
    shares = {"split_by": {"shares": {"train": 0.5, "val": 0.5}}}
    parts = [LabelStudioDataset(tmp_path, split, **shares).names for split in ("train", "val")]
    assert sorted(parts[0] + parts[1]) == sorted(map(str, range(20))) and min(map(len, parts)) > 3
    assert LabelStudioDataset.list_splits(tmp_path) == (None,)
    with pytest.raises(DataError, match="nothing says which images belong to the split 'val'"):
        LabelStudioDataset(tmp_path, "val")


POLYGON = region("polygonlabels", points=SQUARE)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({**POLYGON, "image_rotation": 90}, r"the image was turned while it was annotated"),
        ({**POLYGON, "type": "keypointlabels"}, r"expected brushlabels, .* or choices, found 'keypointlabels'"),
        ({**POLYGON, "original_width": None}, r"expected 'original_width', found"),
        ({**POLYGON, "original_width": 31}, r"for 20x31 pixels .* its image has 20x30"),
        ({**POLYGON, "value": {"points": SQUARE}}, r"expected one label of the region, found none"),
        ({**POLYGON, "value": {"points": SQUARE, "polygonlabels": ["x", "y"]}}, r"one label of the region, found x, y"),
        ({**POLYGON, "value": 3}, r"expected one label"),
        ({**POLYGON, "value": {"polygonlabels": ["x"]}}, r"expected 'points', found"),
        ({**POLYGON, "value": {"points": [[1, 2]], "polygonlabels": ["x"]}}, r"at least 3 corners, got 2 numbers"),
        ({**POLYGON, "value": {"points": [[1]] * 6, "polygonlabels": ["x"]}}, r"expected x and y of a corner"),
        ({**POLYGON, "value": {"points": [["a", 1]], "polygonlabels": ["x"]}}, r"a number in 'points', found 'a'"),
        (region("brushlabels", rle=[1, 256]), r"expected bytes, 0 to 255, in 'rle'"),
        (region("brushlabels", rle=[1, 2]), r"the code of a brush has 2 bytes"),
        (region("rectanglelabels", x=1, y=1, width=1), r"expected 'height', found"),
        ({**region("choices"), "value": {"choices": [3]}}, r"expected names in 'choices', found \[3\]"),
        ({**region("choices"), "value": {"choices": [[]]}}, r"expected names in 'choices'"),
        (3, r"expected a mapping, found 3"),
    ],
)
def test_broken_results(tmp_path, result, message):
    with pytest.raises(DataError, match=rf"annotations.json.*{message}"):
        draw(tmp_path, POLYGON if result == 3 else result, *([3] if result == 3 else []))


def test_other_exports(tmp_path):
    save_image(tmp_path / "images" / "a.png", SIZE)
    write(tmp_path, {"data": {"image": "a.png"}, "tag": []})
    with pytest.raises(DataError, match=r"\[0\]: expected 'data' and 'annotations'; export .* not as JSON-MIN"):
        LabelStudioDataset(tmp_path)
    write(tmp_path, {"image": "a.png", "tag": []})
    with pytest.raises(DataError, match=r"\[0\]: expected 'data' and 'annotations'"):
        LabelStudioDataset(tmp_path)
    write(tmp_path, {"data": {"text": 3}, "annotations": []})
    with pytest.raises(DataError, match=r"data: expected the address of an image in 'image'"):
        LabelStudioDataset(tmp_path)
    write(tmp_path, task("https://[x/b.png"))
    with pytest.raises(DataError, match=r"b.png: .*annotations.json lists this image"):
        LabelStudioDataset(tmp_path)
    write(tmp_path, task("b.png"))
    with pytest.raises(DataError, match=r"b.png: .*annotations.json lists this image, but .* \(there is a.png\)"):
        LabelStudioDataset(tmp_path)
