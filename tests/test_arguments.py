from __future__ import annotations

import numpy as np
import pytest
import torch

from tw_seg.arguments import (
    check_batch,
    check_counts,
    check_images,
    check_mask_ids,
    check_numbers,
    check_samples,
    class_indices,
    image_size,
)
from tw_seg.errors import DataError, InputError
from tw_seg.types import Batch

# ------------------------------------------------------------------------------------------------------ images


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_good_images_pass(dtype: torch.dtype) -> None:
    images = torch.zeros(2, 3, 8, 9, dtype=dtype)
    for arguments in ({}, {"in_channels": 3}, {"in_channels": 3, "allow_empty": False}):
        check_images(images, **arguments)
    check_images(images[:0], 3)


@pytest.mark.parametrize(
    ("images", "arguments", "named"),
    [
        ("image", {}, r"\(N, C, H, W\), got str"),
        ([[0.0]], {"in_channels": 3}, r"\(N, 3, H, W\), got list"),
        (torch.zeros(3, 8, 8), {}, r"got \(3, 8, 8\): add the batch axis with images\[None\]"),
        (torch.zeros(1, 1, 3, 8, 8), {}, r"got \(1, 1, 3, 8, 8\): stack"),
        (torch.zeros(2, 8, 8, 3), {"in_channels": 3}, r"\(2, 8, 8, 3\): channels come second.*in_channels"),
        (torch.zeros(0, 3, 8, 8), {"in_channels": 3, "allow_empty": False}, r"none of them 0, got \(0, 3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 0), {"allow_empty": False}, r"none of them 0, got \(2, 3, 8, 0\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), {}, r"torch.uint8 .*: convert and normalise"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.complex64), {}, "torch.complex64"),
    ],
)
def test_wrong_images(images, arguments, named: str) -> None:
    with pytest.raises(InputError, match=f"images must (be|have).*{named}"):
        check_images(images, **arguments)


# ----------------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (None, (0, 1, 2, 3)),
        ([3, 0], (3, 0)),
        (range(1, 3), (1, 2)),
        (np.array([2, 2]), (2, 2)),
        ([np.int64(1), torch.tensor(3)], (1, 3)),
        (torch.tensor([1, 0]), (1, 0)),
        (torch.tensor([1], dtype=torch.uint8), (1,)),
        ([], ()),
        (torch.tensor([], dtype=torch.int64), ()),
    ],
)
def test_class_indices(classes, expected: tuple[int, ...]) -> None:
    found = class_indices(classes, 4)
    assert found == expected and all(type(k) is int for k in found)


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        ([4], r"classes \[4\] are outside 0..3"),
        ([-1, 2, 7], r"classes \[-1, 7\]"),
        (torch.tensor([4]), r"classes \[4\]"),
        (torch.tensor([-1]), r"classes \[-1\]"),
        (torch.tensor([0.0]), r"torch.float32 of shape \(1,\)$"),
        (torch.tensor([0j]), "torch.complex64"),
        (torch.tensor([True, False, True, True]), r"torch.bool .*mask.nonzero\(\)"),
        (torch.tensor([[0]]), r"\(1, 1\)"),
        ([0.5], r"must be integers.*got \(0.5,\)"),
        ([True, False], r"must be integers.*got \(True, False\)"),
        ("12", "must be integers"),
        (3, "must be integers.*got 3"),
    ],
)
def test_wrong_classes(classes, named: str) -> None:
    with pytest.raises(InputError, match=f"classes.*{named.removeprefix('classes ')}"):
        class_indices(classes, 4)


@pytest.mark.parametrize("classes", [[], torch.tensor([], dtype=torch.int64), torch.empty(0, device="meta").long()])
def test_no_classes_where_one_is_needed(classes) -> None:
    assert len(class_indices(classes, 4)) == 0
    with pytest.raises(InputError, match="classes must name at least one class, got none; use None for all of them"):
        class_indices(classes, 4, allow_empty=False)


# ----------------------------------------------------------------------------------------------------- samples


def test_good_samples_pass() -> None:
    assert check_samples(None, 2) is None and check_samples(None, 2, device=torch.device("meta")) is None
    rows = torch.tensor([1, 0])
    assert check_samples(rows, 2) is rows and check_samples(rows[:0], 0).tolist() == []
    assert check_samples(rows, 2, device=torch.device("cpu")).tolist() == [1, 0]
    assert check_samples(rows, 2, device=torch.device("meta")).device.type == "meta"


@pytest.mark.parametrize(
    ("samples", "named"),
    [
        ([0, 1], r"int64 tensor \(S,\).*got list: use torch.tensor"),
        (torch.tensor([0.0]), "torch.float32"),
        (torch.tensor([0], dtype=torch.int32), "torch.int32"),
        (torch.tensor([True, False]), r"torch.bool of shape \(2,\): use mask.nonzero\(\)"),
        (torch.tensor([[0]]), r"\(1, 1\)"),
        (torch.tensor([0, 2, 1, 9]), "row indices >= 0 and < 2, the number of images, found 2, 9$"),
        (torch.tensor([-1]), "< 2, the number of images, found -1$"),
        (torch.arange(9), r"found 2, 3, 4, 5, 6, \.\.\.$"),
    ],
)
def test_wrong_samples(samples, named: str) -> None:
    with pytest.raises(InputError, match=f"samples must be.*{named}"):
        check_samples(samples, 2)


