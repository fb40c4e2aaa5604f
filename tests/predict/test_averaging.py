from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tw_seg.errors import InputError
from tw_seg.predict.averaging import average_over
from tw_seg.types import SegOutput

WEIGHT = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def segment(images: torch.Tensor) -> SegOutput:
    """Sees left and right, and sizes."""
    maps = F.conv2d(images, WEIGHT, padding=1)
    return SegOutput(maps.mean((2, 3)) + images.shape[-1], maps)


def test_without_views_nothing_is_averaged():
    assert average_over(segment) is segment


def test_mirror_images_are_mirrored_back():
    images = torch.randn(2, 2, 8, 10)
    found = average_over(segment, flip=True)(images)
    plain, mirrored = segment(images), segment(images.flip(-1))
    torch.testing.assert_close(found.mask_logits, (plain.mask_logits + mirrored.mask_logits.flip(-1)) / 2)
    torch.testing.assert_close(found.logits, (plain.logits + mirrored.logits) / 2)
    assert not torch.allclose(found.mask_logits, plain.mask_logits)
    # Of a symmetric result the mirror image is the average.
    torch.testing.assert_close(
        average_over(segment, flip=True)(images.flip(-1)).mask_logits, found.mask_logits.flip(-1)
    )


def test_scales_are_resized_there_and_back():
    images = torch.randn(2, 2, 8, 10)
    found = average_over(segment, scales=(0.5, 1, 1.6))(images)
    maps, logits = [], []
    for size in ((4, 5), (8, 10), (13, 16)):
        output = segment(F.interpolate(images, size, mode="bilinear", align_corners=False))
        maps.append(F.interpolate(output.mask_logits, (8, 10), mode="bilinear", align_corners=False))
        logits.append(output.logits)
    torch.testing.assert_close(found.mask_logits, sum(maps) / 3)
    torch.testing.assert_close(found.logits, sum(logits) / 3)


def test_classes_that_were_left_out_stay_finite():
    def gated(images: torch.Tensor) -> SegOutput:
        output = segment(images)
        output.mask_logits[:, 1] = torch.finfo(torch.float32).min / 2
        return output

    found = average_over(gated, flip=True, scales=(1.0, 1.0, 1.0))(torch.randn(1, 2, 4, 4))
    assert found.mask_logits.isfinite().all() and not (found.mask_logits.argmax(1) == 1).any()


@pytest.mark.parametrize("scales", [(), (0,), (-1.0,), (float("nan"),), ("1",)])
def test_scales_that_are_none_are_refused(scales):
    with pytest.raises(InputError, match="scales must be positive numbers"):
        average_over(segment, scales=scales)
