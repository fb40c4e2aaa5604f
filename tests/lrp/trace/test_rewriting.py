"""What is written in other calls computes what torch computes, and its heatmaps are input x gradient."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.lrp.ops.harness import Case, build, check, close, spellings
from tw_seg.errors import TraceError, UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder


def modules():
    return {
        "b": nn.Conv2d(3, 4, 3, padding=1),
        "p": nn.Parameter(torch.zeros(4, 1, 8)),
        "m": nn.Parameter(torch.zeros(8, 5)),
        "v": nn.Parameter(torch.zeros(8)),
        "w": nn.Parameter(torch.zeros(4)),
        "z": nn.Parameter(torch.zeros(4)),
        "e": nn.Parameter(torch.zeros(1)),
        "k": nn.Parameter(torch.zeros(5, 8, 8)),
    }


def half(a, b):
    return (a.detach() * b + a * b.detach()) / 2


def tokens(s, x):
    return s.a(x).flatten(2)[..., :8]


SUMS = spellings(
    "sum",
    lambda s, x: torch.rsub(s.a(x), s.b(x), alpha=0.3),
    lambda s, x: torch.rsub(s.a(x), 2),
    lambda s, x: torch.lerp(s.a(x), s.b(x), 0.3),
    lambda s, x: s.a(x).lerp(s.b(x), s.p),
    lambda s, x: s.a(x).lerp_(s.b(x), 0.7) * 2,
    lambda s, x: torch.addcdiv(s.a(x), s.b(x), s.p + 3, value=0.5),
    modules=modules,
)
PRODUCTS = spellings(
    "product",
    lambda s, x: torch.addmm(s.m[0], s.a(x).mean((1, 2)), s.m),
    lambda s, x: torch.addmm(s.a(x).mean((1, 2))[:, :5], s.a(x).mean((1, 2)), s.m, beta=0.5, alpha=2),
    lambda s, x: torch.baddbmm(tokens(s, x)[..., :5], tokens(s, x), s.m.expand(x.shape[0], 8, 5)),
    lambda s, x: torch.mv(s.a(x).mean((1, 2)), s.v).unsqueeze(1) * s.v,
    lambda s, x: torch.tensordot(s.a(x), s.m, 1),
    lambda s, x: torch.tensordot(s.a(x), s.k[:4], dims=([1, 3], [0, 2])),
    lambda s, x: torch.inner(s.a(x), s.m.t()),
    lambda s, x: s.a(x).inner(s.v),
    modules=modules,
)  # fmt: skip
BILINEAR = Case(
    lambda s, x: F.bilinear(s.a(x), s.b(x), s.k),
    lambda s, x: (F.bilinear(s.a(x).detach(), s.b(x), s.k) + F.bilinear(s.a(x), s.b(x).detach(), s.k)) / 2,
    modules=modules,
)
PLACES = spellings(
    "places",
    lambda s, x: torch.fliplr(s.a(x)),
    lambda s, x: s.a(x).rot90(1, (2, 3)),
    lambda s, x: torch.rot90(s.a(x), 3, [3, 1]),
    lambda s, x: torch.rot90(s.a(x), k=-2, dims=(2, 3)),
    lambda s, x: torch.hstack([s.a(x), s.b(x)]),
    lambda s, x: torch.dstack((s.a(x), s.b(x))),
    lambda s, x: (lambda parts: torch.cat([parts[1], parts[0]], 1))(torch.split_with_sizes(s.a(x), [1, 3], 1)),
    lambda s, x: torch.hsplit(s.a(x), 2)[1],
    lambda s, x: s.a(x).dsplit([2, 3])[0],
    modules=modules,
)
CHOICES = spellings(
    "choice",
    lambda s, x: s.a(x).flatten(2).topk(5).values.mean(2),
    lambda s, x: torch.topk(s.a(x), 2, dim=1, largest=False)[0],
    lambda s, x: s.a(x).sort(dim=3, descending=True)[0],
    lambda s, x: torch.sort(s.a(x), 1).values,
    lambda s, x: s.a(x).kthvalue(3, dim=2).values,
    lambda s, x: torch.median(s.a(x), 3, True)[0],
    lambda s, x: s.a(x).median(dim=1).values,
    lambda s, x: s.a(x).min(dim=1)[0],
    lambda s, x: torch.min(s.a(x), 2, keepdim=True).values,
    lambda s, x: torch.min(s.a(x), s.b(x)),
    lambda s, x: s.a(x).amin((2, 3)),
    lambda s, x: torch.amin(s.a(x), dim=1, keepdim=True),
    lambda s, x: torch.nan_to_num(s.a(x), 1.0),
    lambda s, x: s.a(x).nan_to_num_() * 2,
    lambda s, x: torch.take_along_dim(s.a(x), s.b(x).argsort(1), 1),
    lambda s, x: s.a(x).log_softmax(1),
    lambda s, x: F.log_softmax(s.a(x), dim=-1),
    lambda s, x: torch.special.log_softmax(s.a(x), 1),
    modules=modules,
)
ACTIVATIONS = {
    **spellings(
        "shrink",
        lambda s, x: F.hardshrink(s.a(x), 0.3),
        lambda s, x: F.softshrink(s.a(x), 0.3),
        lambda s, x: F.threshold(s.a(x), 0.1, -0.5),
        lambda s, x: nn.Hardshrink(0.2)(s.a(x)),
    ),
    "softsign": Case(lambda s, x: F.softsign(s.a(x)), lambda s, x: (lambda u: u / (1 + u.detach().abs()))(s.a(x))),
    "tanhshrink": Case(
        lambda s, x: F.tanhshrink(s.a(x)), lambda s, x: (lambda u: u - u * (torch.tanh(u) / u).detach())(s.a(x))
    ),
}


def module_case(module: nn.Module, surrogate=None, size=(2, 3, 6, 8)) -> Case:
    return Case(lambda s, x: s.n(s.a(x)), surrogate, size=size, modules=lambda: {"n": module})


def held_root(p, window):
    def surrogate(s, x):
        u = s.a(x)
        total = F.avg_pool2d(u.pow(p), window) * window**2
        return F.avg_pool2d(u * u.pow(p - 1).detach(), window) * window**2 * total.detach().pow(1 / p - 1)

    return surrogate


def gem(s, x):
    return F.avg_pool2d(s.a(x).clamp(min=1e-6).pow(s.e + 3), (6, 8)).pow(1.0 / (s.e + 3))


def held_gem(s, x):
    u, p = s.a(x).clamp(min=1e-6), s.e + 3
    share = torch.where(s.a(x) > 1e-6, s.a(x), u.detach())  # what is clamped from below is a constant
    mean = F.avg_pool2d(share * u.pow(p - 1).detach(), (6, 8))
    return mean * F.avg_pool2d(u.pow(p), (6, 8)).pow(1 / p - 1).detach()


POOLS = {
    "LPPool2d": module_case(nn.LPPool2d(2, 2), held_root(2, 2)),
    "lp_pool2d": Case(lambda s, x: F.lp_pool2d(s.a(x), 4.0, 2), held_root(4, 2)),
    "GeM": Case(gem, held_gem, modules=modules),
    "LocalResponseNorm": module_case(
        nn.LocalResponseNorm(3, alpha=0.5),
        lambda s, x: (lambda u: u * (F.local_response_norm(u, 3, alpha=0.5) / u).detach())(s.a(x)),
    ),
    "local_response_norm of rows": Case(
        lambda s, x: F.local_response_norm(s.a(x), 2, 0.3, 0.5, 2.0),
        lambda s, x: (lambda u: u * (F.local_response_norm(u, 2, 0.3, 0.5, 2.0) / u).detach())(s.a(x)),
        size=(2, 3, 12),
    ),
    "MaxPool2d with indices": Case(
        lambda s, x: s.n(s.a(x))[0], modules=lambda: {"n": nn.MaxPool2d(2, 1, padding=1, return_indices=True)}
    ),
    "max_pool2d with indices": Case(lambda s, x: F.max_pool2d(s.a(x), 2, return_indices=True)[0]),
    "AdaptiveMaxPool1d with indices": Case(
        lambda s, x: s.n(s.a(x))[0], size=(2, 3, 12), modules=lambda: {"n": nn.AdaptiveMaxPool1d(4, True)}
    ),
    "values at the indices": Case(
        lambda s, x: (lambda pair: pair[0] + s.b(x).flatten(2).gather(2, pair[1].flatten(2)).view_as(pair[0]))(
            F.max_pool2d(s.a(x), 2, return_indices=True)
        ),
        modules=modules,
    ),
}
PADDED = {
    f"padding_mode {mode}": module_case(nn.Conv2d(4, 3, 3, stride=2, padding=(2, 1), padding_mode=mode))
    for mode in ("reflect", "replicate", "circular")
} | {
    "padding_mode of rows": module_case(nn.Conv1d(4, 3, 3, padding="same", padding_mode="reflect"), size=(2, 3, 12)),
    "padding_mode with a norm": Case(
        lambda s, x: s.n(s.c(s.a(x))),
        modules=lambda: {"c": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "n": nn.BatchNorm2d(4)},
    ),
}
NORMS = {
    "SyncBatchNorm": Case(lambda s, x: s.n(s.a(x)), modules=lambda: {"n": nn.SyncBatchNorm(4)}),
    "torch.batch_norm": Case(
        lambda s, x: torch.batch_norm(
            s.a(x), s.w, s.z, x.new_full((4,), 0.3), x.new_full((4,), 1.7), False, 0.1, 1e-3, False
        ),
        modules=modules,
    ),
    "instance_norm": Case(
        lambda s, x: F.instance_norm(s.a(x), weight=s.w, bias=s.z),
        lambda s, x: (lambda u: (u - u.mean((2, 3), True)) / (u.detach().var((2, 3), False, True) + 1e-5).sqrt()
                      * s.w[:, None, None] + s.z[:, None, None])(s.a(x)),
        modules=modules,
    ),
    "torch.instance_norm": Case(
        lambda s, x: torch.instance_norm(s.a(x), None, None, None, None, True, 0.1, 1e-3, False),
        lambda s, x: (
            lambda u: (u - u.mean((2, 3), True)) / (u.detach().var((2, 3), False, True) + 1e-3).sqrt()
        )(s.a(x)),
    ),
}  # fmt: skip
CASES = {
    **SUMS, **PRODUCTS, "bilinear": BILINEAR, **PLACES, **CHOICES, **ACTIVATIONS, **POOLS, **PADDED, **NORMS,
    "logsumexp": Case(lambda s, x: torch.logsumexp(s.a(x), (2, 3))),
    "logsumexp of one axis": Case(lambda s, x: s.a(x).logsumexp(dim=1, keepdim=True)),
    "special.logsumexp": Case(lambda s, x: torch.special.logsumexp(s.a(x), 1)),
    "logsumexp of masked places": Case(lambda s, x: s.a(x).masked_fill(x.detach()[:, :1] > 0, -math.inf)[..., :4]
                                       .flatten(1).logsumexp(1, True)),
    "gather": Case(lambda s, x: s.a(x).gather(1, s.b(x).argsort(1)[:, :2]), modules=modules),
    "torch.gather": Case(lambda s, x: torch.gather(s.a(x), 2, s.b(x).argmax(2, keepdim=True)), modules=modules),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rewritten(name: str) -> None:
    check(CASES[name])


REFUSED = {
    "flipud": lambda s, x: torch.flipud(s.a(x)),
    "vstack": lambda s, x: torch.vstack([s.a(x), s.a(x)]).view(x.shape[0], -1),
    "median over every axis": lambda s, x: s.a(x) - s.a(x).median(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_images_is_refused(name: str) -> None:
    net, images = build(Case(REFUSED[name]))
    with pytest.raises((UnsupportedOpError, TraceError), match="mixes the images|over axes"):
        HeatmapDecoder(net).eval()(images)


def test_a_rule_of_the_user_comes_first() -> None:
    net, images = build(Case(lambda s, x: torch.lerp(s.a(x), s.b(x), 0.25), modules=modules))
    rules = {torch.lerp: lambda c, inputs, output, module: (c * 0, c * 0)}
    assert not HeatmapDecoder(net, custom_rules=rules).eval()(images).heatmaps.any()


@pytest.mark.parametrize(
    "name", ["product 0", "choice 0", "LPPool2d", "LocalResponseNorm", "MaxPool2d with indices", "padding_mode reflect"]
)
def test_it_exports_and_decodes_in_training(name: str) -> None:
    net, images = build(CASES[name])
    decoder = HeatmapDecoder(net).eval()
    found = torch.export.export(decoder, (images,)).module()(images)
    close(found.heatmaps, decoder(images).heatmaps)
    close(decoder.train()(images).logits, net.train()(images))
