from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

from tw_seg.errors import InputError
from tw_seg.explain.reliability.masks import mean_dice, predict_mask
from tw_seg.explain.reliability.repeat_features import (
    AUGMENTATIONS,
    dropping,
    measure_augmentation,
    measure_dropout,
    measure_flip,
)


def make_images(count=3):
    return torch.rand(count, 3, 8, 6, generator=torch.Generator().manual_seed(0))


def bright_parts(images):
    """Background, and a class where a pixel is bright; looks at single pixels, so mirrored images change nothing."""
    bright = 10 * (images.mean(1) - 0.5)
    return torch.stack([torch.zeros_like(bright), bright], 1)


def left_half(images):
    """Predicts the left half, whatever the image shows."""
    logits = torch.zeros(len(images), 2, *images.shape[2:])
    logits[:, 1, :, : images.shape[3] // 2] = 1
    return logits + torch.tensor([0.5, 0])[:, None, None]


def test_mirrored_images_are_mirrored_back():
    images = make_images()
    assert measure_flip(bright_parts, images, bright_parts(images))["flip_agreement"].tolist() == [1, 1, 1]
    assert measure_flip(left_half, images, left_half(images))["flip_agreement"].tolist() == [0, 0, 0]


def test_augmentation_is_the_mean_over_the_changes():
    images = make_images()
    first = predict_mask(bright_parts(images))
    parts = []
    for change in AUGMENTATIONS.values():
        again = change.undo(bright_parts(change.apply(images)))
        again = F.interpolate(again, size=(8, 6), mode="bilinear", align_corners=False)
        parts.append(mean_dice(first, predict_mask(again), 2))
    found = measure_augmentation(bright_parts, images, bright_parts(images))["augmentation_agreement"]
    torch.testing.assert_close(found, sum(parts) / 5)
    assert 0 < found.min() and found.max() < 1


class Net(nn.Module):
    """Mask logits under dropout, with a BatchNorm that must stay as it is."""

    def __init__(self, rate=0.5):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Dropout2d(rate), nn.Conv2d(8, 3, 1))

    def forward(self, images):
        return self.layers(images)


def test_dropout_agrees_with_runs_by_hand_and_leaves_all_as_it_was():
    net, images = Net().eval(), make_images()
    with torch.no_grad():
        logits = net(images)
        state = torch.get_rng_state()
        found = measure_dropout(net, net, images, logits, passes=4, seed=5)["dropout_agreement"]
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(module.training for module in net.modules())
        torch.manual_seed(5)
        net.layers[2].train()
        again = [mean_dice(predict_mask(logits), predict_mask(net(images)), 3) for _ in range(4)]
    torch.testing.assert_close(found, sum(again) / 4)
    assert found.max() < 1


def test_only_what_drops_is_put_into_training_mode():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.1), StochasticDepth(0.2, "row"), nn.Dropout(0.0)).eval()
    with pytest.raises(RuntimeError, match="stop"), dropping(net):
        assert [module.training for module in net] == [False, True, True, False]
        raise RuntimeError("stop")
    assert not any(module.training for module in net)


def test_a_model_in_which_nothing_drops_is_refused():
    with pytest.raises(InputError, match="Net has none: build it with some, for instance encoder_kwargs"):
        measure_dropout(bright_parts, Net(rate=0.0), make_images(), bright_parts(make_images()))
