from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as pycoco

from tests.data.layouts.drawn import CLASSES, NAMES, make_masks, polygons, save_image
from tw_seg.data.consistency import check_masks
from tw_seg.data.layouts.coco import COCODataset
from tw_seg.data.layouts.shapes import Polygons, Runs
from tw_seg.errors import DataError, InputError

SIZE = (20, 30)

# pycocotools 2.0 on numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def write(root: Path, content: Any, split: str = "train") -> Path:
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    return path


def describe(*annotations: dict[str, Any], names: tuple[str, ...] = ("a.png",), size=SIZE) -> dict[str, Any]:
    """A file in which the ids are neither in order nor without gaps."""
    return {
        "info": {"description": "test"},
        "images": [
            {"id": 70 - i, "file_name": name, "height": size[0], "width": size[1]} for i, name in enumerate(names)
        ],
        "categories": [{"id": 9, "name": CLASSES[2]}, {"id": 4, "name": CLASSES[1]}],
        "annotations": [{"id": i + 1, "image_id": 70, "iscrowd": 0, **one} for i, one in enumerate(annotations)],
    }


def square(left: int, top: int, side: int) -> list[float]:
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def draw(root: Path, *annotations: dict[str, Any], **options: Any) -> Any:
    save_image(root / "images" / "a.png", SIZE)
    write(root, describe(*annotations))
    return COCODataset(root, "train", **options)[0]


@given(st.lists(polygons(30, 20), min_size=1, max_size=3))
def test_polygons_are_drawn_as_pycocotools_draws_them(rings):
    expected = pycoco.decode(pycoco.merge(pycoco.frPyObjects(rings, *SIZE)))
    np.testing.assert_array_equal(Polygons(tuple(map(tuple, rings))).fill(SIZE), expected > 0)


@given(st.integers(0, 2**16))
def test_run_lengths_are_read_as_pycocotools_writes_them(seed):
    mask = np.random.default_rng(seed).random(SIZE) > 0.6
    code = pycoco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    np.testing.assert_array_equal(Runs(code, SIZE).fill(SIZE), mask)
    column = mask.T.ravel()
    changes = np.flatnonzero(np.diff(column, prepend=False))
    counts = np.diff(np.concatenate([[0], changes, [column.size]])).tolist()
    np.testing.assert_array_equal(Runs(tuple(counts), SIZE).fill(SIZE), mask)
    np.testing.assert_array_equal(pycoco.decode(pycoco.frPyObjects({"counts": counts, "size": SIZE}, *SIZE)), mask)


def test_masks_of_another_program_come_back_pixel_for_pixel(tmp_path):
    """Written by pycocotools, one object per class and image, in three ways."""
    masks = make_masks(3)
    content = describe(names=NAMES)
    for row, (mask, image) in enumerate(zip(masks, content["images"], strict=True)):
        save_image(tmp_path / "images" / NAMES[row], mask.shape)
        image["height"], image["width"] = mask.shape
        for class_id, category in ((1, 4), (2, 9)):
            inside = np.asfortranarray((mask == class_id).astype(np.uint8))
            runs = pycoco.encode(inside)
            if row == 1:
                column = inside.T.ravel()
                changes = np.flatnonzero(np.diff(column, prepend=np.uint8(0)))
                counts = np.diff(np.concatenate([[0], changes, [column.size]])).tolist()
            else:
                counts = runs["counts"].decode()
            entry = {"image_id": image["id"], "category_id": category, "area": int(pycoco.area(runs)), "iscrowd": 0}
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, **entry, "segmentation": {"size": mask.shape, "counts": counts}}
            )
    write(tmp_path, content)
    data = COCODataset(tmp_path, "train")
    assert data.classes == CLASSES and data.has_mask.all()
    assert data.names == ("a b", "sub/caf\u00e9", "c;,|.1")
    for mask, sample, labels in zip(masks, data, data.labels, strict=True):
        np.testing.assert_array_equal(sample.mask, mask)
        assert sample.regions is None and labels.tolist() == [1, 1, 1]