# ------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.uint16, np.int32, np.int64])
def test_mask_ids(kind) -> None:
    ids = np.array([[0, 1], [1, 255]]).astype(kind)
    check_mask_ids(ids, 2)
    check_mask_ids(ids[:0], 2)
    check_mask_ids(np.full((2, 2), 255, dtype=kind), 255)
    if kind is not np.uint16:
        check_mask_ids(torch.from_numpy(ids), 2)
    with pytest.raises(
        DataError, match=r"^a\.png: the mask must hold class ids 0\.\.0 or 255 \(ignored\), found 1: give"
    ):
        check_mask_ids(ids, 1, name="a.png: the mask", error=DataError)


@pytest.mark.parametrize("convert", [np.array, torch.tensor])
def test_wrong_mask_ids_are_named_in_order(convert) -> None:
    with pytest.raises(
        InputError, match=r"masks must hold class ids 0\.\.2 or 255 \(ignored\), found -1, 3, 254: give"
    ):
        check_mask_ids(convert([[3, 254, 0], [-1, 255, 3]]), 3)
    with pytest.raises(InputError, match=r"found 3, 4, 5, 6, 7, \.\.\.: .*map these ids to 255"):
        check_mask_ids(convert([9, 8, 7, 6, 5, 4, 3]), 3)


# ----------------------------------------------------------------------------------------------------- numbers


def test_good_numbers_pass() -> None:
    check_numbers(a=0, b=1e300, c=np.float32(2))
    check_counts(1, a=1, b=None, c=np.int64(3))
    assert image_size(7) == (7, 7) and image_size([7, 9]) == (7, 9)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: check_numbers(a=1, b=-0.1), "b must be a finite number >= 0, got -0.1"),
        (lambda: check_numbers(a=float("nan")), "a must .* got nan"),
        (lambda: check_numbers(a=float("inf")), "a must .* got inf"),
        (lambda: check_numbers(a="1"), "a must .* got '1'"),
        (lambda: check_numbers(a=True), "a must .* got True"),
        (lambda: check_counts(1, a=1, b=0), "b must be a whole number >= 1, got 0"),
        (lambda: check_counts(0, a=2.0), "a must .* got 2.0"),
        (lambda: check_counts(0, a=True), "a must .* got True"),
        (lambda: image_size(0), r"size must be a number of pixels or \(height, width\), got 0"),
        (lambda: image_size((4, 4, 3)), r"got \(4, 4, 3\)"),
        (lambda: image_size((4, -1)), r"got \(4, -1\)"),
    ],
)
def test_wrong_numbers(call, named: str) -> None:
    with pytest.raises(InputError, match=named):
        call()


# ------------------------------------------------------------------------------------------------------ device


def test_nothing_waits_for_the_device() -> None:
    # A meta tensor has no values: whatever would read one raises.
    check_images(torch.empty(2, 3, 8, 8, device="meta"), 3, allow_empty=False)
    check_samples(torch.empty(1, dtype=torch.int64, device="meta"), 2)
    classes = class_indices(torch.empty(2, dtype=torch.uint8, device="meta"), 4)
    assert isinstance(classes, torch.Tensor) and classes.dtype == torch.int64 and classes.shape == (2,)


@pytest.mark.parametrize("classes", [None, [2, 0], torch.tensor([2, 0], dtype=torch.int32)])
def test_compiles_whole(classes) -> None:
    def run(images: torch.Tensor, samples: torch.Tensor, classes) -> torch.Tensor:
        check_images(images, 3, allow_empty=False)
        rows = check_samples(samples, len(images), device=images.device)
        chosen = class_indices(classes, 4, allow_empty=False)
        return images[rows].sum() * torch.as_tensor(chosen).sum()

    images, rows = torch.rand(2, 3, 4, 4), torch.tensor([1])
    found = torch.compile(run, fullgraph=True, backend="eager")(images, rows, classes)
    torch.testing.assert_close(found, run(images, rows, classes))


# ----------------------------------------------------------------------------------------------------- batches

GOOD = Batch(
    images=torch.zeros(4, 3, 16, 16),
    labels=torch.ones(4, 3),
    labelled=torch.arange(2),
    masks=torch.zeros(2, 16, 16, dtype=torch.int64),
    native_masks=(),
    names=("a", "b", "c", "d"),
    sizes=(),
)


def test_a_good_batch_passes() -> None:
    check_batch(GOOD, 3)
    check_batch(GOOD._replace(regions=torch.ones(2, 4, 3, dtype=torch.bool)), 3)
    check_batch(GOOD._replace(labels=GOOD.labels.clone().fill_(torch.nan)), 3)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (tuple(GOOD), "tw_seg.types.Batch, got tuple"),
        (GOOD._replace(images=GOOD.images[0]), r"\(N, C, H, W\), got torch.float32 \(3, 16, 16\)"),
        (GOOD._replace(images=GOOD.images.byte()), "torch.uint8"),
        (GOOD._replace(labels=GOOD.labels[:, :2]), r"\(4, 3\), got \(4, 2\)"),
        (GOOD._replace(labels=-GOOD.labels), "0, 1 or between, or NaN where nobody knows, found -1.0"),
        (GOOD._replace(masks=GOOD.masks[:, :8]), r"\(2, 16, 16\), got \(2, 8, 16\)"),
        (GOOD._replace(masks=GOOD.masks[:1]), r"\(2, 16, 16\), got \(1, 16, 16\)"),
        (GOOD._replace(regions=torch.ones(2, 4, 3)), r"\(L, R, K\) = \(2, R, 3\), got torch.float32"),
        (GOOD._replace(regions=torch.ones(1, 4, 3).bool()), r"batch.regions .* of shape \(1, 4, 3\)"),
    ],
)
def test_bad_batches(batch: Batch, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_batch(batch, 3)
