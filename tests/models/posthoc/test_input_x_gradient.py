from __future__ import annotations

import torch

from tests.models.contract import ModelContract
from tests.models.posthoc.helpers import OPEN, maps_by_hand, warm
from tw_seg.models.posthoc.input_x_gradient import InputXGradient


class TestInputXGradient(ModelContract):
    model_class = InputXGradient
    arguments = OPEN
    exports = compiles = False


def test_input_x_gradient_is_its_name():
    model, images = warm(InputXGradient), torch.randn(2, 3, 32, 32)
    leaf = images.clone().requires_grad_()
    logits = model.classifier(leaf)
    products = [torch.autograd.grad(logits[:, k].sum(), leaf, retain_graph=True)[0] * images for k in range(4)]
    attribution = torch.stack([product.sum(1) for product in products], 1)
    torch.testing.assert_close(model(images).mask_logits[:, 1:], maps_by_hand(attribution, (32, 32))[:, 1:])