def test_smaller_objects_lie_over_larger_ones_and_crowds_below_all(tmp_path):
    small, large, crowd = square(4, 4, 3), square(2, 2, 10), square(8, 8, 11)
    annotations = [
        {"category_id": 4, "segmentation": [small], "area": 9},
        {"category_id": 9, "segmentation": [large], "area": 100},
        {"category_id": 4, "segmentation": [crowd], "area": 1, "iscrowd": 1},
    ]
    expected = np.zeros(SIZE, dtype=np.uint8)
    for ring, value in ((crowd, 255), (large, 2), (small, 1)):
        expected[pycoco.decode(pycoco.frPyObjects([ring], *SIZE))[..., 0] > 0] = value
    assert set(np.unique(expected)) == {0, 1, 2, 255}
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        np.testing.assert_array_equal(draw(tmp_path, *(annotations[i] for i in order)).mask, expected)
    for one in annotations:
        one.pop("area")
    np.testing.assert_array_equal(draw(tmp_path, *annotations).mask, expected)


def test_of_equal_objects_the_later_lies_over_the_earlier(tmp_path):
    same = {"segmentation": [square(4, 4, 3)], "area": 9}
    first = draw(tmp_path, {"category_id": 4, **same}, {"category_id": 9, **same})
    second = draw(tmp_path, {"category_id": 9, **same}, {"category_id": 4, **same})
    assert (first.mask[5, 5], second.mask[5, 5]) == (2, 1)


def test_boxes_are_sets_of_classes(tmp_path):
    sample = draw(
        tmp_path,
        {"category_id": 4, "bbox": [2, 2, 10, 10]},
        {"category_id": 9, "bbox": [8.5, 8, 10, 8.2], "segmentation": []},
        {"category_id": 9, "segmentation": [square(3, 3, 2)], "area": 4},
    )
    sets = {tuple(np.flatnonzero(row)): row_id + 3 for row_id, row in enumerate(sample.regions)}
    assert sample.regions.shape == (3, 3) and sets.keys() == {(0, 1), (0, 2), (0, 1, 2)}
    expected = np.zeros(SIZE, dtype=np.uint8)
    for y, x in np.ndindex(*SIZE):
        inside = [2 <= x < 12 and 2 <= y < 12, 8 <= x < 19 and 8 <= y < 17]
        allowed = (0, *(k + 1 for k in range(2) if inside[k]))
        expected[y, x] = sets[allowed] if len(allowed) > 1 else 0
    expected[3:5, 3:5] = 2
    np.testing.assert_array_equal(sample.mask, expected)
    assert sample.labels.tolist() == [1, 1, 1]


