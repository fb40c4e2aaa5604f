"""The image shape that a classifier is made for. What is asked of examples while tracing is in ``test_tracer.py``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
from torch import nn
from torchvision.models.inception import Inception3

from tests.lrp.trace.test_tracer import swin, vit
from tw_seg.lrp.trace.examples import default_image_shape


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (vit, (3, 32, 32)),
        (swin, (3, 224, 224)),
        (lambda: nn.Conv2d(1, 4, 3), (1, 224, 224)),
        (lambda: Inception3(num_classes=3, init_weights=False), (3, 299, 299)),
        (lambda: timm.create_model("test_vit", img_size=64, in_chans=1), (1, 64, 64)),
        (lambda: timm.create_model("test_resnet", in_chans=4), (4, 160, 160)),
        (lambda: timm.create_model("tresnet_m"), (3, 224, 224)),  # its stem folds 4 x 4 pixels
        (lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 1)), (3, 224, 224)),
    ],
)
def test_the_usual_image_shape(make: Callable[[], nn.Module], expected: tuple[int, int, int]) -> None:
    assert default_image_shape(make()) == expected
