"""Whatever is known of an image: masks, boxes, points, labels of some classes or none, in one folder."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tw_seg.data.consistency import check_masks
from tw_seg.data.layouts.folder import FolderDataset
from tw_seg.errors import DataError, InputError

HEIGHT, WIDTH = 8, 12
NONE = np.nan


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image of each kind, and what is known of it."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    names = ("full", "some", "scribble", "boxed", "points", "all three", "labels", "nothing")
    for name in names:
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)).save(tmp_path / "images" / f"{name}.png")
    for name in ("full", "some", "scribble", "all three"):
        mask = np.full((HEIGHT, WIDTH), 255 if name in ("scribble", "all three") else 0, dtype=np.uint8)
        mask[2, 1:4] = 1
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "image_labels.csv").write_text(
        "image,split,cat,dog,annotated\n"
        "full,train,1,0,\nsome,train,1,?,cat\nscribble,train,1,,\nboxed,train,?,0,\npoints,train,,,\n"
        "all three,train,1,1,\nlabels,train,0,1,\nnothing,train,,,\n"
    )
    (tmp_path / "boxes.csv").write_text(
        "image,class,x_min,y_min,x_max,y_max\nboxed,cat,1,1,5,4.5\nall three.png,dog,0,0,6,8\nall three,cat,3,0,12,8\n"
    )
    (tmp_path / "points.csv").write_text(
        "image,class,x,y\npoints,cat,3,3\npoints,background,10.5,6\nall three,dog,2,2\n"
    )
    return tmp_path


def test_labels_and_masks_of_every_kind(root):
    data = FolderDataset(root, "train")
    assert data.classes == ("background", "cat", "dog")
    np.testing.assert_array_equal(
        data.labels[:, 1:],
        [[1, 0], [1, NONE], [1, NONE], [1, 0], [1, NONE], [1, 1], [0, 1], [NONE, NONE]],
    )
    assert data.has_mask.tolist() == [True] * 6 + [False] * 2
    assert data.annotated.tolist() == [[True] * 3, [True, True, False], *[[True] * 3] * 6]
    assert [data[i].regions is not None for i in range(8)] == [False, False, False, True, False, True, False, False]
    assert data[6].mask is None and data[7].mask is None and data.load(3, mask=False).mask is None


def test_a_box_is_the_class_or_the_background_and_the_background_outside(root):
    sample = FolderDataset(root, "train")[3]
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[1:5, 1:5] = 3
    np.testing.assert_array_equal(sample.mask, expected)
    assert sample.regions.tolist() == [[True, True, False]]


def test_points_are_discs_and_leave_the_rest_unknown(root):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    cat, background = (x - 3) ** 2 + (y - 3) ** 2, (x - 10) ** 2 + (y - 6) ** 2
    for radius in (0, 1.5, 3):
        sample = FolderDataset(root, "train", point_radius=radius)[4]
        expected = np.where(cat <= radius**2, 1, np.where(background <= radius**2, 0, 255))
        np.testing.assert_array_equal(sample.mask, expected)
    np.testing.assert_array_equal(sample.mask, FolderDataset(root, "train")[4].mask)
    with pytest.raises(InputError, match="point_radius must be a finite number >= 0, got -1"):
        FolderDataset(root, "train", point_radius=-1)


def test_a_mask_counts_before_points_and_points_before_boxes(root):
    sample = FolderDataset(root, "train", point_radius=1)[5]
    sets = [set(np.flatnonzero(row)) for row in sample.regions]
    for y in range(HEIGHT):
        for x in range(WIDTH):
            value = int(sample.mask[y, x])
            found = {value} if value < 3 else sets[value - 3]
            if y == 2 and 1 <= x < 4:
                expected = {1}
            elif abs(x - 2) + abs(y - 2) <= 1:
                expected = {2}
            else:
                expected = {0, *([2] if x < 6 else []), *([1] if x >= 3 else [])}
            assert found == expected


def test_the_masks_agree_with_the_labels(root):
    data = FolderDataset(root, "train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_masks(data, np.flatnonzero(data.has_mask), "masks")
    assert [data.mask_file(row).name for row in (0, 3, 4, 5)] == [
        "full.png",
        "boxes.csv",
        "points.csv",
        "all three.png",
    ]


def test_nothing_of_it_is_read_to_predict(root):
    (root / "boxes.csv").write_bytes(b"broken")
    data = FolderDataset(root, need_labels=False)
    assert not data.has_mask.any() and data.annotated is None and np.isnan(data.labels[:, 1:]).all()


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("boxes.csv", "lost,cat,0,0,1,1", "boxes.csv lists this image, but there is no such file"),
        ("boxes.csv", "full,cow,0,0,1,1", "boxes.csv, line 5: expected one of the classes cat, dog, found 'cow'"),
        ("boxes.csv", "full,background,0,0,1,1", "found 'background'"),
        ("boxes.csv", "full,cat,0,0,one,1", "line 5, column 'x_max': expected a number of pixels, found 'one'"),
        ("boxes.csv", "full,cat,3,0,3,1", r"image 'full': the box from \(3, 0\) to \(3, 1\) has no area; x_min must"),
        ("boxes.csv", "full,cat,0,4,1,3", "has no area"),
        ("boxes.csv", "full,cat,0,0,nan,3", "has no area"),
        ("boxes.csv", "full,cat,-inf,0,1,3", "has no area"),
        ("boxes.csv", "full,cat,0,0,1", "line 5: expected 6 columns, found 5"),
        ("boxes.csv", "full,dog,0,0,1,1", r"boxes.csv: the image 'full' has a 'dog', but its label in"),
        ("boxes.csv", "some,dog,0,0,1,1", "'some' has a 'dog', which is not among .* column 'annotated'"),
        ("points.csv", "full,dog,0,0", r"points.csv: the image 'full' has a 'dog', but its label"),
        ("points.csv", "full,cow,0,0", "line 5: expected one of the classes background, cat, dog, found 'cow'"),
    ],
)
def test_annotations_that_cannot_be(root, file, row, message):
    with (root / file).open("a") as table:
        table.write(row)
    with pytest.raises(DataError, match=message):
        FolderDataset(root, "train")


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        (
            "boxes.csv",
            "full,cat,20,0,30,1",
            r"boxes.csv: image 'full': the box from \(20, 0\) to \(30, 1\) .* of 8x12",
        ),
        ("points.csv", "full,cat,20,0", r"points.csv: image 'full': the point \(20, 0\) lies .* of 8x12"),
    ],
)
def test_annotations_that_do_not_fit_their_image(root, file, row, message):
    with (root / file).open("a") as table:
        table.write(row)
    data = FolderDataset(root, "train")
    with pytest.raises(DataError, match=message):
        data.load(0, mask=True)
    assert data.load(0, mask=False).mask is None


def test_columns_are_checked(root):
    (root / "points.csv").write_text("image;class;x\nfull;cat;1\n")
    with pytest.raises(DataError, match="points.csv: expected the column 'y' once, found image, class, x"):
        FolderDataset(root)
    (root / "points.csv").write_text("image;class;x;y;note\nnothing;cat;1;1;hello\n")
    assert FolderDataset(root)[7].mask[1, 1] == 1


def test_errors_of_single_images_can_be_collected(root):
    with (root / "boxes.csv").open("a") as table:
        table.write("lost,cat,0,0,1,1\nlabels,cat,0,0,1,1\nnothing,dog,0,0,1,1\n")
    errors = []
    data = FolderDataset(root, "train", on_error=errors.append)
    assert len(errors) == 2 and "lost" in str(errors[0]) and "'labels' has a 'cat'" in str(errors[1])
    assert data.has_mask.tolist() == [True] * 6 + [False, True]
    np.testing.assert_array_equal(data.labels[6:, 1:], [[0, 1], [NONE, 1]])


def test_binary_masks_need_a_known_class(root):
    data = FolderDataset(root, "train", binary_masks=True)
    assert set(np.unique(data[1].mask)) == {0, 1}  # the one class that is known
    (root / "image_labels.csv").write_text("image,cat,dog\nfull,?,?\n")
    with pytest.raises(DataError, match="with binary_masks 1 is the one class .*, and they name none"):
        FolderDataset(root, binary_masks=True)[0]
