"""Linear maps: heatmaps are input x gradient in one, two and three dimensions, in every spelling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.lrp.ops.harness import SIZES, Case, build, check, spellings
from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder

CONVS = {
    **{
        f"conv{dims}d {name}": Case(lambda s, x: s.c(s.a(x)), size=SIZES[dims], modules=make)
        for dims, module in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d))
        for name, make in {
            "stride": lambda m=module: {"c": m(4, 6, 3, 2, 1)},
            "rest": lambda m=module: {"c": m(4, 2, 2, 3)},
            "dilation": lambda m=module: {"c": m(4, 6, 3, 1, 2, 2, 2)},
            "depthwise": lambda m=module: {"c": m(4, 4, 3, groups=4, bias=False, padding=1)},
            "same": lambda m=module: {"c": m(4, 2, 3, padding="same", dilation=2)},
            "same even": lambda m=module: {"c": m(4, 2, 4, padding="same")},
            "valid": lambda m=module: {"c": m(4, 2, 2, padding="valid")},
        }.items()
    },
    "conv2d uneven": Case(lambda s, x: s.c(s.a(x)), modules=lambda: {"c": nn.Conv2d(4, 2, (1, 4), (2, 3), (0, 2))}),
    **spellings(
        "conv function",
        lambda s, x: F.conv2d(s.a(x), s.c.weight, s.c.bias, 2, 1, 1, 2),
        lambda s, x: F.conv2d(s.a(x), s.c.weight, bias=s.c.bias, stride=(2, 1), padding=(1, 0), groups=2),
        lambda s, x: torch.conv2d(input=s.a(x), weight=s.c.weight, padding="same", groups=2),
        lambda s, x: torch.conv2d(s.a(x), torch.tanh(s.c.weight) * 2, None, groups=2),
        modules=lambda: {"c": nn.Conv2d(4, 6, 3, groups=2)},
    ),
    "conv1d function": Case(lambda s, x: F.conv1d(s.a(x), s.a.weight[:, :2], None, 2, 1, groups=2), size=SIZES[1]),
    "conv3d function": Case(lambda s, x: F.conv3d(s.a(x), s.a.weight[:, :2], s.a.bias, 2, 1, groups=2), size=SIZES[3]),
}

TRANSPOSED = {
    **{
        f"conv_transpose{dims}d {name}": Case(lambda s, x: s.c(s.a(x)), size=SIZES[dims], modules=make)
        for dims, module in ((1, nn.ConvTranspose1d), (2, nn.ConvTranspose2d), (3, nn.ConvTranspose3d))
        for name, make in {
            "stride": lambda m=module: {"c": m(4, 2, 2, 2)},
            "output padding": lambda m=module: {"c": m(4, 2, 3, 2, 1, 1, bias=False)},
            "dilation": lambda m=module: {"c": m(4, 6, 3, 2, 2, 1, 2, dilation=2)},
            "output padding within the dilation": lambda m=module: {"c": m(4, 2, 2, 1, output_padding=1, dilation=3)},
        }.items()
    },
    "conv_transpose2d output size": Case(
        lambda s, x: s.c(s.a(x), output_size=(12, 15)), modules=lambda: {"c": nn.ConvTranspose2d(4, 2, 3, 2, 1)}
    ),
    **spellings(
        "conv_transpose function",
        lambda s, x: F.conv_transpose2d(s.a(x), s.c.weight, s.c.bias, 2, 1, 1, 2),
        lambda s, x: F.conv_transpose2d(s.a(x), s.c.weight, stride=(1, 2), output_padding=(0, 1), groups=2),
        modules=lambda: {"c": nn.ConvTranspose2d(4, 6, 3, groups=2)},
    ),
    "conv_transpose1d function": Case(
        lambda s, x: F.conv_transpose1d(s.a(x), s.c, None, 2), size=SIZES[1],
        modules=lambda: {"c": nn.Parameter(torch.zeros(4, 2, 3))},
    ),
    "conv_transpose3d function": Case(
        lambda s, x: F.conv_transpose3d(s.a(x), s.c, None, 2, dilation=2), size=SIZES[3],
        modules=lambda: {"c": nn.Parameter(torch.zeros(4, 2, 1, 2, 1))},
    ),
}  # fmt: skip

LINEARS = {
    **spellings(
        "linear",
        lambda s, x: s.l(s.a(x)),
        lambda s, x: s.l(s.a(x).flatten(2)[..., :8]),
        lambda s, x: s.l(s.a(x)[:, :, 0].flatten(0, 1)).view(x.shape[0], -1),
        lambda s, x: F.linear(s.a(x), s.l.weight),
        lambda s, x: F.linear(input=s.a(x), weight=s.l.weight, bias=s.l.bias),
        lambda s, x: s.q(s.a(x)),
        lambda s, x: s.l(s.a(x).transpose(0, 2)).transpose(0, 2),
        modules=lambda: {"l": nn.Linear(8, 5), "q": nn.modules.linear.NonDynamicallyQuantizableLinear(8, 5)},
    ),
}


def held(y, n):
    """A BatchNorm by the statistics of the batch, which are held constant."""
    dims = [0, *range(2, y.ndim)]
    shape = (1, -1, *[1] * (y.ndim - 2))
    mean, var = (v.detach().view(shape) for v in (y.mean(dims), y.var(dims, unbiased=False)))
    result = (y - mean) / torch.sqrt(var + n.eps)
    return result if n.weight is None else result * n.weight.view(shape) + n.bias.view(shape)


def norms(dims: int, module) -> dict[str, Case]:
    transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]

    def modules():
        return {"n": module(4, eps=0.1), "t": transposed(4, 6, 3, 2, groups=2), "m": module(6)}

    def make(body, surrogate=None, training=False):
        return Case(body, surrogate, SIZES[dims], modules, training)

    return {
        f"batch_norm{dims}d fused": make(lambda s, x: s.n(s.a(x))),
        f"batch_norm{dims}d alone": make(lambda s, x: s.n(F.relu(s.a(x)))),
        f"batch_norm{dims}d first": make(lambda s, x: s.t(s.n(F.relu(s.a(x))))),
        f"batch_norm{dims}d grouped transposed": make(lambda s, x: F.relu(s.m(s.t(s.n(s.a(x)))))),
        f"batch_norm{dims}d training": make(
            lambda s, x: F.relu(s.m(s.t(F.relu(s.n(s.a(x)))))),
            lambda s, x: F.relu(held(s.t(F.relu(held(s.a(x), s.n))), s.m)),
            True,
        ),
        f"batch_norm{dims}d training alone": make(
            lambda s, x: s.t(s.n(F.relu(s.a(x)))), lambda s, x: s.t(held(F.relu(s.a(x)), s.n)), True
        ),
    }


NORMS = {
    **norms(1, nn.BatchNorm1d),
    **norms(2, nn.BatchNorm2d),
    **norms(3, nn.BatchNorm3d),
    **spellings(
        "batch_norm function",
        lambda s, x: F.batch_norm(s.a(x), s.n.running_mean, s.n.running_var),
        lambda s, x: F.batch_norm(s.a(x), s.n.running_mean, s.n.running_var, s.n.weight, s.n.bias, False, 0.1, 0.5),
        lambda s, x: F.batch_norm(s.a(x), s.n.running_mean, s.n.running_var, weight=s.n.weight, training=s.training),
        modules=lambda: {"n": nn.BatchNorm2d(4)},
    ),
    "batch_norm function training": Case(
        lambda s, x: F.batch_norm(s.a(x), None, None, s.n.weight, s.n.bias, True),
        lambda s, x: held(s.a(x), s.n), training=True, modules=lambda: {"n": nn.BatchNorm2d(4)},
    ),
    "batch_norm of no statistics": Case(
        lambda s, x: s.n(s.a(x)), lambda s, x: held(s.a(x), s.n), training=True,
        modules=lambda: {"n": nn.BatchNorm2d(4, affine=False, track_running_stats=False)},
    ),
    "batch_norm before a same convolution": Case(
        lambda s, x: s.c(s.n(F.relu(s.a(x)))),
        modules=lambda: {"n": nn.BatchNorm2d(4), "c": nn.Conv2d(4, 6, 4, padding="same", groups=2)},
    ),
    "batch_norm of features": Case(
        lambda s, x: s.n(s.l(s.a(x).flatten(1))), modules=lambda: {"l": nn.Linear(192, 5), "n": nn.BatchNorm1d(5)}
    ),
    "batch_norm of tokens": Case(
        lambda s, x: s.n(s.l(s.a(x).flatten(2))), modules=lambda: {"l": nn.Linear(48, 5), "n": nn.BatchNorm1d(4)}
    ),
    "batch_norm, then a linear layer on tokens": Case(
        lambda s, x: s.l(s.n(F.relu(s.a(x)).flatten(2))),
        modules=lambda: {"l": nn.Linear(48, 5), "n": nn.BatchNorm1d(4)},
    ),
}  # fmt: skip

POOLS = {
    **{
        f"avg_pool{dims}d {name}": Case(body, size=SIZES[dims], modules=modules)
        for dims, module, function in (
            (1, nn.AvgPool1d, F.avg_pool1d), (2, nn.AvgPool2d, F.avg_pool2d), (3, nn.AvgPool3d, F.avg_pool3d),
        )
        for name, body, modules in (
            ("module", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(2)}),
            ("ceil", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(3, 2, 1, True, False)}),
            ("counted", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(3, 2, 1, True)}),
            ("function", lambda s, x, f=function: f(s.a(x), 3, 1), dict),
            ("keywords", lambda s, x, f=function: f(s.a(x), kernel_size=[3], stride=2, padding=1), dict),
        )
    },
    "avg_pool2d divisor": Case(lambda s, x: F.avg_pool2d(s.a(x), (2, 3), divisor_override=5)),
    "avg_pool3d divisor": Case(lambda s, x: F.avg_pool3d(s.a(x), 2, None, 0, False, True, 3), size=SIZES[3]),
    "avg_pool2d uneven": Case(lambda s, x: F.avg_pool2d(s.a(x), (1, 3), (1, 2), (0, 1), count_include_pad=False)),
    **{
        f"adaptive_avg_pool{dims}d {name}": Case(body, size=SIZES[dims], modules=modules)
        for dims, module, function in (
            (1, nn.AdaptiveAvgPool1d, F.adaptive_avg_pool1d), (2, nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d),
            (3, nn.AdaptiveAvgPool3d, F.adaptive_avg_pool3d),
        )
        for name, body, modules in (
            ("one", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(1)}),
            ("odd", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(5)}),
            ("function", lambda s, x, f=function: f(s.a(x), 3), dict),
            ("keyword", lambda s, x, f=function: f(s.a(x), output_size=7), dict),
        )
    },
    "adaptive_avg_pool2d None": Case(lambda s, x: s.p(s.a(x)), modules=lambda: {"p": nn.AdaptiveAvgPool2d((None, 3))}),
    "adaptive_avg_pool2d uneven": Case(lambda s, x: F.adaptive_avg_pool2d(s.a(x), (4, 11))),
}  # fmt: skip

REDUCTIONS = {
    f"{name} {key}": Case(lambda s, x, f=function, b=body: b(f, s.a(x)))
    for name, functions in {
        "mean": (torch.mean, lambda y, *args, **kwargs: y.mean(*args, **kwargs)),
        "sum": (lambda y, *args, **kwargs: y.sum(*args, **kwargs), torch.sum),
    }.items()
    for number, (key, body) in enumerate(
        {
            "one": lambda f, y: f(y, 1),
            "negative": lambda f, y: f(y, -1),
            "several": lambda f, y: f(y, (2, 3)),
            "mixed": lambda f, y: f(y, dim=[-1, 1]),
            "kept": lambda f, y: f(y, (-2, -1), True) + y,
            "keyword": lambda f, y: y + f(y, dim=1, keepdim=True),
            "numpy": lambda f, y: y + f(y, axis=(1, -1), keepdims=True),
            "to nothing": lambda f, y: f(y, (1, 2, 3)).unsqueeze(1),
        }.items()
    )
    for function in (functions[number % 2],)  # what is a function for the mean is a method for the sum
}  # fmt: skip

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

CASES = {**CONVS, **TRANSPOSED, **LINEARS, **NORMS, **POOLS, **REDUCTIONS, **INTERPOLATIONS}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's advice
def test_linear(name: str) -> None:
    check(CASES[name])


REFUSED = {
    "conv": lambda s, x: s.c(s.a(x).transpose(0, 1)).transpose(0, 1),
    "avg_pool": lambda s, x: F.avg_pool2d(s.a(x).transpose(0, 1), 2).transpose(0, 1),
    "adaptive_avg_pool": lambda s, x: F.adaptive_avg_pool2d(s.a(x).transpose(0, 1), 2).transpose(0, 1),
    "interpolate": lambda s, x: F.interpolate(s.a(x).transpose(0, 1), scale_factor=2).transpose(0, 1),
    "batch_norm": lambda s, x: s.n(F.relu(s.a(x)).transpose(0, 1)).transpose(0, 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_batch_axis_is_refused(name: str) -> None:
    net, images = build(Case(REFUSED[name], modules=lambda: {"c": nn.Conv2d(2, 2, 3), "n": nn.BatchNorm2d(2)}))
    with pytest.raises(UnsupportedOpError, match="works on a batch at axis 1, expected axis 0"):
        HeatmapDecoder(net).eval()(images)