def test_boxes_alone_agree_with_the_labels_that_are_taken_from_them(tmp_path):
    draw(tmp_path, {"category_id": 4, "bbox": [2, 2, 10, 10]})
    data = COCODataset(tmp_path, "train")
    held, _ = data.read_mask_ids(0)
    assert np.flatnonzero(held).tolist() == [0, 3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_masks(data, [0], "masks")


@pytest.mark.parametrize(("unannotated", "has_mask", "label"), [("background", True, 0), ("unlabelled", False, np.nan)])
def test_images_without_annotations(tmp_path, unannotated, has_mask, label):
    draw(tmp_path)
    data = COCODataset(tmp_path, "train", unannotated=unannotated)
    assert data.has_mask.tolist() == [has_mask]
    np.testing.assert_array_equal(data.labels, [[1, label, label]])
    mask = data[0].mask
    assert (mask is None) is not has_mask and (mask is None or not mask.any())


def test_a_class_list_leaves_classes_out_and_ignored_ones_are_255(tmp_path):
    shapes = [
        {"category_id": 4, "segmentation": [square(4, 4, 3)]},
        {"category_id": 9, "segmentation": [square(9, 9, 3)]},
    ]
    sample = draw(tmp_path, *shapes, classes=["background", CLASSES[2]])
    assert set(np.unique(sample.mask)) == {0, 1} and sample.mask[10, 10] == 1
    sample = draw(tmp_path, *shapes, ignore=[CLASSES[1]])
    assert sample.mask[5, 5] == 255 and sample.mask[10, 10] == 1 and sample.labels.tolist() == [1, 1]
    (tmp_path / "classes.txt").write_text("background\ncow\n")
    with pytest.raises(DataError, match=r"instances_train.json: no class 'cow'; the file has cat|dog"):
        COCODataset(tmp_path, "train")


def test_splits(tmp_path):
    names = tuple(f"{i}.png" for i in range(20))
    for name in names:
        save_image(tmp_path / "images" / name, SIZE)
    write(tmp_path, describe(names=names), "train")
    write(tmp_path, describe(names=names[:3]), "val")
    assert len(COCODataset(tmp_path, "train")) == 20 and len(COCODataset(tmp_path, "val")) == 3
    assert COCODataset.list_splits(tmp_path) == ("train", "val")
    with pytest.raises(
        DataError, match=r"no such file for the split 'test'; found: .*instances_train.json, .*val.json"
    ):
        COCODataset(tmp_path, "test")
    with pytest.raises(DataError, match=r"which split\? Give split="):
        COCODataset(tmp_path)
    one = {"annotations": "annotations/instances_train.json"}
    shares = {"shares": {"train": 0.5, "val": 0.5}}
    parts = [COCODataset(tmp_path, split, split_by=shares, **one).names for split in ("train", "val")]
    assert sorted(parts[0] + parts[1]) == sorted(COCODataset(tmp_path, **one).names)
    with pytest.raises(DataError, match=r"nothing says which images belong to the split 'val'; give split_by="):
        COCODataset(tmp_path, "val", **one)
    assert len(COCODataset(tmp_path, "val", need_labels=False, **one)) == 20
    with pytest.raises(InputError, match="give split_by, or {split} in the path annotations, not both"):
        COCODataset(tmp_path, "val", split_by=shares)


def test_an_image_that_its_exif_tag_turns(tmp_path):
    """Annotations that were made on what viewers show fit; those on the stored pixels are refused."""
    image = Image.fromarray(np.zeros((30, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    image.save(tmp_path / "images" / "a.jpg", exif=exif)
    entry = {"category_id": 4, "segmentation": [square(4, 4, 3)]}
    write(tmp_path, describe(entry, names=("a.jpg",)))
    assert COCODataset(tmp_path, "train")[0].mask[5, 5] == 1
    write(tmp_path, describe(entry, names=("a.jpg",), size=SIZE[::-1]))
    with pytest.raises(DataError, match=r"a.jpg.*for 30x20 pixels.*its image has 20x30.*The sides are swapped"):
        COCODataset(tmp_path, "train")[0]


RING = [square(4, 4, 3)]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"category_id": 4, "segmentation": [[1, 1, 2, 2]]}, r"x and y of at least 3 corners, got 4 numbers"),
        ({"category_id": 4, "segmentation": [[1, 1, 2, 2, 3]]}, r"at least 3 corners, got 5 numbers"),
        ({"category_id": 4, "segmentation": [[1, 1, 1e8, 2, 3, 3]]}, r"the point \(1e\+08, 2\) is far outside"),
        (
            {"category_id": 4, "segmentation": [[1, 1, float("nan"), 2, 3, 3]]},
            r"a number .* in 'segmentation', found nan",
        ),
        ({"category_id": 4, "segmentation": [[1, 1, 10**400, 2, 3, 3]]}, r"annotations\[0\]: expected a number"),
        ({"category_id": 4, "segmentation": [["x"] * 6]}, r"expected a number in 'segmentation', found 'x'"),
        ({"category_id": 4, "segmentation": "x"}, r"expected a list in 'segmentation', found 'x'"),
        ({"category_id": 4, "segmentation": {"size": [20, 30], "counts": [1, 2]}}, r"add up to 3 pixels"),
        ({"category_id": 4, "segmentation": {"size": [20, 30], "counts": [-5, 605]}}, r"or one is negative"),
        ({"category_id": 4, "segmentation": {"size": [20, 30], "counts": "~~~"}}, r"the run lengths are broken"),
        ({"category_id": 4, "segmentation": {"size": [20, 30], "counts": "\u00e9"}}, r"the run lengths are broken"),
        ({"category_id": 4, "segmentation": {"size": [2, 3], "counts": [6]}}, r"for 2x3 pixels .* its image has 20x30"),
        ({"category_id": 4, "segmentation": {"size": [2], "counts": [6]}}, r"expected height and width in 'size'"),
        ({"category_id": 4, "segmentation": {"counts": [6]}}, r"annotations\[0\].segmentation: expected 'size', found"),
        ({"category_id": 4}, r"expected 'bbox'"),
        ({"category_id": 4, "bbox": [1, 2, -3, 4]}, r"expected left, top, width and height in 'bbox'"),
        ({"category_id": 5, "segmentation": RING}, r"the category 5 is not in the file's list"),
        ({"segmentation": RING}, r"expected 'category_id'"),
        ({"category_id": 4.5, "segmentation": RING}, r"expected a whole number in 'category_id', found 4.5"),
        (
            {"category_id": 4, "segmentation": RING, "image_id": 3},
            r"annotations of the image 3, which is not in 'images'",
        ),
    ],
)
def test_broken_annotations(tmp_path, entry, message):
    with pytest.raises(DataError, match=rf"instances_train.json.*{message}"):
        draw(tmp_path, entry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, r"there is no image in it"),
        ({"images": {}}, r"expected a list in 'images', found \{\}"),
        ({"images": [3]}, r"images\[0\]: expected a mapping, found 3"),
        ({"images": [{"id": 1, "height": 2, "width": 3}]}, r"images\[0\]: expected 'file_name', found"),
        (
            {"images": [{"id": 70, "file_name": "b.png", "height": 2, "width": 3}]},
            r"b.png.* \('a.png'|there is a.png\)",
        ),
        ({"images": [{"id": i, "file_name": "a.png", "height": 2, "width": 3} for i in (1, 2)]}, r"is listed twice"),
        ({"images": [{"id": 1, "file_name": "a.png", "height": 2, "width": 3}] * 2}, r"the image id 1 is used twice"),
        ({"categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "x"}]}, r"the category 'x' \(2\) is listed twice"),
        ({"categories": []}, r"expected 2 to 255 classes, background included, found 1"),
        ({"categories": None}, r"expected 'categories', found"),
    ],
)
def test_broken_files(tmp_path, change, message):
    save_image(tmp_path / "images" / "a.png", SIZE)
    write(tmp_path, {**describe(), **change})
    with pytest.raises(DataError, match=rf"(?s)instances_train.json.*{message}|{message}.*instances_train.json"):
        COCODataset(tmp_path, "train")


