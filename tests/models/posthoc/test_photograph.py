"""Objects of photographs: what is seen where, against what is known of the pictures and against `LRPMask` itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data
from sklearn.datasets import load_sample_image

from tw_seg.data.loading.transforms import EvalTransform
from tw_seg.errors import InputError
from tw_seg.models.backbones import create_classifier
from tw_seg.models.bundled import BUNDLED_ENCODER
from tw_seg.models.posthoc.photograph import ObjectFinder, choose_size
from tw_seg.types import SYMMETRIC


@pytest.fixture(scope="module")
def finder() -> ObjectFinder:
    return ObjectFinder()


def prepare(photo: np.ndarray) -> torch.Tensor:
    return EvalTransform(choose_size(photo.shape[:2]), **SYMMETRIC._asdict())(photo, None)[0][None]


def test_a_cup_and_a_cat_side_by_side_are_two_objects(finder):
    photo = np.concatenate([data.coffee()[60:360, 130:450], data.cat()[:, 90:410]], axis=1)
    found = finder.find_objects(photo)
    places = {name: np.flatnonzero(one.mask.any(0)).mean() for one in found for name in one.names}
    cats, cups = ("tabby", "tiger cat", "Egyptian cat"), ("espresso", "cup", "coffee mug")
    assert any(places.get(name, 0) > 320 for name in cats), places
    assert any(places.get(name, 640) < 320 for name in cups), places
    assert sum(one.mask.astype(int) for one in found).max() == 1  # a pixel belongs to one object


def test_a_flower_is_found_where_it_is(finder):
    """Its petals are orange, what is around them green and blue."""
    photo = load_sample_image("flower.jpg")
    found = finder.find_objects(photo)[0]
    orange = photo[..., 0].astype(int) > photo[..., 2].astype(int) + 40
    inside, outside = orange[found.mask].mean(), orange[~found.mask].mean()
    assert found.names == ("daisy",) and inside > 0.9 and outside < 0.1
    assert found.heatmap.shape == found.mask.shape == photo.shape[:2]
    assert 0.9 < found.heatmap.max() <= 1 and found.heatmap.min() >= 0
    assert found.mask[np.unravel_index(found.heatmap.argmax(), found.mask.shape)]


def test_probabilities_are_those_of_the_plain_classifier(finder):
    images = prepare(data.cat())
    with torch.no_grad():
        expected = create_classifier(BUNDLED_ENCODER, "bundled", classes=1000).eval()(images).softmax(1)[0]
    torch.testing.assert_close(finder.classify(images), expected, rtol=1e-4, atol=1e-6)
    found = finder.find_objects(data.cat())[0]
    assert list(found.indices) == [int(k) for k in expected.argsort(descending=True)[: len(found.indices)]]
    assert found.probabilities == pytest.approx(expected[list(found.indices)].tolist(), rel=1e-4)


def test_classes_at_one_place_are_one_object_and_can_be_told_apart(finder):
    images = prepare(data.cat())
    probabilities = finder.classify(images)
    together = finder.locate_classes(images, [285, 282], probabilities, (30, 45))
    assert [one.indices for one in together] == [(285, 282)]
    apart = ObjectFinder(same=1.01).locate_classes(images, [285, 282], probabilities, (30, 45))
    assert {index for one in apart for index in one.indices} == {282, 285} and all(len(one.names) == 1 for one in apart)


@pytest.mark.parametrize(
    ("shape", "size"), [((400, 600), (192, 288)), ((600, 400), (288, 192)), ((10, 4000), (32, 288))]
)
def test_sizes(shape, size):
    assert choose_size(shape) == size


def test_any_photograph(finder):
    """A single pixel, and one without anything to see."""
    for photo in (np.zeros((1, 1, 3), np.uint8), np.full((40, 70, 3), 90, np.uint8)):
        for one in finder.find_objects(photo):
            assert one.mask.shape == photo.shape[:2] and one.heatmap.min() >= 0
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match=r"must be RGB, uint8, of shape \(H, W, 3\)"):
            finder.find_objects(wrong)
