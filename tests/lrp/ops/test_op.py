"""What is refused for every operation alike: work along the batch, and along another axis than it is made for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.lrp.ops.harness import Case, build
from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder

OTHER_AXES = {
    "conv": lambda s, x: s.c(s.a(x).transpose(0, 1)).transpose(0, 1),
    "avg_pool": lambda s, x: F.avg_pool2d(s.a(x).transpose(0, 1), 2).transpose(0, 1),
    "adaptive_avg_pool": lambda s, x: F.adaptive_avg_pool2d(s.a(x).transpose(0, 1), 2).transpose(0, 1),
    "interpolate": lambda s, x: F.interpolate(s.a(x).transpose(0, 1), scale_factor=2).transpose(0, 1),
    "batch_norm": lambda s, x: s.n(F.relu(s.a(x)).transpose(0, 1)).transpose(0, 1),
}


@pytest.mark.parametrize("name", OTHER_AXES)
def test_another_batch_axis_is_refused(name: str) -> None:
    net, images = build(Case(OTHER_AXES[name], modules=lambda: {"c": nn.Conv2d(2, 2, 3), "n": nn.BatchNorm2d(2)}))
    with pytest.raises(UnsupportedOpError, match="works on a batch at axis 1, expected axis 0"):
        HeatmapDecoder(net).eval()(images)


MIXING = {
    "roll over the batch": lambda s, x: s.a(x).roll(1, 0),
    "flip over the batch": lambda s, x: s.a(x).flip((0, 1)),
    "cat along the batch": lambda s, x: torch.cat([s.a(x), s.a(x)], 0).view(x.size(0), -1),
    "split of the batch": lambda s, x: torch.cat(s.a(x).chunk(2, 0)[::-1], 1),
    "one image": lambda s, x: s.a(x)[0].expand(x.size(0), -1, -1, -1),
    "some images": lambda s, x: s.a(x)[1:].flatten(0, 1).view(x.size(0), -1),
    "index of images": lambda s, x: s.a(x)[torch.tensor([1, 0])],
    "index_select of images": lambda s, x: s.a(x).index_select(0, torch.tensor([1, 0])),
    "repeat of the batch": lambda s, x: s.a(x).repeat(2, 1, 1, 1).view(x.size(0), -1),
    "sum over the batch": lambda s, x: s.a(x) + s.a(x).sum(0, keepdim=True),
    "mean over the batch": lambda s, x: s.a(x) - s.a(x).mean((0, 2, 3), keepdim=True),
    "softmax over the batch": lambda s, x: s.a(x).softmax(0),
    "channels outside the images": lambda s, x: s.a(x).transpose(0, 1).reshape(8, 6, 8).view(x.size(0), -1),
    "images joined": lambda s, x: s.a(x).view(1, -1).expand(x.size(0), -1),
    "channels of two images": lambda s, x: s.a(x).transpose(0, 1).flatten(0, 1).view(x.size(0), -1),
}


@pytest.mark.parametrize("name", MIXING)
def test_mixing_images_is_refused(name: str) -> None:
    net, images = build(Case(MIXING[name]))
    with pytest.raises(UnsupportedOpError):
        HeatmapDecoder(net).eval()(images)
