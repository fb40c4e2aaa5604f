"""Pixels that may have one of several classes, from a data set to a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.data.loading.samples import Shapes
from tw_seg.data.loading.cache import GIB, DecodedCache
from tw_seg.data.loading.collate import collate
from tw_seg.data.loading.items import EvalItems, TrainItems
from tw_seg.data.loading.sampler import Draw
from tw_seg.data.loading.transforms import EvalTransform, TrainTransform
from tw_seg.errors import DataError
from tw_seg.types import IGNORE_INDEX, Sample

SETS = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=bool)


class WithRegions(Shapes):
    """Three classes; image 0 has ids only, the images 2 and 4 have one and three sets, in their upper half."""

    classes = ("background", "thing", "other")
    labels = np.array([[1, np.nan, 0]] * 7, dtype=np.float32)

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        if sample.mask is None or index == 0:
            return sample
        regions = SETS[:1] if index == 2 else SETS
        mask = sample.mask.copy()
        half = mask[: len(mask) // 2]
        half[...] = np.random.default_rng(index).integers(3, 3 + len(regions), half.shape)
        return sample._replace(mask=mask, regions=regions)


@pytest.fixture(params=[False, True], ids=["files", "cache"])
def source(request):
    data, plain = WithRegions(), EvalTransform(16)
    return DecodedCache(data, plain, masks=np.arange(7), limit=GIB) if request.param else None


def test_training_keeps_the_values_and_their_sets(source):
    data = WithRegions()
    items = TrainItems(data, TrainTransform(EvalTransform(16)), source)
    batch = collate([items[Draw(i, True, (0, 0, i))] for i in (0, 2, 4)] + [items[Draw(2, False, (0, 0, 3))]])
    assert batch.regions.dtype == torch.bool and batch.regions.shape == (3, 3, 3)
    np.testing.assert_array_equal(batch.regions[2], SETS)
    np.testing.assert_array_equal(batch.regions[1], np.pad(SETS[:1], ((0, 2), (0, 0))))
    assert not batch.regions[0].any()
    values = [set(mask.unique().tolist()) for mask in batch.masks]
    assert values[1] & {3, 4, 5} == {3} and values[2] >= {3, 4, 5} and not values[0] & {3, 4, 5}
    assert batch.labels[0].isnan().tolist() == [False, True, False]


def test_augmentation_moves_the_values_as_it_moves_ids(source):
    data = WithRegions()
    transform = TrainTransform(EvalTransform(16), {"rotate": 30.0, "flip": True})
    item = TrainItems(data, transform, source)[Draw(4, True, (1, 2, 3))]
    # Each value alone, drawn as 1 in a mask of 0: the same pixels must come out.
    image, mask = data[4].image, data[4].mask
    for value in np.unique(mask):
        _, alone = transform(image, (mask == value).astype(np.uint8), key=(1, 2, 3))
        assert torch.equal(item.mask == value, alone == 1)


def test_evaluation_ignores_them_in_native_masks_only(source):
    data = WithRegions()
    items = EvalItems(data, EvalTransform(16), source)
    batch = collate([items[i] for i in range(5)])
    assert batch.labelled.tolist() == [0, 2, 4] and batch.regions.shape == (3, 3, 3)
    for native, index in zip(batch.native_masks, (0, 2, 4), strict=True):
        expected = data[index].mask.astype(np.int64)
        np.testing.assert_array_equal(native, np.where(expected >= 3, IGNORE_INDEX, expected))
    assert (batch.masks[2] >= 3).any() and (batch.masks[2] < 6).all()
    assert collate([items[0], items[1]]).regions is None


def test_classes_that_are_hidden_are_the_background_in_sets_too():
    data = WithRegions()
    annotated = np.array([[True, True, False]] * 7)
    item = TrainItems(data, TrainTransform(EvalTransform(16)), annotated=annotated)[Draw(4, True, (0, 0, 0))]
    assert item.regions.tolist() == [[True, True, False], [True, False, False], [True, True, False]]
    assert {3, 4, 5} <= set(item.mask.unique().tolist())


@pytest.mark.parametrize(("label", "is_open"), [(1.0, True), (np.nan, True), (0.0, False)])
def test_evaluation_ignores_background_that_may_be_a_class_that_was_not_annotated(label, is_open, source):
    data = WithRegions()
    data.labels = np.array([[1, 1, label]] * 7, dtype=np.float32)
    annotated = np.array([[True, True, False]] * 7)
    items = EvalItems(data, EvalTransform(16), source, annotated=annotated)
    batch = collate([items[0], items[1]])
    assert batch.annotated.tolist() == [[True, True, False]]
    expected = data[0].mask.astype(np.int64)
    assert set(np.unique(expected)) == {0, 1}
    np.testing.assert_array_equal(batch.native_masks[0], np.where(expected, 1, IGNORE_INDEX) if is_open else expected)
    assert set(batch.masks.unique().tolist()) == {0, 1}  # the loss is told what the background may be


def test_a_value_without_a_set_is_refused():
    class Wrong(WithRegions):
        def __getitem__(self, index):
            return super().__getitem__(index)._replace(regions=SETS[:1])

    with pytest.raises(DataError, match="s4: the mask has the value 5"):
        EvalItems(Wrong(), EvalTransform(16))[4]
