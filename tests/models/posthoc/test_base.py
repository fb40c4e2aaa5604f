from __future__ import annotations

import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from tests.models.contract import ENCODER
from tests.models.posthoc.helpers import labelled_batch, warm
from tw_seg.errors import InputError
from tw_seg.models.posthoc.cam import CAM
from tw_seg.models.posthoc.gradcam import GradCAM
from tw_seg.models.posthoc.input_x_gradient import InputXGradient

METHODS = [CAM, GradCAM, InputXGradient]


@pytest.mark.parametrize("model_class", METHODS)
def test_scores_background_and_gate(model_class):
    model, images = warm(model_class, gate=0.5), torch.randn(4, 3, 64, 64)
    output = model(images)
    probabilities = output.logits.sigmoid()[:, 1:]
    assert (probabilities >= 0.5).any() and (probabilities < 0.5).any()
    peaks = output.mask_logits[:, 1:].amax((2, 3))
    assert output.mask_logits.min() == 0
    assert not peaks[probabilities < 0.5].any()
    assert set(peaks[probabilities >= 0.5].tolist()) <= {0.0, 1.0}  # 0: negative everywhere
    assert (peaks == 1).any()
    assert (output.mask_logits[:, 0] == model.threshold).all()


def test_classes_behind_the_gate_cost_nothing():
    model = warm(GradCAM, gate=1 - 1e-6)
    calls = []
    model.attribute = lambda *arguments: calls.append(arguments)
    assert not model(torch.randn(2, 3, 64, 64)).mask_logits[:, 1:].any()
    assert not calls


@pytest.mark.parametrize("model_class", METHODS)
def test_calibrate_finds_the_best_threshold_of_the_grid(model_class):
    model = warm(model_class)
    images = torch.randn(5, 3, 48, 48)
    scores = model(images).mask_logits
    scores[:, 0] = 0.37  # masks made from the model's own maps, then spoiled, so that no threshold is perfect
    masks = scores.argmax(1)
    masks[torch.rand(masks.shape) < 0.1] = 0
    masks[torch.rand(masks.shape) < 0.1] = 255
    labelled = [0, 2, 3]
    batches = [labelled_batch(images, masks[labelled], labelled), labelled_batch(images, masks[[4]], [4])]
    best = model.calibrate(batches)

    used = [0, 2, 3, 4]
    scores, found = model(images).mask_logits[used], {}
    for threshold in torch.linspace(0, 0.99, 100).square().tolist():
        scores[:, 0] = threshold
        metric = MulticlassJaccardIndex(4, average="macro", ignore_index=255)
        metric.update(scores.argmax(1), masks[used])
        found[threshold] = float(metric.compute())
    assert best == pytest.approx(max(found.values()), abs=1e-6)
    chosen = min(found, key=lambda threshold: abs(threshold - float(model.threshold)))
    assert found[chosen] == pytest.approx(best, abs=1e-6)


def test_calibration_travels_with_the_checkpoint():
    model, images = warm(CAM), torch.randn(2, 3, 48, 48)
    before = float(model.threshold)
    masks = torch.zeros(2, 48, 48, dtype=torch.int64)  # nothing but background: the highest threshold is best
    model.calibrate([labelled_batch(images, masks, [0, 1])])
    assert float(model.threshold) != before
    other = warm(CAM)
    other.load_state_dict(model.state_dict())
    assert float(other.threshold) == float(model.threshold)


def test_calibrate_works_in_inference_mode():
    model, images = warm(InputXGradient), torch.randn(2, 3, 48, 48)
    masks = torch.randint(0, 4, (2, 48, 48))
    expected = model.calibrate([labelled_batch(images, masks, [0, 1])])
    with torch.inference_mode():
        assert model.calibrate([labelled_batch(images, masks, [0, 1])]) == expected


def test_train_leaves_the_classifier_frozen_and_in_evaluation_mode():
    model = warm(CAM).train()
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_gate_is_a_probability():
    for gate in (1.5, 1, -0.1, True):
        with pytest.raises(InputError, match=r"gate must be a probability in \[0, 1\)"):
            CAM(**ENCODER, gate=gate)
