from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tw_seg.data.layouts.digits import DigitScenes
from tw_seg.data.loading.collate import EvalItems, TrainItems, collate
from tw_seg.data.loading.sampler import Draw, SemiSupervisedBatchSampler
from tw_seg.data.loading.transforms import EvalTransform, TrainTransform, init_worker
from tw_seg.types import Batch, Sample


class Shapes:
    """Images of different sizes; the even ones have a mask."""

    classes = ("background", "thing")
    names = tuple(f"s{i}" for i in range(7))
    labels = np.array([[1, i % 2] for i in range(7)], dtype=np.float32)

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (20 + index, 30, 3), dtype=np.uint8)
        mask = rng.integers(0, 2, image.shape[:2], dtype=np.uint8) if index % 2 == 0 else None
        return Sample(image, mask, self.labels[index], self.names[index])


class LoadOnDemand(Shapes):
    """Says which masks were read."""

    def __init__(self) -> None:
        self.read: list[tuple[int, bool]] = []

    def __getitem__(self, index: int) -> Sample:
        raise AssertionError("training must say whether it wants the mask")

    def load(self, index: int, *, mask: bool) -> Sample:
        self.read.append((index, mask))
        sample = super().__getitem__(index)
        return sample if mask else sample._replace(mask=None)


def assert_same(one: Batch, other: Batch) -> None:
    for field in ("images", "labels", "labelled", "masks"):
        a, b = getattr(one, field), getattr(other, field)
        assert a.dtype == b.dtype and torch.equal(a, b)
    assert one.names == other.names
    assert len(one.native_masks) == len(other.native_masks)
    assert all(torch.equal(a, b) for a, b in zip(one.native_masks, other.native_masks, strict=True))


def test_eval_batch_keeps_native_masks():
    data = Shapes()
    items = EvalItems(data, EvalTransform((16, 24)))
    batch = collate([items[i] for i in (3, 0, 1, 4)])
    assert batch.images.shape == (4, 3, 16, 24) and batch.images.dtype == torch.float32
    assert batch.labelled.tolist() == [1, 3] and batch.labelled.dtype == torch.int64
    assert batch.masks.shape == (2, 16, 24) and batch.masks.dtype == torch.int64
    assert batch.names == ("s3", "s0", "s1", "s4")
    np.testing.assert_array_equal(batch.labels, data.labels[[3, 0, 1, 4]])
    for native, index in zip(batch.native_masks, (0, 4), strict=True):
        assert native.dtype == torch.int64
        np.testing.assert_array_equal(native, data[index].mask)
    expected, _ = EvalTransform((16, 24))(data[4].image, None)
    assert torch.equal(batch.images[3], expected)


def test_batch_without_masks():
    items = EvalItems(Shapes(), EvalTransform((16, 24)))
    batch = collate([items[1], items[3]])
    assert batch.masks.shape == (0, 16, 24) and batch.masks.dtype == torch.int64
    assert batch.labelled.shape == (0,) and batch.labelled.dtype == torch.int64
    assert batch.native_masks == ()


@pytest.mark.parametrize("data", [Shapes(), LoadOnDemand()], ids=["plain", "on demand"])
def test_training_shows_masks_of_labelled_rows_only(data):
    items = TrainItems(data, TrainTransform(EvalTransform(16)))
    draws = [Draw(2, True, (0, 0, 0)), Draw(4, False, (0, 0, 1)), Draw(2, False, (0, 0, 2))]
    batch = collate([items[draw] for draw in draws])
    assert batch.labelled.tolist() == [0] and batch.masks.shape == (1, 16, 16)
    assert batch.native_masks == ()
    if isinstance(data, LoadOnDemand):
        assert data.read == [(2, True), (4, False), (2, False)]


def test_every_row_epoch_and_step_has_its_own_augmentation():
    items = TrainItems(Shapes(), TrainTransform(EvalTransform(16)))
    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    images = [items[Draw(2, False, key)].image for key in keys]
    assert len({float(image.sum()) for image in images}) == 4


@pytest.mark.parametrize("epoch", [0, 3])
def test_workers_give_the_batches_of_the_main_process(epoch):
    sampler = SemiSupervisedBatchSampler([0, 2], [1, 3, 4, 5, 6], batch_size=3, labelled_per_batch=1, seed=4)
    sampler.set_epoch(epoch)
    items = TrainItems(Shapes(), TrainTransform(EvalTransform(16)))
    loads = [
        list(DataLoader(items, batch_sampler=sampler, num_workers=n, collate_fn=collate, worker_init_fn=init_worker))
        for n in (0, 2)
    ]
    assert len(loads[0]) == len(loads[1]) == 3
    for one, other in zip(*loads, strict=True):
        assert_same(one, other)


def test_batches_know_native_sizes() -> None:
    """Also of images without a mask: predicted masks have the size of the file."""
    data = DigitScenes("val", size=24, length=3)
    batch = collate([EvalItems(data, EvalTransform(16))[index] for index in range(3)])
    assert batch.images.shape[2:] == (16, 16)
    assert batch.sizes == ((24, 24),) * 3


def test_native_masks_of_a_worker_arrive_in_one_piece() -> None:
    """Each piece would be a file descriptor, and the usual limit is 1,024."""
    items = EvalItems(Shapes(), EvalTransform(16))
    loader = DataLoader(items, batch_size=7, num_workers=1, collate_fn=collate, worker_init_fn=init_worker)
    (batch,) = loader
    assert_same(batch, collate([items[i] for i in range(7)]))
    assert len(batch.native_masks) == 4
    assert len({mask.untyped_storage().data_ptr() for mask in batch.native_masks}) == 1
