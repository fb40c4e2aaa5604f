from __future__ import annotations

import numpy as np
import pytest
import torch

from tw_seg.errors import DataError
from tw_seg.regions import check_regions, find_open_classes, ignore_uncertain
from tw_seg.types import IGNORE_INDEX

K = 3
SETS = np.array([[True, True, False], [False, True, True]])


def check(mask, regions):
    check_regions(np.array([mask], dtype=np.uint8), regions, K, name="a.png")


def test_good_regions_pass():
    check([0, 2, 3, 4, IGNORE_INDEX], SETS)
    check([0, 2, IGNORE_INDEX], None)
    check([0], SETS[:0])
    check([254], np.ones((252, K), dtype=bool))


@pytest.mark.parametrize(
    ("mask", "regions", "message"),
    [
        ([0], SETS.astype(int), r"a.png: regions must be bool of shape \(R, 3\).*int64 \(2, 3\)"),
        ([0], SETS[:, :2], r"got bool \(2, 2\)"),
        ([0], SETS[0], r"got bool \(3,\)"),
        ([0], np.ones((253, K), dtype=bool), "3 classes and 253 sets of classes are more than the 255 values"),
        ([0], SETS & [[True], [False]], "row 1 of its regions has no class"),
        ([5], SETS, "has the value 5, but there are 3 classes and 2 regions"),
        ([3], None, "has the value 3, but there are 3 classes and 0 regions"),
    ],
)
def test_bad_regions_are_named(mask, regions, message):
    with pytest.raises(DataError, match=message):
        check(mask, regions)


@pytest.mark.parametrize(("label", "is_open"), [(1.0, True), (torch.nan, True), (0.0, False)])
def test_only_certain_pixels_are_left(label, is_open):
    mask, labels = torch.tensor([[0, 2, 3, 9, IGNORE_INDEX]]), torch.tensor([1.0, label, 1.0])
    assert ignore_uncertain(mask, labels).tolist() == [[0, 2, *[IGNORE_INDEX] * 3]]
    assert ignore_uncertain(mask, labels, torch.tensor([True] * 3)).tolist() == [[0, 2, *[IGNORE_INDEX] * 3]]
    annotated = torch.tensor([True, False, True])
    assert find_open_classes(annotated, labels).tolist() == [False, is_open, False]
    found = ignore_uncertain(mask, labels, annotated)
    assert found.tolist() == [[IGNORE_INDEX if is_open else 0, 2, *[IGNORE_INDEX] * 3]]
