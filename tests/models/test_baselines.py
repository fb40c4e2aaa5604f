from __future__ import annotations

import logging
import sys

import pytest
import torch
from torch import nn

from tests.models.contract import ENCODER, ModelContract, randomise
from tw_seg.errors import InputError
from tw_seg.models.backbones import create_classifier
from tw_seg.models.baselines import DeepLabV3Plus, MultiTaskUNet, UNet

NARROW = [16, 16, 8, 8, 8]
TIMM = {"channels": [32, 64, 128, 256]}


class TestUNet(ModelContract):
    model_class = UNet
    arguments = {**ENCODER, "decoder_channels": NARROW}
    exports = compiles = True

    def check_logits_of_samples(self, found, expected, samples):
        torch.testing.assert_close(found[samples], expected[samples])
        assert not found[1].any()

    def check_logits_of_warm_start(self, found, expected):
        pass  # they come out of a decoder that starts random


class TestMultiTaskUNet(ModelContract):
    model_class = MultiTaskUNet
    arguments = {**ENCODER, "decoder_channels": NARROW}
    exports = True


class TestMultiTaskUNetWithoutStrides(ModelContract):
    model_class = MultiTaskUNet
    arguments = {
        **ENCODER,
        "encoder_kwargs": {"channels": [8, 8, 16, 16], "output_stride": 8},
        "decoder_channels": NARROW,
    }


class TestDeepLabV3Plus(ModelContract):
    model_class = DeepLabV3Plus
    arguments = {**ENCODER, "decoder_channels": 16, "decoder_atrous_rates": [1, 2, 3]}
    exports = compiles = True


class TestDeepLabV3PlusAtStride8(ModelContract):
    model_class = DeepLabV3Plus
    arguments = {
        **ENCODER,
        "encoder_kwargs": {"channels": [8, 8, 16, 16], "output_stride": 8},
        "decoder_channels": 16,
    }


@pytest.mark.parametrize(
    ("name", "kwargs", "last"),
    [
        ("timm/resnet10t", TIMM, "layer4"),
        ("timm/resnet10t", {**TIMM, "output_stride": 8}, "layer4"),
        ("timm/regnety_002", None, "s4"),  # its keys are renamed by timm's features_only
        ("resnet18", None, "layer4"),
        ("mobilenet_v2", None, "features"),
    ],
)
def test_a_warm_start_is_the_classifier(name, kwargs, last):
    arguments = {"encoder_name": name, "classes": 5, "encoder_kwargs": kwargs}
    classifier = randomise(create_classifier(**arguments)).eval()
    model = MultiTaskUNet(**arguments, decoder_channels=NARROW).eval()
    model.load_classifier_state(classifier.state_dict())
    features = []
    classifier.get_submodule(last).register_forward_hook(lambda _m, _i, output: features.append(output))
    images = torch.randn(2, 3, 67, 93)
    with torch.no_grad():
        logits = classifier(images)
        torch.testing.assert_close(model.net.encoder(images)[-1], features[0])
        torch.testing.assert_close(model(images).logits, logits)


def test_vgg_warm_starts_its_encoder_and_says_that_the_head_is_random(caplog, quick_init):
    classifier = randomise(create_classifier("vgg11_bn", classes=5)).eval()
    model = MultiTaskUNet("vgg11_bn", classes=5, decoder_channels=NARROW).eval()
    with caplog.at_level(logging.WARNING):
        model.load_classifier_state(classifier.state_dict())
    assert "classifier.6" in caplog.text
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.net.encoder(images)[-1], classifier.features(images))


def test_encoder_weights_are_the_classifiers(tmp_path):
    arguments = {"encoder_name": "timm/resnet10t", "classes": 5, "encoder_kwargs": TIMM}
    classifier = randomise(create_classifier(**arguments)).eval()
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    images = torch.randn(2, 3, 64, 64)
    model = MultiTaskUNet(encoder_weights=str(tmp_path / "weights.pth"), **arguments).eval()
    torch.testing.assert_close(model(images).logits, classifier(images))
    plain = UNet(encoder_weights=str(tmp_path / "weights.pth"), **arguments).eval()
    torch.testing.assert_close(plain.net.encoder(images)[-1], classifier.forward_features(images))


def test_an_encoder_key_without_a_counterpart_is_an_error():
    model = UNet(**ENCODER)
    with pytest.raises(InputError, match="the classifier's encoder does not fit"):
        model._warm_start(create_classifier("timm/resnet10t", classes=4).state_dict(), "fc")


def test_warm_start_leaves_the_random_state_alone():
    model, state = UNet(**ENCODER), create_classifier(**ENCODER).state_dict()
    before = torch.get_rng_state()
    model.load_classifier_state(state)
    assert torch.equal(torch.get_rng_state(), before)