def test_errors_of_single_images_can_be_collected(tmp_path):
    save_image(tmp_path / "images" / "a.png", SIZE)
    write(tmp_path, describe(names=("a.png", "b.png", "a.png")))
    errors: list[DataError] = []
    data = COCODataset(tmp_path, "train", on_error=errors.append)
    assert data.names == ("a",) and data[0].mask is not None
    assert [str(error).partition(": ")[2][-30:] for error in errors] and len(errors) == 2
    assert "b.png" in str(errors[0]) and "listed twice" in str(errors[1])


def test_folders_of_images(tmp_path):
    save_image(tmp_path / "train" / "a.png", SIZE)
    path = write(tmp_path, describe())
    path.rename(tmp_path / "train" / "_annotations.coco.json")
    paths = {"annotations": "{split}/_annotations.coco.json", "images": "{split}"}
    assert COCODataset(tmp_path, "train", **paths)[0].mask.shape == SIZE
    with pytest.raises(DataError, match=r"nothing: there is no such folder of images; correct images="):
        COCODataset(tmp_path, "train", annotations=paths["annotations"], images="nothing")


def test_options_that_do_not_exist(tmp_path):
    with pytest.raises(InputError, match="unannotated must be 'background' or 'unlabelled', got 'empty'"):
        COCODataset(tmp_path, "train", unannotated="empty")


def test_a_size_that_a_file_only_claims_fills_no_memory(tmp_path):
    """The area of run lengths that lacks in the file is measured; that of an impossible image is not."""
    sides = [2**30, 2**30]
    with pytest.raises(DataError, match="instances_train.json: image 'a.png'.* for 1073741824x1073741824 pixels"):
        draw(tmp_path, {"category_id": 4, "segmentation": {"size": sides, "counts": "0" * 12}})
