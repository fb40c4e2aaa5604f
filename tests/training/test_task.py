from __future__ import annotations

import math

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from safetensors.torch import save_file
from torch.nn import BatchNorm2d

from tests.training.tiny import NAMES, TinyData, make_batch, make_task, make_trainer
from tw_seg.errors import InputError
from tw_seg.training.task import Prediction, SegmentationTask
from tw_seg.types import Batch, SegOutput

pytestmark = pytest.mark.usefixtures("stub")


def fit(task, folder, data=None, **kwargs):
    trainer = make_trainer(folder, **kwargs)
    trainer.fit(task, datamodule=data or TinyData())
    return trainer


# ------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("model", ["stub", "heatmap", "unet", "multitask_unet", "deeplabv3plus", "classifier"])
def test_a_checkpoint_is_names_numbers_and_weights(model, tmp_path):
    kwargs = {"decoder_kwargs": {"read_out": ["layer4", "layer3"]}} if model == "heatmap" else {}
    task = make_task(model, model_kwargs=kwargs, lr=0.1)
    trainer = fit(task, tmp_path, data=TinyData([make_batch(2, size=32)], [make_batch(4, size=32)]))
    path = tmp_path / "task.ckpt"
    trainer.save_checkpoint(path)

    saved = torch.load(path, weights_only=True)
    assert saved["hyper_parameters"]["model"] == model
    assert saved["hyper_parameters"]["class_names"] == NAMES
    loaded = SegmentationTask.load_from_checkpoint(path, weights_only=True)
    images = make_batch(0, size=32).images
    assert_same_output(task.eval()(images), loaded.eval()(images))
    assert loaded.hparams == task.hparams


def assert_same_output(one: SegOutput, other: SegOutput) -> None:
    assert len(one.aux) == len(other.aux)
    pairs = [(one.logits, other.logits), (one.mask_logits, other.mask_logits), *zip(one.aux, other.aux, strict=True)]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_warm_start_is_loaded_but_not_kept_in_the_checkpoint(tmp_path):
    donor = make_task()
    path = tmp_path / "classifier.safetensors"
    save_file(donor.model.classifier.state_dict(), path)
    task = make_task(warm_start=str(path))
    assert all(
        torch.equal(value, donor.model.classifier.state_dict()[name])
        for name, value in task.model.classifier.state_dict().items()
    )
    trainer = fit(task, tmp_path)
    trainer.save_checkpoint(tmp_path / "task.ckpt")
    path.unlink()
    SegmentationTask.load_from_checkpoint(tmp_path / "task.ckpt")


def test_a_missing_warm_start_is_an_error(tmp_path):
    with pytest.raises(InputError, match="nowhere.safetensors"):
        make_task(warm_start=str(tmp_path / "nowhere.safetensors"))


# ----------------------------------------------------------------------------------------------- steps


def test_images_without_a_mask_are_never_decoded(tmp_path):
    task = make_task()
    fit(task, tmp_path, data=TinyData([make_batch(2), make_batch(0, seed=1)]), limit_val_batches=0)
    assert task.model.decoded == [[0, 1], []]


def test_a_step_without_masks_trains_the_classifier_only(tmp_path):
    task = make_task()
    loss = task.loss(task(*_images(make_batch(0))), make_batch(0))[0]
    loss.backward()
    assert loss.isfinite()
    assert task.model.offset.grad is None or not task.model.offset.grad.any()
    assert task.model.classifier[0].weight.grad.any()


def _images(batch: Batch) -> tuple[torch.Tensor, None, torch.Tensor]:
    return batch.images, None, batch.labelled


def test_logged_names(tmp_path):
    trainer = fit(make_task(), tmp_path)
    parts = ["loss", "seg/ce", "seg/dice", "seg/aux", "cls/bce"]
    scores = ["miou", "dice", "pixel_acc", "cls/map", "cls/f1", "iou/background", "iou/cat", "iou/dog"]
    assert set(trainer.logged_metrics) == {f"train/{name}" for name in parts} | {
        f"val/{name}" for name in parts + scores
    }


def test_metrics_are_at_native_resolution_and_start_afresh(tmp_path):
    task, data = make_task(), TinyData()
    first = make_trainer(tmp_path).validate(task, datamodule=data, verbose=False)
    assert task.metrics["val"].pixels["miou"].update_called is False
    assert make_trainer(tmp_path).validate(task, datamodule=data, verbose=False) == first
    tested = make_trainer(tmp_path).test(task, datamodule=data, verbose=False)
    assert tested[0]["test/miou"] == first[0]["val/miou"]
    coarse = [batch._replace(native_masks=tuple(batch.masks)) for batch in data.evaluation]
    other = make_trainer(tmp_path).validate(task, datamodule=TinyData([], coarse), verbose=False)
    assert other[0]["val/miou"] != first[0]["val/miou"]
    assert other[0]["val/loss"] == first[0]["val/loss"]


def test_a_model_without_masks_has_image_level_scores_only(tmp_path):
    task = make_task(model_kwargs={"masks": False})
    scores = make_trainer(tmp_path).validate(task, datamodule=TinyData(), verbose=False)[0]
    assert not set(scores) & task.mask_metrics
    assert 0 < scores["val/cls/map"] <= 1
    assert scores["val/seg/ce"] == 0
    assert scores["val/loss"] == pytest.approx(scores["val/cls/bce"])


