from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tw_seg.errors import InputError
from tw_seg.models.backbones import create_classifier
from tw_seg.models.posthoc.feature_map import find_last_feature_map


class PlainNet(nn.Module):
    """Pool and linear layer written as functions, and a head before it that CAM cannot use."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(in_channels, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, num_classes)

    def forward(self, images):
        return self.head(self.hidden(F.adaptive_avg_pool2d(self.features(images), 1).flatten(1)).relu())


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
    assert find_last_feature_map(model, 3) == layer
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_classifier_without_feature_maps_is_an_error():
    with pytest.raises(InputError, match="no feature map"):
        find_last_feature_map(nn.Sequential(nn.Flatten(), nn.Linear(3 * 96 * 96, 2)), 3)
    with pytest.raises(InputError, match="does not take an image of 96x96"):
        find_last_feature_map(nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), 3)
