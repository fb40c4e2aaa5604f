from __future__ import annotations

import pytest
import torch

from tw_seg.errors import InputError
from tw_seg.explain.reliability.features import FEATURE_SETS, list_features, measure_features
from tw_seg.explain.reliability.judge import judge_predictions
from tw_seg.explain.reliability.masks import mean_dice
from tw_seg.metrics import predict_masks
from tw_seg.types import Batch, SegOutput


def function(images):
    """Three classes by the three colours."""
    return SegOutput(images.mean((2, 3)), 9 * images)


def make_batches():
    """Two batches; the second image has no mask, native masks are of other sizes."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in range(2):
        images = torch.rand(3, 3, 8, 8, generator=generator)
        native = tuple(torch.randint(0, 3, size, generator=generator) for size in ((11, 9), (8, 16)))
        names = tuple(f"{number}-{i}" for i in range(3))
        masks = torch.zeros(2, 8, 8, dtype=torch.int64)
        batches.append(Batch(images, torch.ones(3, 3), torch.tensor([0, 2]), masks, native, names))
    return batches


def test_features_and_dice_are_those_of_the_images():
    batches = make_batches()
    found = judge_predictions(function, batches, groups=FEATURE_SETS["cheap"])
    assert found.names == ("0-0", "0-1", "0-2", "1-0", "1-1", "1-2")
    images = torch.cat([batch.images for batch in batches])
    groups = ("mask", "image_level", "flip")  # the function has no relevance
    expected = measure_features(function, images, groups=groups)
    assert tuple(found.features) == list_features(groups)
    for name, values in expected.items():
        torch.testing.assert_close(found.features[name], values, equal_nan=True)
    assert found.dice.isnan().tolist() == [False, True, False] * 2
    for row, (batch, at) in {0: (0, 0), 2: (0, 1), 3: (1, 0), 5: (1, 1)}.items():
        mask = batches[batch].native_masks[at]
        (predicted,) = predict_masks(9 * images[row][None], [mask])
        assert found.dice[row] == mean_dice(predicted[None], mask[None], 3)[0]
    known = found.choose(~found.dice.isnan())
    assert known.names == ("0-0", "0-2", "1-0", "1-2") and len(known.features["area"]) == len(known.dice) == 4


def test_a_change_is_seen_by_features_and_dice_alike():
    changed = judge_predictions(function, make_batches(), groups=["mask"], change=lambda images: 1 - images)
    flipped = [batch._replace(images=1 - batch.images) for batch in make_batches()]
    expected = judge_predictions(function, flipped, groups=["mask"])
    assert torch.equal(changed.dice.nan_to_num(), expected.dice.nan_to_num())
    assert torch.equal(changed.features["entropy"], expected.features["entropy"])


def test_classes_that_were_not_annotated_do_not_count():
    batch = make_batches()[0]._replace(annotated=torch.tensor([[True, True, False], [True, True, True]]))
    found = judge_predictions(function, [batch], groups=["mask"])
    mask = batch.native_masks[0].clone()
    (predicted,) = predict_masks(9 * batch.images[:1], [mask])
    mask[predicted == 2] = 255
    assert found.dice[0] == mean_dice(predicted[None], mask[None], 3)[0]
    assert found.dice[2] == judge_predictions(function, make_batches()[:1], groups=["mask"]).dice[2]


def test_no_image_is_an_error():
    with pytest.raises(InputError, match="there is no image"):
        judge_predictions(function, [], groups=["mask"])
