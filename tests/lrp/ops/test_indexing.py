"""Calls that take or write parts of a value: heatmaps are input x gradient, in every spelling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.lrp.ops.harness import check, spellings


def shuffle_unit(s, x):
    left, right = s.a(x).chunk(2, dim=1)
    y = torch.cat([left, F.relu(right)], 1)
    n, c, h, w = y.shape
    return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def unused_part(s, x):
    _, middle, last = torch.split(s.a(x), [1, 2, 1], 1)
    return middle + last


PARTS = {
    **spellings(
        "split",
        shuffle_unit,
        unused_part,
        lambda s, x: torch.chunk(s.a(x), 3, 1)[1],
        lambda s, x: (lambda p: p[0] * 2 - p[1])(torch.chunk(input=s.a(x), chunks=2, dim=-1)),
        lambda s, x: s.a(x).chunk(chunks=2, dim=2)[-1],
        lambda s, x: torch.split(s.a(x), 3, dim=-1)[2],
        lambda s, x: (lambda p: p[0] + p[1])(s.a(x).split(2, 1)),
        lambda s, x: s.a(x).split([2, 6], dim=-1)[1],
        lambda s, x: s.a(x).split(split_size=4, dim=3)[0],
        lambda s, x: torch.split(s.a(x), split_size_or_sections=[1, 5], dim=2)[1],
        lambda s, x: s.a(x).split_with_sizes([1, 3], 1)[0],
        lambda s, x: torch.tensor_split(s.a(x), 3, dim=2)[1],
        lambda s, x: s.a(x).tensor_split((2, 5), 3)[1],
        lambda s, x: (lambda p: F.relu(p[1]) - p[2])(s.a(x).transpose(0, 1).chunk(4)).transpose(0, 1),
    ),
    **spellings(
        "unbind",
        lambda s, x: torch.unbind(s.a(x), 1)[2],
        lambda s, x: (lambda p: p[0] - p[-1] * 2)(s.a(x).unbind(dim=-1)),
        lambda s, x: (lambda p: F.relu(p[0]) + p[3])(s.a(x).transpose(0, 1).unbind()),
        lambda s, x: (lambda p: torch.cat([p[3], p[1]], 1))(torch.unbind(input=s.a(x), dim=1)),
    ),
}


INDICES = {
    **spellings(
        "getitem",
        lambda s, x: s.a(x)[:, 1:3],
        lambda s, x: s.a(x)[:, 1],
        lambda s, x: s.a(x)[:, -1, ::2],
        lambda s, x: s.a(x)[..., 1::3],
        lambda s, x: s.a(x)[..., -2],
        lambda s, x: s.a(x)[:, None, :, 2:-1],
        lambda s, x: s.a(x)[None].squeeze(0),
        lambda s, x: s.a(x)[:, :, None, ..., None, 0],
        lambda s, x: s.a(x)[:],
        lambda s, x: s.a(x)[:, torch.tensor([2, 0, 2])],
        lambda s, x: s.a(x)[:, [1, 3, 1, 1]],
        lambda s, x: s.a(x)[..., torch.tensor([[0, 5], [7, 0]])],
        lambda s, x: s.a(x)[:, :, s.index],
        lambda s, x: s.a(x)[:, :, s.index, s.index],
        lambda s, x: s.a(x)[:, 0, :, s.index],
        lambda s, x: s.a(x)[:, :, torch.tensor([[1], [2]]), torch.tensor([3, 4, 4])],
        lambda s, x: s.a(x)[:, torch.tensor([True, False, True, True])],
        lambda s, x: F.relu(s.a(x).permute(1, 2, 0, 3)[1]).transpose(0, 1),
        lambda s, x: F.relu(s.a(x).permute(1, 2, 0, 3)[1:3, -1]).transpose(0, 1),
        lambda s, x: F.relu(s.a(x).permute(1, 2, 0, 3)[..., 2:5]).permute(2, 0, 1, 3),
        lambda s, x: F.relu(s.a(x).permute(1, 2, 0, 3)[s.index]).permute(2, 0, 1, 3),
        lambda s, x: s.a(x)[:, : x.shape[1], 1 : x.shape[2] // 2],
        modules=lambda: {"index": nn.Buffer(torch.tensor([1, 3, 3]))},
    ),
    **spellings(
        "select",
        lambda s, x: s.a(x).select(1, 2),
        lambda s, x: s.a(x).select(dim=-1, index=-3),
        lambda s, x: torch.select(s.a(x), 2, 1),
        lambda s, x: F.relu(s.a(x).transpose(0, 1).select(0, 1)),
    ),
    **spellings(
        "narrow",
        lambda s, x: s.a(x).narrow(1, 1, 2),
        lambda s, x: s.a(x).narrow(dim=-1, start=2, length=5),
        lambda s, x: torch.narrow(s.a(x), 2, 0, 3),
        lambda s, x: s.a(x).narrow(3, -3, 2),
    ),
    **spellings(
        "index_select",
        lambda s, x: torch.index_select(s.a(x), 1, s.index),
        lambda s, x: s.a(x).index_select(-1, s.index),
        lambda s, x: s.a(x).index_select(dim=2, index=torch.tensor([5, 0])),
        modules=lambda: {"index": nn.Buffer(torch.tensor([1, 3, 3]))},
    ),
}


def rewritten(s, x):
    y = s.a(x)
    y[:, 1:3, 2:] = y[:, 1:3, 2:] * 2 + 1
    y[..., 0] = 0
    return y


def filled(s, x):
    y = s.a(x)
    z = y.new_zeros(y.shape)
    z[:, :, :4] = y[:, :, 2:]
    z[:, :2, 4:] = y[:, 2:3, :2]
    return z


def halves(s, x):
    z = x.new_zeros((x.shape[0], 8, 6, 8))
    z[:, :4] = s.a(x)
    z[:, 4:] = F.relu(s.b(x))
    return z


def constant_part(s, x):
    y = s.a(x)
    y[:, 1] = 0.5
    y[..., ::2] = 0
    return F.relu(y)


def from_itself(s, x):
    y = s.a(x)
    y[..., 0] = y[..., 1] * 2
    return F.relu(y)


def parameter_part(s, x):
    y = s.a(x)
    y[:, 2:, :, 1] = s.p.t()
    return F.relu(y)


def pooled_part(s, x):
    y, z = s.a(x), s.b(x)
    y[:, [0, 2]] = z.mean((2, 3), keepdim=True)[:, 1:2]
    y[:, 3] = z.mean(1)
    return y


WRITES = {
    **spellings(
        "setitem", rewritten, filled, halves, constant_part, from_itself, parameter_part, pooled_part,
        modules=lambda: {"b": nn.Conv2d(3, 4, 3, padding=1), "p": nn.Parameter(torch.zeros(6, 1))},
    ),
}  # fmt: skip


def masks():
    generator = torch.Generator().manual_seed(3)
    return {
        "b": nn.Conv2d(3, 4, 3, padding=1),
        "m": nn.Buffer(torch.rand(6, 8, generator=generator) < 0.5),
        "p": nn.Parameter(torch.zeros(4, 1, 8)),
    }


MASKS = {
    **spellings(
        "masked_fill",
        lambda s, x: s.a(x).masked_fill(s.m, 0.0),
        lambda s, x: s.a(x).masked_fill(mask=s.m, value=1.5),
        lambda s, x: torch.masked_fill(s.a(x), ~s.m, -2),
        lambda s, x: s.a(x).masked_fill_(s.m, 0.5),
        lambda s, x: s.a(x).masked_fill(s.b(x) > 0, 0.3),
        lambda s, x: s.a(x).masked_fill(s.m, float("-inf")).amax((2, 3)),
        modules=masks,
    ),
    **spellings(
        "where",
        lambda s, x: torch.where(s.m, s.a(x), s.b(x)),
        lambda s, x: torch.where(s.m, s.a(x), 0.3),
        lambda s, x: torch.where(s.m, s.p, s.a(x)),
        lambda s, x: torch.where(s.b(x) > 0, s.a(x), s.b(x)),
        lambda s, x: torch.where(condition=s.a(x) > 0, input=s.a(x), other=0.1 * s.a(x)),
        lambda s, x: torch.where(s.m, s.a(x).mean((2, 3), keepdim=True), s.b(x)),
        lambda s, x: s.a(x).where(s.m, s.b(x)),
        modules=masks,
    ),
}

CASES = {**PARTS, **INDICES, **WRITES, **MASKS}


@pytest.mark.parametrize("name", CASES)
def test_indexing(name: str) -> None:
    check(CASES[name])