def test_predictions_have_the_native_size_where_it_is_known(tmp_path):
    sizes = ((16, 20), (24, 24), (7, 9), (24, 24))
    batch = make_batch(0)._replace(sizes=sizes)  # no mask is needed for it
    found, unknown = make_trainer(tmp_path).predict(
        make_task(), datamodule=TinyData([], [batch, batch._replace(sizes=())])
    )
    assert isinstance(found, Prediction)
    assert found.names == batch.names
    assert tuple(tuple(mask.shape) for mask in found.masks) == sizes
    assert [tuple(mask.shape) for mask in unknown.masks] == [(16, 16)] * 4
    assert found.probabilities.shape == (4, 3)
    assert found.probabilities.min() >= 0
    assert found.probabilities.max() <= 1


def test_predictions_of_a_model_without_masks(tmp_path):
    task = make_task(model_kwargs={"masks": False})
    found = make_trainer(tmp_path).predict(task, datamodule=TinyData())[0]
    assert found.masks == ()
    assert found.probabilities.shape == (4, 3)


def test_bfloat16_mixed_precision_is_finite(tmp_path):
    trainer = fit(make_task(), tmp_path, precision="bf16-mixed")
    assert all(trainer.logged_metrics[name].isfinite() for name in ("train/loss", "val/loss", "val/miou"))


# -------------------------------------------------------------------------------------------- BatchNorm


@pytest.mark.parametrize("freeze", [True, False])
def test_freeze_batchnorm_holds_through_validation(freeze, tmp_path):
    task = make_task(freeze_batchnorm=freeze)
    norm = next(module for module in task.modules() if isinstance(module, BatchNorm2d))
    before, weight = norm.running_mean.clone(), norm.weight.detach().clone()
    fit(task, tmp_path, max_epochs=2)
    assert torch.equal(norm.running_mean, before) is freeze
    assert norm.training is not freeze
    assert not torch.equal(norm.weight, weight)  # its affine part is trained all the same


# ----------------------------------------------------------------------------------------- optimisation


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -1.0}, "lr must be"),
        ({"weight_decay": math.nan}, "weight_decay must be"),
        ({"scheduler": "linear"}, "cosine, onecycle, none"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"ce": -1.0}, "seg/ce"),
        ({"class_names": ["background"]}, "2 to 255 classes"),
        ({"model": "nonsense"}, "nonsense"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(InputError, match=message):
        make_task(**kwargs)


# ---------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_images_that_are_not_finite_are_named_and_nothing_is_trained(value, tmp_path):
    batch = make_batch(2)
    batch.images[2, 0, 3, 3] = value
    task = make_task()
    before = task.model.classifier[0].weight.detach().clone()
    with pytest.raises(InputError, match=r"image-0-2 \(1 of 4"):
        fit(task, tmp_path, data=TinyData([batch]))
    assert torch.equal(task.model.classifier[0].weight, before)
    with pytest.raises(InputError, match="image-0-2"):
        make_trainer(tmp_path).predict(task, datamodule=TinyData([], [batch]))


def test_averaged_weights_are_validated_and_saved(tmp_path):
    """Lightning's own callback, with our task: average of the weights after every step."""
    average, after, validated = EMAWeightAveraging(decay=0.5), [], []

    class Record(pl.Callback):
        def on_train_batch_end(self, trainer, task, *_):
            after.append(task.model.offset.detach().clone())

        def on_validation_batch_start(self, trainer, task, *_):
            validated.append(task.model.offset.detach().clone())

    trainer = make_trainer(tmp_path, callbacks=[average, Record()])
    task = make_task(lr=0.1)
    trainer.fit(task, datamodule=TinyData())
    expected = after[0]
    for weights in after[1:]:
        expected = 0.5 * expected + 0.5 * weights
    torch.testing.assert_close(validated[-1], expected)
    torch.testing.assert_close(task.model.offset.detach(), expected)
    assert not torch.equal(after[-1], expected)


# ---------------------------------------------------------------------------------- training-free models


class LabelledData(TinyData):
    def labelled_dataloader(self):
        return self.train_dataloader()


@pytest.mark.parametrize("model", ["cam", "gradcam", "input_x_gradient"])
def test_training_free_models_are_calibrated_on_the_label_budget(model, tmp_path):
    task = make_task(model)
    task.model.threshold.fill_(-1.0)
    data = LabelledData([make_batch(4, size=32)], [make_batch(4, size=32)])
    scores = make_trainer(tmp_path).test(task, datamodule=data, verbose=False)[0]
    assert task.model.threshold >= 0
    assert 0 <= scores["test/miou"] <= 1
    with pytest.raises(InputError, match="tw-seg test"):
        make_trainer(tmp_path).fit(task, datamodule=data)


def test_calibration_needs_labelled_images(tmp_path):
    with pytest.raises(InputError, match="labelled_dataloader"):
        make_trainer(tmp_path).test(make_task("cam"), dataloaders=TinyData().val_dataloader())
