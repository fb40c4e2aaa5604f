"""Interpolation: heatmaps are input x gradient in every mode and spelling."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from torch import nn

from tests.lrp.ops.harness import SIZES, Case, check, spellings

INTERPOLATIONS = {
    **{
        f"interpolate {mode} {name}": Case(
            lambda s, x, m=mode, k=kwargs, o=options: F.interpolate(s.a(x), mode=m, **k, **o), size=SIZES[dims]
        )
        for mode, dims, options in (
            ("nearest", 1, {}), ("nearest", 2, {}), ("nearest", 3, {}),
            ("nearest-exact", 1, {}), ("nearest-exact", 2, {}), ("nearest-exact", 3, {}),
            ("linear", 1, {}), ("linear", 1, {"align_corners": True}),
            ("bilinear", 2, {}), ("bilinear", 2, {"align_corners": True}), ("bilinear", 2, {"antialias": True}),
            ("bicubic", 2, {}), ("bicubic", 2, {"align_corners": True}), ("bicubic", 2, {"antialias": True}),
            ("trilinear", 3, {}), ("trilinear", 3, {"align_corners": True}),
            ("area", 1, {}), ("area", 2, {}), ("area", 3, {}),
        )
        for name, kwargs in {
            f"{dims}d {options} {key}": value
            for key, value in {
                "size": {"size": 5}, "factor": {"scale_factor": 1.7}, "smaller": {"scale_factor": 0.6},
                "recomputed": {"scale_factor": 1.7, "recompute_scale_factor": True},
            }.items()
            if key == "factor" or (dims, options) == (2, {}) or (key == "smaller" and "antialias" in options)
        }.items()
    },
    **spellings(
        "interpolate written",
        lambda s, x: F.interpolate(s.a(x), x.shape[2:]),
        lambda s, x: F.interpolate(s.a(x), (3, 11), None, "bilinear", True),
        lambda s, x: F.interpolate(s.a(x), scale_factor=(2, 0.5), mode="bilinear"),
        lambda s, x: F.interpolate(input=F.max_pool2d(s.a(x), 2), size=s.a(x).shape[-2:], mode="nearest"),
    ),
    **{
        f"upsample {number}": Case(lambda s, x: s.u(s.a(x)), modules=make)
        for number, make in enumerate((
            lambda: {"u": nn.Upsample(scale_factor=2)},
            lambda: {"u": nn.Upsample((9, 5), mode="bicubic", align_corners=False)},
            lambda: {"u": nn.Upsample(scale_factor=1.5, mode="bilinear", recompute_scale_factor=True)},
            lambda: {"u": nn.UpsamplingNearest2d(scale_factor=2)},
            lambda: {"u": nn.UpsamplingBilinear2d(scale_factor=2)},
            lambda: {"u": nn.UpsamplingBilinear2d((5, 4))},
        ))
    },
}  # fmt: skip

CASES = {**INTERPOLATIONS}


@pytest.mark.parametrize("name", CASES)
def test_interpolate(name: str) -> None:
    check(CASES[name])
