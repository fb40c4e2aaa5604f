from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.tiny import Stub
from tw_seg.models.embedding import embed_images
from tw_seg.models.factory import create_model

IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def head_of(classifier: nn.Module) -> nn.Module:
    return classifier.fc if hasattr(classifier, "fc") else classifier.classifier[1]


@pytest.mark.parametrize("encoder", ["resnet18", "squeezenet1_1"])
def test_the_features_are_what_the_head_makes_logits_of(encoder):
    model = create_model("classifier", encoder_name=encoder, classes=4).eval()
    with torch.no_grad():
        output = model(IMAGES)
        features = embed_images(model, IMAGES, output)
        head = head_of(model.classifier)
        assert features.shape == (3, head.in_features if encoder == "resnet18" else head.in_channels)
        if encoder == "resnet18":
            torch.testing.assert_close(head(features), output.logits)
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_hooks_go_when_a_classifier_fails():
    model = Stub("stub", classes=3)
    with pytest.raises(RuntimeError):
        embed_images(model, torch.zeros(1, 5, 8, 8), model(torch.zeros(1, 3, 8, 8)))
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_features_of_a_model_without_a_classifier_are_its_answers():
    model = Stub("stub", classes=3).eval()
    Stub.classifier_path, before = None, Stub.classifier_path
    try:
        output = model(IMAGES)
        features = embed_images(model, IMAGES, output)
    finally:
        Stub.classifier_path = before
    expected = torch.stack([row.softmax(0).mean((1, 2)) for row in output.mask_logits])
    torch.testing.assert_close(features, torch.cat([output.logits, expected], dim=1))
