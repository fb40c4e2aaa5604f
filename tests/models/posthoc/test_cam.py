from __future__ import annotations

import pytest
import torch

from tests.models.contract import ModelContract
from tests.models.posthoc.helpers import OPEN, maps_by_hand, warm
from tw_seg.errors import InputError
from tw_seg.models.posthoc.cam import CAM
from tw_seg.models.posthoc.gradcam import GradCAM

PLAIN_NET = "tests.models.posthoc.test_feature_map:PlainNet"


class TestCAM(ModelContract):
    model_class = CAM
    arguments = OPEN
    exports = compiles = False


def test_cam_is_the_heads_weights_on_the_last_feature_map():
    model, images = warm(CAM), torch.randn(2, 3, 64, 64)
    classifier = model.classifier
    with torch.no_grad():
        features = classifier.forward_features(images)
        attribution = torch.einsum("nchw,kc->nkhw", features, classifier.fc.weight)
        # Its spatial mean is the logit less the bias: the property that makes it a class activation map.
        torch.testing.assert_close(attribution.mean((2, 3)) + classifier.fc.bias, model(images).logits)
    torch.testing.assert_close(model(images).mask_logits[:, 1:], maps_by_hand(attribution, (64, 64))[:, 1:])


def test_cam_refuses_a_classifier_with_another_head():
    with pytest.raises(InputError, match=r"last feature map 'features', head 'head'.*Use 'gradcam'"):
        CAM(PLAIN_NET, classes=4)
    output = GradCAM(PLAIN_NET, classes=4, gate=0.0)(torch.randn(1, 3, 32, 32))
    assert output.mask_logits.shape == (1, 4, 32, 32)
