from __future__ import annotations

import pytest

from tests.data.loading.samples import LoadOnDemand, Shapes
from tw_seg.data.loading.collate import collate
from tw_seg.data.loading.items import TrainItems
from tw_seg.data.loading.sampler import Draw
from tw_seg.data.loading.transforms import EvalTransform, TrainTransform


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
