from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu
from torch import nn

from tests.models.contract import ENCODER, ModelContract
from tests.models.posthoc.helpers import OPEN, labelled_batch, maps_by_hand, warm
from tw_seg.errors import InputError
from tw_seg.models.posthoc.input_x_gradient import InputXGradient
from tw_seg.models.posthoc.lrp import LRPMask
from tw_seg.models.posthoc.regions import EVEN

PLUS = {"composite": "epsilon_plus"}
EVERYTHING = {
    "decoder_kwargs": {"composite": "epsilon_plus", "seed": "contrastive", "read_out": ["layer1", "layer2", "layer4"]},
    "combine": "geometric_mean",
    "smooth": 1.0,
    "guide_radius": 2,
    "threshold_rule": "mass",
    "threshold_value": 0.4,
    "min_region": 3,
    "max_hole": 3,
}


class TestLRPMask(ModelContract):
    model_class = LRPMask
    arguments = {**OPEN, "decoder_kwargs": PLUS}
    exports = compiles = False


class TestEveryStep(ModelContract):
    model_class = LRPMask
    arguments = {**OPEN, **EVERYTHING}
    exports = compiles = False


class TestCalibrated(ModelContract):
    model_class = LRPMask
    arguments = {**OPEN, "threshold_rule": "calibrated"}
    exports = compiles = False


def test_with_the_epsilon_rule_it_is_input_x_gradient_that_is_cut():
    model, images = warm(LRPMask, threshold_rule="share", threshold_value=0.25), torch.randn(2, 3, 48, 48)
    maps = warm(InputXGradient)(images).mask_logits
    scores = model(images).mask_logits
    assert (scores[:, 0] == EVEN).all()
    clear = (maps[:, 1:] - 0.25).abs() > 1e-4
    assert ((scores[:, 1:] > EVEN) == (maps[:, 1:] > 0.25))[clear].all()
    # Several classes compete: each threshold is the same here, so the largest map above it wins.
    maps[:, 0] = 0.25
    top = maps.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 1e-3
    assert (scores.argmax(1) == maps.argmax(1))[clear].float().mean() > 0.999


@pytest.mark.parametrize("rule", ["share", "mass", "otsu", "quantile", "mixture", "calibrated"])
def test_a_map_that_is_the_same_everywhere_says_nothing_about_where(rule):
    model = warm(LRPMask, threshold_rule=rule)
    maps = torch.ones(1, model.num_classes, 4, 4)
    assert not model.cut(maps, range(model.num_classes)).argmax(1).any()


def test_every_class_has_its_own_threshold():
    model, images = warm(LRPMask, decoder_kwargs=PLUS), torch.randn(2, 3, 48, 48)
    scores = model(images).mask_logits
    heatmaps = model.decoder(images).heatmaps
    maps = maps_by_hand(heatmaps, (48, 48))
    for n, k in np.ndindex(2, 3):
        values = maps[n, k + 1].detach().numpy()
        assert (scores[n, k + 1].numpy() > EVEN).mean() == pytest.approx(
            (values > threshold_otsu(values)).mean(), abs=0.01
        )


def test_the_gate_shuts_images_and_classes_out():
    model, images = warm(LRPMask, gate=0.5, decoder_kwargs=PLUS), torch.randn(4, 3, 48, 48)
    output = model(images)
    passes = output.logits.sigmoid()[:, 1:] >= 0.5
    assert passes.any() and not passes.all()
    peaks = output.mask_logits[:, 1:].amax((2, 3))
    assert not peaks[~passes].any() and (peaks[passes] > EVEN).all()
    shut = warm(LRPMask, gate=1 - 1e-6)(images).mask_logits
    assert not shut.argmax(1).any()


def test_nothing_is_decoded_behind_the_gate():
    model = warm(LRPMask, gate=0.5, decoder_kwargs=PLUS)
    images = torch.randn(4, 3, 48, 48)
    passes = model(images).logits.sigmoid()[:, 1:].ge(0.5).any(1)
    decoded = []
    attribute = model.attribute
    model.attribute = lambda images, targets: decoded.append(len(images)) or attribute(images, targets)
    model(images)
    assert decoded == [int(passes.sum())]


def test_calibrate_sets_the_one_threshold_of_all_maps():
    model, images = warm(LRPMask, threshold_rule="calibrated", decoder_kwargs=PLUS), torch.randn(3, 3, 48, 48)
    assert model.needs_calibration and not warm(LRPMask).needs_calibration
    model.threshold.fill_(0.42)
    masks = model(images).mask_logits.argmax(1)
    model.threshold.fill_(0.9)
    assert model.calibrate([labelled_batch(images, masks, [0, 1, 2])]) > 0.95
    assert float(model.threshold) == pytest.approx(0.42, abs=0.02)
    assert (model(images).mask_logits.argmax(1) == masks).float().mean() > 0.98


def test_relevance_follows_a_new_classifier():
    """A decoder that kept its own weights, or a copy of the classifier, would not."""
    model, images = warm(LRPMask, decoder_kwargs=PLUS), torch.randn(2, 3, 48, 48)
    state = {name: value.clone() for name, value in model.classifier.state_dict().items()}
    other = warm(LRPMask, decoder_kwargs=PLUS)
    nn.init.normal_(other.classifier.fc.weight)
    changed = other(images).mask_logits
    other.load_classifier_state(state)
    assert not torch.equal(changed, model(images).mask_logits)
    assert torch.equal(other(images).mask_logits, model(images).mask_logits)
    assert not any(name.startswith("_decoders") for name in model.state_dict())


def test_logits_that_are_no_numbers_show_nothing():
    model, images = warm(LRPMask, decoder_kwargs=PLUS), torch.randn(2, 3, 48, 48)  # its gate is 0
    with torch.no_grad():
        model.classifier.fc.bias.fill_(torch.nan)
    output = model(images)
    assert output.logits.isnan().all()
    assert not output.mask_logits.argmax(1).any()


def test_infinite_relevance_is_refused():
    model = warm(LRPMask, decoder_kwargs=PLUS)
    with torch.no_grad():
        model.classifier.fc.weight.fill_(3e38)  # its logits are infinite, which passes a gate
    with pytest.raises(InputError, match="NaN or infinity: use another composite"):
        model(torch.rand(1, 3, 48, 48) * 100)


def test_arguments_are_checked():
    for wrong, message in (
        ({"decoder_kwargs": {"tie_weights": False}}, "leave tie_weights out"),
        ({"decoder_kwargs": {"rules": "x"}}, "decoder_kwargs knows composite"),
        ({"threshold_rule": "max"}, "threshold_rule must be one of share"),
        ({"min_region": -1}, "min_region must be a whole number >= 0"),
        ({"min_region": None}, "min_region must be a finite number"),
        ({"guide_radius": None}, "guide_radius must be a finite number"),
        ({"guide_epsilon": "0.1"}, "guide_epsilon must be a finite number > 0, got '0.1'"),
        ({"gate": "0.5"}, "gate must be a probability.*'0.5'"),
        ({"guide_epsilon": float("inf")}, "guide_epsilon must be a finite number > 0, got inf"),
        ({"guide_epsilon": -1.0}, "guide_epsilon must be a finite number > 0"),
        ({"smooth": "much"}, "smooth must be a finite number"),
        ({"combine": "sum"}, "combine must be one of"),
    ):
        with pytest.raises(InputError, match=message):
            LRPMask(**ENCODER, **wrong)
