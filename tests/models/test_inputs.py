from __future__ import annotations

import pytest
import torch

from tw_seg.errors import InputError
from tw_seg.models.inputs import check_classes, check_images, check_samples


def test_good_arguments_pass():
    images = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
    check_images(images, 3)
    assert check_classes(None, 3) == [0, 1, 2]
    assert check_classes([2, 0], 3) == [2, 0]
    assert check_classes(torch.tensor([2, 0]), 3) == [2, 0]
    assert check_samples(None, images) is None
    assert check_samples(torch.tensor([1]), images).tolist() == [1]


def test_a_missing_batch_axis_is_explained():
    with pytest.raises(InputError, match=r"got \(3, 8, 8\): add the batch axis with images\[None\]"):
        check_images(torch.randn(3, 8, 8), 3)


def test_integer_images_are_explained():
    with pytest.raises(InputError, match=r"torch.uint8: convert and normalise"):
        check_images(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), 3)


def test_a_list_of_samples_is_explained():
    with pytest.raises(InputError, match=r"int64 tensor \(S,\).*\[0, 1\]"):
        check_samples([0, 1], torch.randn(2, 3, 8, 8))


def test_nothing_waits_for_the_device():
    # A meta tensor has no values: whatever would read one raises.
    images = torch.empty(2, 3, 8, 8, device="meta")
    check_images(images, 3)
    check_samples(torch.empty(1, dtype=torch.int64, device="meta"), images)
