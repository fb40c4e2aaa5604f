from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from tw_seg.data.consistency import MaskFiles, check_masks, find_contradictions
from tw_seg.data.layouts.folder import FolderDataset
from tw_seg.errors import ContradictionError, DataError, InputError


class Masks:
    """Masks as lists of values beside labels of a cat and a dog; ``?`` in front of one says that it is unknown."""

    classes = ("background", "cat", "dog")

    def __init__(self, *images: tuple[str, list[int]], turned: tuple[int, ...] = ()) -> None:
        rows = [[1, *(np.nan if f"?{name}" in named else name in named for name in "cd")] for named, _ in images]
        self.labels = np.array(rows, dtype=np.float32)
        self._ids = [ids for _, ids in images]
        self._turned = turned

    def mask_file(self, index: int) -> Path:
        return Path(f"masks/{index}.png")

    def read_mask_ids(self, index: int) -> tuple[np.ndarray, bool]:
        return np.isin(np.arange(256), self._ids[index]), index in self._turned


def check(*images: tuple[str, list[int]], turned: tuple[int, ...] = ()) -> list[str]:
    """What is said about all of them."""
    data = Masks(*images, turned=turned)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_masks(data, range(len(images)), "masks of val", contradictions="warn")
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    "images",
    [
        [],
        [("c", [0, 1]), ("d", [0, 2]), ("cd", [0, 1, 2, 255]), ("", [0])],
        [("c", [0, 1]), ("d", [0, 255])],  # ignored pixels may hide the dog
        [("", [0]), ("", [0])],
        [("?c", [0, 1]), ("?d", [0]), ("c", [0, 1])],  # what nobody knows contradicts nothing
        [("?c?d", [0, 1]), ("?c?d", [0, 2]), ("?c?d", [0, 255])],
        [("c", [0, 3]), ("cd", [0, 1, 3]), ("d", [4, 255])],  # sets of classes: boxes
        [("c", [0, 3]), ("c", [0, 3])],
    ],
)
def test_nothing_is_said_where_nothing_is_wrong(images):
    assert check(*images) == []


def test_masks_of_0_and_255():
    for count in (1, 3):
        with pytest.raises(
            DataError, match=rf"masks of val: the labels of {count} .*only values 0 and 255 \(masks/0.png"
        ):
            check(*[("c", [0, 255])] * count, ("", [0]))
    with pytest.raises(DataError, match="of 2 images"):
        check(("c", [0, 255]), ("d", [0]))
    (said,) = check(("", [0, 255]), ("", [0]))  # labels that were taken from such masks name nothing
    assert "no mask has a pixel of any object, and 1 have pixels of 255 (masks/0.png)" in said


def test_one_class_of_0_and_255():
    (said,) = check(("c", [0, 1]), ("d", [0, 255]), ("d", [0, 255]))
    assert "2 of 3 masks have no pixel of a class that the labels say is there: dog in 2; first masks/1.png" in said
    assert "255 means 'ignore'" in said


def test_some_masks_of_0_and_255():
    (said,) = check(*[("c", [0, 1])] * 3, *[("c", [0, 255])] * 2)
    assert "2 of 5 masks have no pixel of a class that the labels say is there: cat in 2; first masks/3.png" in said
    assert "255 means 'ignore'" in said
    assert check(*[("c", [0, 1])] * 60, *[("c", [0, 255])] * 2) == []  # hidden in few: it happens


def test_labels_without_a_pixel_of_a_full_mask():
    (said,) = check(("c", [0, 1]), ("cd", [0, 1]), ("c", [0]), ("d", [0, 2]))
    assert "2 of 4 masks have no pixel of a class that the labels say is there: cat in 1, dog in 1" in said
    assert "masks/1.png, masks/2.png" in said and "255" not in said
    (said,) = check(("c", [0]), ("c", [0]))
    assert "cat in 2" in said


