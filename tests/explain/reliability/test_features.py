from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.training.tiny import ENCODER
from tw_seg import create_model
from tw_seg.errors import InputError
from tw_seg.explain.pairs import find_pairs
from tw_seg.explain.reliability.features import (
    FEATURE_SETS,
    GROUPS,
    find_groups,
    find_offered_groups,
    measure_features,
)
from tw_seg.explain.reliability.output_features import measure_mask
from tw_seg.explain.reliability.region_features import RegionOptions
from tw_seg.models.base import SegModel
from tw_seg.models.factory import MODELS
from tw_seg.types import SegOutput


def make_images(count=3, size=(32, 32), seed=0):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def heatmap():
    torch.manual_seed(0)
    kwargs = {"drop_path_rate": 0.5, "zero_init_last": False, **ENCODER["encoder_kwargs"]}
    model = create_model("heatmap", encoder_name=ENCODER["encoder_name"], encoder_kwargs=kwargs, classes=3)
    nn.init.normal_(model.offset, std=0.1)
    return model.eval()


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"classifier"}))
def test_every_model_of_ours_has_the_features_that_it_offers(name):
    kwargs = {"decoder_channels": [8, 8, 8, 4, 4]} if name in ("unet", "multitask_unet") else {}
    torch.manual_seed(0)
    model: SegModel = create_model(name, **ENCODER, classes=3, **kwargs).train()
    images = make_images()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with torch.no_grad():
        output = model.eval()(images)
    model.train()
    groups = find_offered_groups(model, output, FEATURE_SETS["full"])
    assert ("relevance" in groups) == (name == "heatmap")
    assert set(groups) | {"relevance"} == set(FEATURE_SETS["full"])
    regions = RegionOptions(steps=2 if model.trainable else 0)  # nothing flows back through masks that are cut
    found = measure_features(model, images, groups=groups, regions=regions)
    assert list(found) == [key for group in groups for key in GROUPS[group]]
    assert all(one.shape == (3,) and one.dtype == torch.float64 for one in found.values())
    assert not any(found[key].isnan().any() for key in ("max_probability", "entropy", "area", "flip_agreement"))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_classifier_has_no_masks_to_rate():
    with pytest.raises(InputError, match=r"mask logits of shape \(N, K, h, w\)"):
        measure_features(create_model("classifier", **ENCODER, classes=3), make_images(), groups=["mask"])


def test_any_function_will_do_where_a_feature_needs_no_more():
    net = nn.Conv2d(3, 4, 3, padding=1)
    images = make_images(size=(9, 14))
    found = measure_features(lambda seen: {"out": net(seen)}, images, groups=("mask", "flip", "augmentation"))
    with torch.no_grad():
        logits = net(images)
    for name, value in measure_mask(logits, find_pairs(logits)).items():
        torch.testing.assert_close(found[name], value.double(), equal_nan=True)
    assert find_offered_groups(net, logits, FEATURE_SETS["cheap"]) == ("mask", "flip")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["masks"], "groups of features are mask, image_level"),
        (["image_level"], "leave out the group image_level"),
        (["relevance"], "leave out the group relevance"),
        (["dropout"], "needs the torch.nn.Module itself"),
    ],
)
def test_what_a_function_cannot_have(groups, message):
    with pytest.raises(InputError, match=message):
        measure_features(lambda images: images, make_images(), groups=groups)


def test_relevance_is_the_mask_logits_less_offset_and_prior():
    torch.manual_seed(1)
    for kwargs in ({}, {"background": "constant", "share_offset": True, "class_prior": 0.5}):
        model = create_model("heatmap", **ENCODER, classes=3, **kwargs).eval()
        images = make_images()
        with torch.no_grad():
            plain = model(images)
            expected = model.read_relevance(plain)
            nn.init.normal_(model.offset)
            shifted = model(images)
            torch.testing.assert_close(model.read_relevance(shifted), expected, atol=1e-5, rtol=1e-4)
            assert (shifted.mask_logits - plain.mask_logits).abs().max() > 0.1
            model.log_scale += 1  # the maps themselves grow
            torch.testing.assert_close(model.read_relevance(model(images)), math.e * expected, atol=1e-4, rtol=1e-3)


def test_dropout_reaches_the_decode_of_heatmaps(heatmap):
    images = make_images()
    state = torch.get_rng_state()
    first = measure_features(heatmap, images, groups=["dropout"])["dropout_agreement"]
    assert first.min() < 1 and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(measure_features(heatmap, images, groups=["dropout"])["dropout_agreement"], first)
    assert not any(module.training for module in heatmap.modules())


def test_an_output_that_is_there_is_not_computed_again():
    calls = []

    def function(images):
        calls.append(len(images))
        return images

    images = make_images()
    expected = measure_features(function, images, groups=["mask"])
    found = measure_features(function, images, groups=["mask"], output=images)
    assert calls == [3] and all(torch.equal(found[name], expected[name]) for name in found if name != "compactness")


def test_an_image_whose_logits_are_not_finite_has_no_features_and_the_others_theirs():
    images = make_images(4)

    def broken(seen):
        logits = seen * 10 - 5
        return SegOutput(seen.mean((2, 3)), logits)

    whole = measure_features(broken, images, groups=FEATURE_SETS["full"][:2])
    for value in (torch.nan, torch.inf):
        bad = images.clone()
        bad[1, 0, 2, 3] = value
        found = measure_features(broken, bad, groups=FEATURE_SETS["full"][:2])
        for name in found:
            assert found[name][1].isnan()
            torch.testing.assert_close(found[name][[0, 2, 3]], whole[name][[0, 2, 3]], equal_nan=True)
    nothing = measure_features(broken, torch.full((2, 3, 4, 4), torch.nan), groups=["mask", "flip", "regions"])
    assert all(one.isnan().all() for one in nothing.values())


def test_groups_are_found_by_names():
    for name, groups in FEATURE_SETS.items():
        assert find_groups(key for group in groups for key in GROUPS[group]) == groups, name
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))
    with pytest.raises(InputError, match="no feature luck: this version of tw_seg has others"):
        find_groups(["luck", "entropy"])
