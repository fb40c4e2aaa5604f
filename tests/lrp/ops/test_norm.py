"""Normalisations of the sample: the deviation is held constant, the mean is not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.lrp.ops.harness import SIZES, Case, build, check, spellings
from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder


def scaled(y: Tensor, dims, eps: float = 1e-5, centred: bool = True) -> Tensor:
    """``(y - mean) / deviation``, the deviation held constant."""
    if centred:
        y = y - y.mean(dims, keepdim=True)
    return y / torch.sqrt(y.detach().square().mean(dims, keepdim=True) + eps)


def grouped(y: Tensor, groups: int, n=None, eps: float = 1e-5) -> Tensor:
    """A GroupNorm, with the weight and bias of ``n``."""
    result = scaled(y.unflatten(1, (groups, -1)), tuple(range(2, y.ndim + 1)), eps).flatten(1, 2)
    if n is None:
        return result
    shape = (1, -1, *[1] * (y.ndim - 2))
    return result * n.weight.view(shape) + n.bias.view(shape)


LAYER = {
    **spellings(
        "layer_norm",
        lambda s, x: s.n(s.a(x)),
        lambda s, x: s.n(input=s.a(x)),
        lambda s, x: F.layer_norm(s.a(x), (8,), s.n.weight, s.n.bias),
        lambda s, x: F.layer_norm(s.a(x), normalized_shape=[8], weight=s.n.weight, bias=s.n.bias, eps=1e-5),
        lambda s, x: torch.layer_norm(s.a(x), [8], s.n.weight, s.n.bias),
        lambda s, x: s.n(s.a(x).permute(1, 2, 0, 3)).permute(2, 0, 1, 3),
        surrogate=lambda s, x: scaled(s.a(x), -1) * s.n.weight + s.n.bias,
        modules=lambda: {"n": nn.LayerNorm(8)},
    ),
    "layer_norm of channels": Case(
        lambda s, x: s.n(s.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        lambda s, x: (scaled(s.a(x).permute(0, 2, 3, 1), -1) * s.n.weight + s.n.bias).permute(0, 3, 1, 2),
        modules=lambda: {"n": nn.LayerNorm(4)},
    ),
    "layer_norm of several axes": Case(
        lambda s, x: s.n(s.a(x)),
        lambda s, x: scaled(s.a(x), (2, 3), 0.1) * s.n.weight + s.n.bias,
        modules=lambda: {"n": nn.LayerNorm((6, 8), eps=0.1)},
    ),
    "layer_norm without a bias": Case(
        lambda s, x: s.n(s.a(x)), lambda s, x: scaled(s.a(x), -1) * s.n.weight,
        modules=lambda: {"n": nn.LayerNorm(8, bias=False)},
    ),
    **spellings(
        "layer_norm plain",
        lambda s, x: s.n(s.a(x)),
        lambda s, x: F.layer_norm(s.a(x), x.shape[-1:], eps=0.3),
        surrogate=lambda s, x: scaled(s.a(x), -1, 0.3),
        modules=lambda: {"n": nn.LayerNorm(8, 0.3, elementwise_affine=False)},
    ),
}  # fmt: skip
RMS = {
    **spellings(
        "rms_norm",
        lambda s, x: s.n(s.a(x)),
        lambda s, x: F.rms_norm(s.a(x), (8,), s.n.weight),
        lambda s, x: F.rms_norm(s.a(x), normalized_shape=[8], weight=s.n.weight, eps=None),
        lambda s, x: torch.rms_norm(s.a(x), (8,), s.n.weight),
        surrogate=lambda s, x: scaled(s.a(x), -1, 2.0**-52, centred=False) * s.n.weight,
        modules=lambda: {"n": nn.RMSNorm(8)},
    ),
    "rms_norm plain": Case(
        lambda s, x: s.n(s.a(x)), lambda s, x: scaled(s.a(x), (-2, -1), 0.2, centred=False),
        modules=lambda: {"n": nn.RMSNorm((6, 8), eps=0.2, elementwise_affine=False)},
    ),
}  # fmt: skip
GROUP = {
    **spellings(
        "group_norm",
        lambda s, x: s.n(s.a(x)),
        lambda s, x: F.group_norm(s.a(x), 2, s.n.weight, s.n.bias),
        lambda s, x: F.group_norm(s.a(x), num_groups=2, weight=s.n.weight, bias=s.n.bias, eps=1e-5),
        lambda s, x: torch.group_norm(s.a(x), 2, s.n.weight, s.n.bias),
        lambda s, x: s.n(s.a(x).flatten(2)).view(x.size(0), 4, 6, 8),
        surrogate=lambda s, x: grouped(s.a(x), 2, s.n),
        modules=lambda: {"n": nn.GroupNorm(2, 4)},
    ),
    "group_norm of all": Case(
        lambda s, x: s.n(s.a(x)), lambda s, x: grouped(s.a(x), 1, eps=0.1),
        modules=lambda: {"n": nn.GroupNorm(1, 4, 0.1, affine=False)},
    ),
    "group_norm of features": Case(
        lambda s, x: s.n(s.a(x).mean((2, 3))), lambda s, x: grouped(s.a(x).mean((2, 3)), 2, s.n),
        modules=lambda: {"n": nn.GroupNorm(2, 4)},
    ),
}  # fmt: skip
INSTANCE = {
    f"instance_norm{dims}d {training} {affine}": Case(
        lambda s, x: s.n(s.a(x)),
        lambda s, x, affine=affine: grouped(s.a(x), 4, s.n if affine else None, 0.1),
        SIZES[dims],
        lambda module=module, affine=affine: {"n": module(4, eps=0.1, affine=affine)},
        training,
    )
    for dims, module in ((1, nn.InstanceNorm1d), (2, nn.InstanceNorm2d), (3, nn.InstanceNorm3d))
    for training, affine in ((False, True), (True, True), (False, False))
}
CASES = {**LAYER, **RMS, **GROUP, **INSTANCE}


@pytest.mark.parametrize("name", CASES)
def test_norm(name: str) -> None:
    check(CASES[name])


def test_running_statistics_of_instances_are_refused() -> None:
    net, images = build(
        Case(lambda s, x: s.n(s.a(x)), modules=lambda: {"n": nn.InstanceNorm2d(4, track_running_stats=True)})
    )
    with pytest.raises(UnsupportedOpError, match="n: InstanceNorm with running statistics"):
        HeatmapDecoder(net)(images)


def test_layer_norm_over_the_batch_is_refused() -> None:
    net, images = build(
        Case(lambda s, x: s.n(s.a(x).permute(1, 2, 3, 0)).permute(3, 0, 1, 2), modules=lambda: {"n": nn.LayerNorm(2)})
    )
    with pytest.raises(UnsupportedOpError, match="mixes the images of a batch"):
        HeatmapDecoder(net)(images)
