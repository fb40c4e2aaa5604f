from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.data.loading.samples import Shapes, assert_same
from tw_seg.data.layouts.digits import DigitScenes
from tw_seg.data.loading.collate import collate
from tw_seg.data.loading.items import EvalItems, TrainItems
from tw_seg.data.loading.sampler import SemiSupervisedBatchSampler
from tw_seg.data.loading.transforms import EvalTransform, TrainTransform, init_worker


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
