from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassJaccardIndex

from tests.models.contract import ENCODER, ModelContract, randomise
from tw_seg.errors import InputError
from tw_seg.models.backbones import create_classifier
from tw_seg.models.posthoc import CAM, GradCAM, InputXGradient, last_feature_map
from tw_seg.types import Batch

METHODS = [CAM, GradCAM, InputXGradient]
OPEN = {**ENCODER, "gate": 0.0}


class TestCAM(ModelContract):
    model_class = CAM
    arguments = OPEN
    trainable = False


class TestGradCAM(ModelContract):
    model_class = GradCAM
    arguments = OPEN
    trainable = False


class TestInputXGradient(ModelContract):
    model_class = InputXGradient
    arguments = OPEN
    trainable = False


class PlainNet(nn.Module):
    """Pool and linear layer written as functions, and a head before it that CAM cannot use."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(in_channels, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, num_classes)

    def forward(self, images):
        return self.head(self.hidden(F.adaptive_avg_pool2d(self.features(images), 1).flatten(1)).relu())


def labelled_batch(images, masks, labelled):
    labels = torch.ones(len(images), 4)
    return Batch(images, labels, torch.tensor(labelled), masks, tuple(masks), ("",) * len(images))


def warm(model_class, **overrides):
    torch.manual_seed(0)
    return randomise(model_class(**{**OPEN, **overrides}))


def maps_by_hand(attribution, size):
    maps = F.interpolate(attribution, size=size, mode="bilinear", align_corners=False).clamp(min=0)
    return maps / maps.amax((2, 3), keepdim=True).clamp(min=1e-30)  # a map may be negative everywhere


def test_cam_is_the_heads_weights_on_the_last_feature_map():
    model, images = warm(CAM), torch.randn(2, 3, 64, 64)
    classifier = model.classifier
    with torch.no_grad():
        features = classifier.forward_features(images)
        attribution = torch.einsum("nchw,kc->nkhw", features, classifier.fc.weight)
        # Its spatial mean is the logit less the bias: the property that makes it a class activation map.
        torch.testing.assert_close(attribution.mean((2, 3)) + classifier.fc.bias, model(images).logits)
    torch.testing.assert_close(model(images).mask_logits[:, 1:], maps_by_hand(attribution, (64, 64))[:, 1:])


def test_grad_cam_is_cam_where_the_classifier_is_pool_and_linear():
    cam, grad_cam, images = warm(CAM), warm(GradCAM), torch.randn(2, 3, 50, 64)
    grad_cam.load_state_dict(cam.state_dict())
    torch.testing.assert_close(grad_cam(images).mask_logits, cam(images).mask_logits)


def test_input_x_gradient_is_its_name():
    model, images = warm(InputXGradient), torch.randn(2, 3, 32, 32)
    leaf = images.clone().requires_grad_()
    logits = model.classifier(leaf)
    products = [torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)[0] * images for k in range(4)]
    attribution = torch.stack([product.sum(1) for product in products], 1)
    torch.testing.assert_close(model(images).mask_logits[:, 1:], maps_by_hand(attribution, (32, 32))[:, 1:])


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
    model = warm(GradCAM, gate=1.0)
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


@pytest.mark.parametrize("value", [None, 255])
def test_calibrate_needs_labelled_pixels(value):
    images = torch.randn(2, 3, 48, 48)
    labelled = [] if value is None else [0]
    masks = torch.full((len(labelled), 48, 48), 255, dtype=torch.int64)
    batch = labelled_batch(images, masks, labelled)
    batch = batch._replace(labelled=batch.labelled.long())
    with pytest.raises(InputError, match="at least one labelled pixel"):
        warm(CAM).calibrate([batch])


def test_train_leaves_the_classifier_frozen_and_in_evaluation_mode():
    model = warm(CAM).train()
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "kwargs", "layer"),
    [
        ("resnet18", None, "layer4"),
        ("timm/resnet10t", {"channels": [8, 8, 16, 16]}, "layer4"),
        ("timm/mobilenetv3_small_050", None, "blocks"),
        ("mobilenet_v2", {"width_mult": 0.25}, "features"),
        ("squeezenet1_1", None, "classifier.2"),
        (f"{__name__}:PlainNet", None, "features"),
    ],
)
def test_last_feature_map(name, kwargs, layer):
    model = create_classifier(name, classes=4, encoder_kwargs=kwargs)
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    assert last_feature_map(model, 3) == layer
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())
    assert not any(module._forward_hooks for module in model.modules())


def test_cam_refuses_a_classifier_with_another_head():
    with pytest.raises(InputError, match=r"last feature map 'features', head 'head'.*Use 'gradcam'"):
        CAM(f"{__name__}:PlainNet", classes=4)
    output = GradCAM(f"{__name__}:PlainNet", classes=4, gate=0.0)(torch.randn(1, 3, 32, 32))
    assert output.mask_logits.shape == (1, 4, 32, 32)


def test_grad_cam_at_a_layer_of_choice():
    model, images = warm(GradCAM, layer="layer2"), torch.randn(2, 3, 64, 64)
    assert not torch.equal(model(images).mask_logits, warm(GradCAM)(images).mask_logits)
    with pytest.raises(InputError, match=r"layer='layer9' is no module.*layer2"):
        warm(GradCAM, layer="layer9")


def test_a_classifier_without_feature_maps_is_an_error():
    with pytest.raises(InputError, match="no feature map"):
        last_feature_map(nn.Sequential(nn.Flatten(), nn.Linear(3 * 96 * 96, 2)), 3)
    with pytest.raises(InputError, match="does not take an image of 96x96"):
        last_feature_map(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), 3)


def test_the_gate_is_a_probability():
    with pytest.raises(InputError, match="gate must be a probability"):
        CAM(**ENCODER, gate=1.5)