def test_unknown_labels_and_sets_of_classes_hide_no_contradiction_of_others():
    (said,) = check(("?c", [0, 2]), ("?c?d", [0, 1]), ("c", [0, 1]), ("d", [2]))
    assert "1 of 4 masks have pixels of a class that the labels say is not there: dog in 1; first masks/0.png" in said
    (said,) = check(("c", [0, 3]), ("d", [0]), ("d", [0, 2]))
    assert "1 of 3 masks have no pixel of a class that the labels say is there: dog in 1; first masks/1.png" in said
    (said,) = check(("", [0, 1, 3]), ("c", [0, 1]))
    assert "1 of 2 masks have pixels of a class that the labels say is not there: cat in 1" in said
    (said,) = check(("?c", [0, 255]), ("?c", [0, 255]))
    assert "no mask has a pixel of any object, and 2 have pixels of 255" in said
    with pytest.raises(DataError, match="in none of 2 images"):
        check(("c?d", [0, 2]), ("c", [0, 2]), ("?c?d", [0, 1]))


def test_a_class_that_was_not_annotated_need_not_be_in_the_mask():
    data = Masks(("cd", [0, 1]), ("cd", [0, 1]), ("cd", [0, 1]))
    with pytest.warns(UserWarning, match="3 of 3 masks have no pixel of a class .*: dog in 3"):
        check_masks(data, range(3), "masks of val")
    data.annotated = np.array([[True, True, False]] * 2 + [[True, True, True]])
    with pytest.warns(UserWarning, match="1 of 3 masks have no pixel of a class .*: dog in 1; first masks/2.png"):
        check_masks(data, range(3), "masks of val")


def test_pixels_without_a_label():
    (said,) = check(("c", [0, 1, 2]), ("", [0, 2]), ("d", [2]), ("", [1, 255]))
    assert "3 of 4 masks have pixels of a class that the labels say is not there: cat in 1, dog in 2" in said
    assert "first masks/0.png, masks/1.png, masks/3.png; correct" in said


def test_classes_in_another_order_are_refused():
    with pytest.raises(
        DataError, match=r"in none of 2 images .*\(masks/0.png, masks/2.png\); check the order of the class"
    ):
        check(("c", [0, 2]), ("", [0]), ("d", [0, 1]))
    with pytest.raises(DataError, match="in none of 2 images"):
        check(("", [0, 2]), ("", [0, 1]))
    assert len(check(("c", [0, 2]))) == 2  # one image alone is no rule


def test_images_that_are_turned_at_the_same_size():
    (said,) = check(("c", [0, 1]), ("d", [2]), turned=(1,))
    assert "1 of 2 images are turned by their EXIF tag 'orientation'" in said and "first masks/1.png" in said


def test_only_the_chosen_masks_are_read():
    data = Masks(("c", [0, 1]), ("c", [0, 255]))
    check_masks(data, np.array([0]), "masks")
    with pytest.raises(DataError, match="of 1 images"):
        check_masks(data, np.array([1]), "masks")


def test_folders_on_disk_are_checked():
    assert issubclass(FolderDataset, object) and {"mask_file", "read_mask_ids"} <= set(dir(FolderDataset))
    assert isinstance(Masks(("c", [1])), MaskFiles)


def test_pixels_without_a_label_are_refused_unless_asked_otherwise():
    data = Masks(("c", [0, 1]), ("c", [0, 1, 2]))
    with pytest.raises(ContradictionError, match=r"dog in 1; first masks/1.png; .*tw-seg data check .* warn"):
        check_masks(data, range(2), "masks")
    check_masks(data, [0], "masks")
    with pytest.raises(InputError, match="contradictions must be one of refuse, warn, got 'ignore'"):
        check_masks(data, [0], "masks", contradictions="ignore")


def test_what_is_unknown_or_was_not_annotated_contradicts_nothing():
    data = Masks(("c", [0, 1]), ("c", [0, 1, 2]), ("d", [0]))
    data.labels[1, 2] = data.labels[2, 2] = np.nan
    check_masks(data, range(3), "masks")
    data = Masks(("c", [0, 1]), ("cd", [0, 1]))
    data.annotated = np.array([[True, True, True], [True, True, False]])
    with warnings.catch_warnings(action="error"):
        check_masks(data, range(2), "masks")


def test_contradictions_of_each_mask():
    held = np.stack([np.isin(np.arange(256), ids) for ids in ([0, 1], [0, 2], [0], [0, 255], [1, 2, 255])])
    labels = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 1], [1, 1, 0], [1, 0, 0]])
    denied, missing = find_contradictions(held, labels)
    assert denied.tolist() == [[0, 0], [0, 0], [0, 0], [0, 0], [1, 1]]
    assert missing.tolist() == [[0, 0], [1, 0], [0, 1], [0, 0], [0, 0]]
