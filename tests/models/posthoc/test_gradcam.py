from __future__ import annotations

import pytest
import torch

from tests.models.contract import ModelContract
from tests.models.posthoc.helpers import OPEN, warm
from tw_seg.errors import InputError
from tw_seg.models.posthoc.cam import CAM
from tw_seg.models.posthoc.gradcam import GradCAM


class TestGradCAM(ModelContract):
    model_class = GradCAM
    arguments = OPEN
    exports = compiles = False


def test_grad_cam_is_cam_where_the_classifier_is_pool_and_linear():
    cam, grad_cam, images = warm(CAM), warm(GradCAM), torch.randn(2, 3, 50, 64)
    grad_cam.load_state_dict(cam.state_dict())
    torch.testing.assert_close(grad_cam(images).mask_logits, cam(images).mask_logits)


def test_grad_cam_at_a_layer_of_choice():
    model, images = warm(GradCAM, layer="layer2"), torch.randn(2, 3, 64, 64)
    assert not torch.equal(model(images).mask_logits, warm(GradCAM)(images).mask_logits)
    with pytest.raises(InputError, match=r"layer='layer9' is no module.*layer2"):
        warm(GradCAM, layer="layer9")
