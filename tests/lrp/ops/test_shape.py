"""Calls that move values: coefficients move back, also where the batch lies on another axis or holds windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.lrp.ops.harness import SIZES, Case, build, check, close, spellings
from tests.oracles.gradients import input_x_gradient
from tw_seg.lrp import HeatmapDecoder

SHAPES = {
    **spellings(
        "reshape",
        lambda s, x: F.relu(s.a(x).flatten(1)),
        lambda s, x: torch.flatten(s.a(x), 2),
        lambda s, x: torch.flatten(input=s.a(x), start_dim=1, end_dim=-2),
        lambda s, x: s.f(s.a(x)),
        lambda s, x: s.u(s.a(x)),
        lambda s, x: torch.reshape(s.a(x), (x.shape[0], 2, -1)),
        lambda s, x: s.a(x).reshape(x.size(0), -1),
        lambda s, x: s.a(x).reshape((-1, 24, 8)),
        lambda s, x: s.a(x).view(x.size()[0], 8, 24),
        lambda s, x: s.a(x).view([-1, 2, 2, 48]),
        lambda s, x: s.a(x).flatten(1).view_as(s.a(x)),
        lambda s, x: s.a(x).flatten(1).reshape_as(s.a(x)),
        lambda s, x: s.a(x).unflatten(1, (2, -1)).flatten(2),
        lambda s, x: torch.unflatten(s.a(x), 3, (2, 4)),
        modules=lambda: {"f": nn.Flatten(), "u": nn.Unflatten(1, (2, 2))},
    ),
    **spellings(
        "squeeze",
        lambda s, x: s.a(x).mean((2, 3), True).squeeze(),
        lambda s, x: s.a(x).mean((2, 3), True).squeeze(-1).squeeze(dim=2),
        lambda s, x: torch.squeeze(s.a(x).mean((2, 3), True), (2, 3)),
        lambda s, x: torch.squeeze(s.a(x).mean(2, True), 2),
        lambda s, x: torch.squeeze(s.a(x)).squeeze(1),
        lambda s, x: s.a(x).mean(3, True).permute(3, 0, 1, 2).squeeze(0),
        lambda s, x: s.a(x).mean((1, 3), True).permute(3, 1, 0, 2).squeeze(),
    ),
    **spellings(
        "unsqueeze",
        lambda s, x: s.a(x).unsqueeze(1),
        lambda s, x: s.a(x).unsqueeze(-1),
        lambda s, x: torch.unsqueeze(s.a(x), dim=-2),
        lambda s, x: torch.unsqueeze(s.a(x), 0).squeeze(0),
        lambda s, x: F.relu(s.a(x).unsqueeze(0).unsqueeze(-5)).squeeze(1).squeeze(0),
    ),
    **spellings(
        "identity",
        lambda s, x: s.i(s.a(x)).contiguous(),
        lambda s, x: torch.clone(s.a(x)).contiguous(memory_format=torch.channels_last),
        lambda s, x: s.a(x).clone(),
        modules=lambda: {"i": nn.Identity()},
    ),
    **spellings(
        "cast",
        lambda s, x: s.a(x).to(torch.float64),
        lambda s, x: s.a(x).to(x.device),
        lambda s, x: s.a(x).to(x.dtype),
        lambda s, x: s.a(x).type_as(x),
        lambda s, x: s.a(x).type(x.dtype),
        lambda s, x: s.a(x).double(),
    ),
}
ORDERS = {
    **spellings(
        "permute",
        lambda s, x: s.a(x).permute(0, 2, 3, 1),
        lambda s, x: s.a(x).permute((0, -1, 1, 2)),
        lambda s, x: s.a(x).permute(dims=(0, 2, 1, 3)),
        lambda s, x: torch.permute(s.a(x), (0, 3, 1, 2)),
        lambda s, x: torch.permute(input=s.a(x), dims=(0, 3, 1, 2)),
        lambda s, x: F.relu(s.a(x).permute(3, 1, 0, 2)).permute(2, 0, 1, 3),
    ),
    **spellings(
        "transpose",
        lambda s, x: s.a(x).transpose(1, 2),
        lambda s, x: s.a(x).transpose(dim0=-1, dim1=1),
        lambda s, x: torch.transpose(s.a(x), 1, -2),
        lambda s, x: s.a(x).swapaxes(1, 3),
        lambda s, x: s.a(x).swapdims(2, 3),
        lambda s, x: torch.swapaxes(s.a(x), 1, 2),
        lambda s, x: F.relu(s.a(x).flatten(1).t()).t(),
        lambda s, x: F.relu(s.a(x).transpose(0, 1)).transpose(0, 1),
    ),
    **spellings(
        "movedim",
        lambda s, x: s.a(x).movedim(1, -1),
        lambda s, x: s.a(x).movedim((1, 2), (3, 1)),
        lambda s, x: torch.movedim(s.a(x), (2, 1), (-1, -2)),
        lambda s, x: torch.movedim(s.a(x), source=1, destination=2),
        lambda s, x: F.relu(torch.movedim(s.a(x), 0, 2)).movedim(2, 0),
        lambda s, x: F.relu(torch.movedim(s.a(x), 2, 0)).movedim(1, 0),
    ),
    **spellings(
        "roll",
        lambda s, x: s.a(x).roll(2, -1),
        lambda s, x: torch.roll(s.a(x), (1, -2), (2, 3)),
        lambda s, x: torch.roll(s.a(x), shifts=(-1, 3), dims=(-2, 1)),
        lambda s, x: s.a(x).roll(shifts=-3, dims=2),
    ),
    **spellings(
        "flip", lambda s, x: s.a(x).flip(-1), lambda s, x: torch.flip(s.a(x), (1, 2)), lambda s, x: s.a(x).flip(1, -2),
        lambda s, x: torch.flip(s.a(x), dims=[3]),
    ),
}  # fmt: skip
COPIES = {
    **spellings(
        "expand",
        lambda s, x: s.a(x).mean((2, 3), True).expand(-1, -1, 3, 2),
        lambda s, x: s.a(x).mean(1, True).expand((x.size(0), 4, 6, 8)),
        lambda s, x: s.a(x).mean(1, True).expand(size=(-1, 2, -1, -1)),
        lambda s, x: s.a(x).mean((2, 3), True).expand_as(s.a(x)),
        lambda s, x: F.relu(s.a(x).expand(3, -1, -1, -1, -1)).transpose(0, 1),
    ),
    **spellings(
        "repeat",
        lambda s, x: s.a(x).repeat(1, 1, 2, 3),
        lambda s, x: s.a(x).repeat((1, 3, 1, 1)),
        lambda s, x: F.relu(s.a(x).repeat(2, 1, 1, 1, 2)).movedim(1, 0),
    ),
    **spellings(
        "repeat_interleave",
        lambda s, x: s.a(x).repeat_interleave(2, 1),
        lambda s, x: s.a(x).repeat_interleave(3, dim=-1),
        lambda s, x: torch.repeat_interleave(s.a(x), 2, dim=2),
        lambda s, x: torch.repeat_interleave(s.a(x), repeats=2, dim=-3),
        lambda s, x: F.relu(s.a(x).repeat_interleave(2, 0)).view(x.size(0), -1),  # rows of an image stay together
    ),
}
PADS = {
    **spellings(
        "pad",
        lambda s, x: F.pad(s.a(x), (1, 2)),
        lambda s, x: F.pad(s.a(x), [0, 1, 2, 0, 1, 1], value=0.7),
        lambda s, x: F.pad(s.a(x), (1, 0, 0, 3), "constant", -2.0),
        lambda s, x: F.pad(s.a(x), (-1, 2, 0, -2)),
        lambda s, x: F.pad(input=s.a(x), pad=(2, 1, 1, 3), mode="reflect"),
        lambda s, x: F.pad(s.a(x), (3, 0, 0, 2), mode="replicate"),
        lambda s, x: F.pad(s.a(x), (1, 2, 3, 1), mode="circular"),
        lambda s, x: F.pad(s.a(x), (0, 0, 1, 1), mode="constant", value=None),
        lambda s, x: F.relu(F.pad(s.a(x).permute(1, 2, 0, 3), (0, 0, 0, 0, 1, 2), value=0.3)).permute(2, 0, 1, 3),
    ),
    **{
        f"pad{dims}d {mode}": Case(lambda s, x, m=mode, p=pad: F.pad(s.a(x), p, mode=m), size=SIZES[dims])
        for dims, pad in ((1, (2, 1)), (3, (1, 2, 0, 3, 1, 1)))
        for mode in ("constant", "reflect", "replicate", "circular")
    },
    **{
        f"pad module {dims}d {number}": Case(lambda s, x: s.p(s.a(x)), size=SIZES[dims], modules=make)
        for dims, makes in {
            1: (
                lambda: {"p": nn.ZeroPad1d((1, 2))}, lambda: {"p": nn.ConstantPad1d(2, 0.5)},
                lambda: {"p": nn.ReflectionPad1d((0, 3))}, lambda: {"p": nn.ReplicationPad1d(2)},
                lambda: {"p": nn.CircularPad1d((1, 2))},
            ),
            2: (
                lambda: {"p": nn.ZeroPad2d(1)}, lambda: {"p": nn.ZeroPad2d((0, 1, 2, -1))},
                lambda: {"p": nn.ConstantPad2d((1, 2, 0, 1), -1.5)}, lambda: {"p": nn.ReflectionPad2d((1, 2, 3, 0))},
                lambda: {"p": nn.ReplicationPad2d(2)}, lambda: {"p": nn.CircularPad2d(2)},
            ),
            3: (
                lambda: {"p": nn.ZeroPad3d(1)}, lambda: {"p": nn.ConstantPad3d(1, 0.5)},
                lambda: {"p": nn.ReflectionPad3d((1, 2, 0, 1, 2, 1))}, lambda: {"p": nn.ReplicationPad3d(1)},
                lambda: {"p": nn.CircularPad3d(1)},
            ),
        }.items()
        for number, make in enumerate(makes)
    },
}  # fmt: skip


def constant(s, x):
    return s.p.expand(x.size(0), -1, -1, -1)


def class_token(s, x):
    y = s.a(x).flatten(2).transpose(1, 2)
    return torch.cat((s.t.expand(x.shape[0], -1, -1), y), dim=1)


JOINS = {
    **spellings(
        "cat",
        lambda s, x: torch.cat([s.a(x), s.b(x), s.a(x).relu()], 1),
        lambda s, x: torch.cat((s.a(x), s.b(x)), dim=-1),
        lambda s, x: torch.cat(tensors=(s.a(x), constant(s, x)), dim=2),
        lambda s, x: torch.cat([constant(s, x), s.a(x), constant(s, x)], axis=1),
        lambda s, x: torch.concat([s.a(x), x], 1),
        lambda s, x: torch.concatenate([x, s.a(x)], dim=-3),
        lambda s, x: (lambda y: torch.cat([y, y], 1))(s.a(x)),
        lambda s, x: F.relu(torch.cat([s.a(x).transpose(0, 1), s.b(x).transpose(0, 1)])).transpose(0, 1),
        class_token,
        modules=lambda: {
            "b": nn.Conv2d(3, 4, 3, padding=1), "p": nn.Parameter(torch.zeros(1, 4, 6, 8)),
            "t": nn.Parameter(torch.zeros(1, 1, 4)),
        },
    ),
    **spellings(
        "stack",
        lambda s, x: torch.stack([s.a(x), s.b(x)], 1),
        lambda s, x: torch.stack((s.a(x), s.b(x), s.a(x)), dim=-1),
        lambda s, x: torch.stack(tensors=[s.a(x), s.b(x)], dim=2).sum(2),
        lambda s, x: F.relu(torch.stack([s.a(x), s.b(x)])).mean(0),
        lambda s, x: torch.stack([s.a(x), constant(s, x)], 1),
        modules=lambda: {"b": nn.Conv2d(3, 4, 3, padding=1), "p": nn.Parameter(torch.zeros(1, 4, 6, 8))},
    ),
}  # fmt: skip


GRIDS = {
    **spellings(
        "pixel_shuffle", lambda s, x: s.p(s.a(x)), lambda s, x: F.pixel_shuffle(s.a(x), 2),
        lambda s, x: F.pixel_shuffle(s.a(x), upscale_factor=2), modules=lambda: {"p": nn.PixelShuffle(2)},
    ),
    **spellings(
        "pixel_unshuffle", lambda s, x: s.p(s.a(x)), lambda s, x: F.pixel_unshuffle(s.a(x), 2),
        modules=lambda: {"p": nn.PixelUnshuffle(2)},
    ),
    **spellings(
        "channel_shuffle", lambda s, x: s.p(s.c(x)), lambda s, x: F.channel_shuffle(s.c(x), 2),
        lambda s, x: F.channel_shuffle(s.c(x), groups=3),
        modules=lambda: {"p": nn.ChannelShuffle(3), "c": nn.Conv2d(3, 6, 1)},
    ),
    **spellings(
        "unfold", lambda s, x: s.u(s.a(x)), lambda s, x: F.unfold(s.a(x), 3, 1, 1, 2),
        lambda s, x: F.unfold(s.a(x), kernel_size=(2, 3), dilation=2, stride=(1, 2)),
        lambda s, x: s.v(s.a(x)),
        modules=lambda: {"u": nn.Unfold(2, stride=2), "v": nn.Unfold((3, 2), 1, (1, 0), 1)},
    ),
    **spellings(
        "windows", lambda s, x: s.a(x).unfold(2, 3, 2), lambda s, x: s.a(x).unfold(dimension=-1, size=4, step=3),
        lambda s, x: s.a(x).unfold(2, 2, 2).unfold(3, 4, 4).permute(0, 1, 4, 2, 3, 5),
        lambda s, x: F.relu(s.a(x).permute(1, 2, 0, 3).unfold(1, 3, 3)).permute(2, 0, 1, 3, 4),
    ),
    **spellings(
        "fold", lambda s, x: s.f(s.u(s.a(x))), lambda s, x: F.fold(s.u(s.a(x)), (6, 8), 2, 1, 0, 2),
        lambda s, x: F.fold(F.unfold(s.a(x), 3, padding=1), output_size=(6, 8), kernel_size=3, padding=1),
        modules=lambda: {"u": nn.Unfold(2, stride=2), "f": nn.Fold((6, 8), 2, stride=2)},
    ),
}  # fmt: skip


def split_heads(s, x):
    n = x.shape[0]
    qkv = s.a(x).flatten(2).transpose(1, 2).reshape(n, 48, 2, 1, 2).permute(2, 0, 3, 1, 4)
    q, k = qkv.unbind(0)
    return F.relu(q) - k


def split_heads_by_index(s, x):
    qkv = s.a(x).reshape(x.shape[0], 2, 2, 48).permute(1, 0, 2, 3)
    q, k = qkv[0], qkv[1]
    return F.relu(q) - k


def swin_windows(s, x):
    """Swin: shift, windows into the batch, there a linear layer, and back."""
    n, c, h, w = s.a(x).shape
    y = torch.roll(s.a(x).permute(0, 2, 3, 1), (-1, -1), (1, 2))
    windows = y.view(n, h // 3, 3, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 12, c)
    windows = F.relu(s.l(windows))
    y = windows.view(n, h // 3, w // 4, 3, 4, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, -1)
    return torch.roll(y, (1, 1), (1, 2))


def windows_first(s, x):
    """MaxViT: windows before the images cannot be joined; the heads are behind."""
    y = s.a(x).reshape(-1, 4, 2, 3, 2, 4).permute(0, 2, 4, 1, 3, 5)
    y = F.relu(y.flatten(0, 2)).reshape(-1, 2, 2, 4, 3, 4)
    return y.permute(0, 3, 1, 4, 2, 5).reshape(x.size(0), 4, 6, 8)


def windows_with_a_bias(s, x):
    """A parameter for each window meets windows in the batch."""
    y = s.a(x).reshape(x.size(0), 4, 2, 3, 8).transpose(1, 2).flatten(0, 1)
    y = F.relu(y.view(x.size(0), 2, 4, 3, 8) + s.w).view(-1, 4, 3, 8)
    return y.view(x.size(0), 2, 4, 3, 8)


def channels_in_the_batch(s, x):
    """One channel of each image is one row: a depthwise convolution of all."""
    y = s.a(x).view(-1, 1, 6, 8)
    return F.relu(s.c(y)).view(x.size(0), -1, 6, 8)


def group_convolution(s, x):
    """MaxPool over groups with the batch on another axis, and a broadcast against it."""
    y = s.a(x).transpose(0, 1)
    return F.relu(y + s.p).transpose(0, 1)


BATCHES = {
    f.__name__.replace("_", " "): Case(
        f,
        modules=lambda: {
            "l": nn.Linear(4, 3), "w": nn.Parameter(torch.zeros(2, 4, 3, 8)), "c": nn.Conv2d(1, 2, 3),
            "p": nn.Parameter(torch.zeros(4, 1, 6, 1)),
        },
    )
    for f in (
        split_heads, split_heads_by_index, swin_windows, windows_first, windows_with_a_bias, channels_in_the_batch,
        group_convolution,
    )
}  # fmt: skip

CASES = {**SHAPES, **ORDERS, **COPIES, **PADS, **JOINS, **GRIDS, **BATCHES}


CASTS = {
    "float": Case(lambda s, x: s.a(x).float().double()),
    "half": Case(lambda s, x: s.a(x).half().to(x.dtype)),
    "bfloat16": Case(lambda s, x: s.a(x).bfloat16().type_as(x)),
}


@pytest.mark.parametrize("name", CASTS)
def test_casts_round_relevance_only(name: str) -> None:
    """Coefficients return in the precision of the value that was cast."""
    net, images = build(CASTS[name])
    tape, kept = HeatmapDecoder(net).eval().coefficients(images)
    assert kept["a"].dtype == torch.float64 == tape.values["a"].dtype
    rounding = {"float": 1e-6, "half": 1e-2, "bfloat16": 1e-1}[name]
    close(HeatmapDecoder(net).eval()(images).heatmaps, input_x_gradient(net, images), rounding)


@pytest.mark.parametrize("name", CASES)
def test_shape(name: str) -> None:
    check(CASES[name])
