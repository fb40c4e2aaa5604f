from __future__ import annotations

from types import SimpleNamespace

import pytest
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint

from tests.training.tiny import ENCODER, NAMES
from tw_seg.errors import InputError
from tw_seg.training.monitor import check_monitors
from tw_seg.training.task import SegmentationTask


def trainer(*callbacks: Callback, limit: float = 1.0, makes_masks: bool = True) -> SimpleNamespace:
    module = SimpleNamespace(mask_metrics=frozenset({"val/miou", "val/iou/cat"}), makes_masks=makes_masks)
    return SimpleNamespace(callbacks=list(callbacks), lightning_module=module, limit_val_batches=limit)


@pytest.mark.parametrize("callback", [ModelCheckpoint(monitor="val/miou"), EarlyStopping("val/iou/cat")])
def test_scores_of_masks_that_do_not_exist(callback):
    with pytest.raises(InputError, match=rf"{type(callback).__name__} monitors 'val/.*NaN .*val/cls/map"):
        check_monitors(trainer(Callback(), callback), 0)
    check_monitors(trainer(callback), 1)
    check_monitors(trainer(callback, limit=0), 0)


def test_scores_of_masks_that_a_classifier_does_not_make():
    for masks in (0, 5):
        with pytest.raises(InputError, match=r"monitors 'val/miou', which .* image-level classifier.*val/cls/map"):
            check_monitors(trainer(ModelCheckpoint(monitor="val/miou"), makes_masks=False), masks)
    check_monitors(trainer(ModelCheckpoint(monitor="val/cls/map"), makes_masks=False), 0)


def test_a_mode_that_would_keep_the_worst():
    module = SegmentationTask("classifier", class_names=NAMES, **ENCODER)
    for callback, better in (
        (ModelCheckpoint(monitor="val/loss", mode="max"), "min"),
        (ModelCheckpoint(monitor="val/cls/bce", mode="max"), "min"),
        (EarlyStopping("val/cls/map"), "max"),
    ):
        run = SimpleNamespace(callbacks=[Callback(), callback], lightning_module=module, limit_val_batches=1.0)
        with pytest.raises(InputError, match=rf"{type(callback).__name__} monitors 'val/.* worst .*best.mode {better}"):
            check_monitors(run, 1)
        callback.mode = better
        check_monitors(run, 1)


def test_other_scores_need_no_mask():
    check_monitors(trainer(ModelCheckpoint(monitor="val/cls/map"), ModelCheckpoint(), EarlyStopping("val/loss")), 0)


def test_the_scores_of_masks_of_a_task():
    task = SegmentationTask("classifier", class_names=NAMES, encoder_name="timm/resnet10t")
    assert task.mask_metrics >= {"val/miou", "val/dice", "val/pixel_acc", "val/iou/cat"}
    assert not task.mask_metrics & {"val/loss", "val/cls/map"}
    assert not task.makes_masks and SegmentationTask("heatmap", class_names=NAMES, **ENCODER).makes_masks