def test_unet_logits_are_the_spatial_maximum():
    output = UNet(**ENCODER).eval()(torch.randn(2, 3, 64, 64), classes=[0])
    everything = UNet(**ENCODER)
    assert output.logits.shape == (2, 4)
    output = everything.eval()(torch.randn(2, 3, 64, 64))
    assert torch.equal(output.logits, output.mask_logits.amax((2, 3)))


@pytest.mark.parametrize(("name", "kwargs"), [("timm/resnet10t", TIMM), ("resnet18", None), ("mobilenet_v2", None)])
def test_deeplab_is_the_librarys(name, kwargs):
    """At sizes that need no resizing, the network's own forward."""
    model = randomise(DeepLabV3Plus(name, classes=5, encoder_kwargs=kwargs, decoder_channels=16)).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        features = model.net.encoder(images)
        torch.testing.assert_close(model(images).mask_logits, model.net(images))
        assert features[-1].shape[2:] == (4, 6)


def test_deeplab_starts_from_the_classifier_with_its_strides():
    arguments = {"encoder_name": "timm/resnet10t", "classes": 5, "encoder_kwargs": {**TIMM, "output_stride": 8}}
    classifier = randomise(create_classifier(**arguments)).eval()
    model = DeepLabV3Plus(**arguments, decoder_channels=16).eval()
    model.load_classifier_state(classifier.state_dict())
    images = torch.randn(2, 3, 67, 93)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, classifier(images))


def test_deeplab_needs_two_images_in_a_step():
    model = DeepLabV3Plus(**ENCODER, decoder_channels=16)
    images = torch.randn(4, 3, 64, 64)
    with pytest.raises(InputError, match=r"two images or more.*got 1.*labelled_per_batch >= 2"):
        model(images, samples=torch.tensor([1]))
    assert model(images, samples=torch.tensor([1, 3])).mask_logits.shape == (2, 4, 64, 64)
    assert model.eval()(images, samples=torch.tensor([1])).mask_logits.shape == (1, 4, 64, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder_name": "vgg11"}, "cannot build a DeepLabV3Plus on 'vgg11'.*dilated"),
        ({"encoder_name": "timm/resnet10t", "encoder_kwargs": {"output_stride": 32}}, "stride 8 or 16, got 32"),
        ({"encoder_name": "resnet18", "decoder_atrous_rates": [6]}, r"three numbers, got \[6\]"),
    ],
)
def test_what_deeplab_cannot_be_built_on_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        DeepLabV3Plus(**arguments, classes=3)


@pytest.mark.parametrize("model_class", [UNet, MultiTaskUNet, DeepLabV3Plus])
def test_only_the_chosen_images_are_decoded(model_class):
    model = model_class(**ENCODER)
    seen = []
    model.net.segmentation_head.register_forward_hook(lambda _m, i, _o: seen.append(len(i[0])))
    model(torch.randn(4, 3, 64, 64), samples=torch.tensor([1, 2]))
    model(torch.randn(4, 3, 64, 64), samples=torch.tensor([], dtype=torch.int64))
    assert seen == [2]


def test_in_channels():
    for name in ("timm/resnet10t", "resnet18"):
        model = UNet(name, in_channels=2, classes=3)
        assert model(torch.randn(2, 2, 64, 64)).mask_logits.shape == (2, 3, 64, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder_name": "squeezenet1_1"}, "no encoder of segmentation-models-pytorch"),
        ({"encoder_name": "resnet18", "encoder_kwargs": {"width_per_group": 32}}, "timm/resnet18"),
        ({"encoder_name": "timm/resnet10tt"}, "cannot build a Unet on 'timm/resnet10tt'"),
        ({"encoder_name": "timm/vit_tiny_patch16_224"}, "downsampling pattern"),
        ({"encoder_name": "timm/resnet10t", "encoder_kwargs": {"colour": 3}}, "colour"),
        ({"encoder_name": "timm/resnet10t", "decoder_channels": [16, 8]}, r"five numbers.*\[16, 8\]"),
        ({"encoder_name": "timm/resnet10t", "decoder_channels": 16}, "five numbers, deepest first, got 16"),
        (
            {"encoder_name": "timm/resnet10t", "class_prior": 1.0},
            "class_prior=1.0 needs image-level logits.*UNet.*'multitask_unet'",
        ),
    ],
)
def test_what_cannot_be_built_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        UNet(**arguments, classes=3)


def test_without_segmentation_models_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(InputError, match=r"tw-seg\[baselines\]"):
        UNet(**ENCODER)


def test_the_head_takes_a_classifier_without_bias():
    model = MultiTaskUNet(**ENCODER)
    classifier = create_classifier(**ENCODER)
    classifier.fc = nn.Linear(16, 4, bias=False)
    model._warm_start(classifier.state_dict(), "fc")
    assert torch.equal(model.head.weight, classifier.fc.weight) and not model.head.bias.any()
