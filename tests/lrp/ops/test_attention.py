"""Softmax, products of matrices and whole attention layers: as AttnLRP has them."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.lrp.ops.harness import Case, build, check, close, spellings
from tests.oracles.gradients import input_x_gradient
from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder


def product(*factors: Tensor, by=torch.matmul) -> Tensor:
    """A product whose relevance is shared equally among its factors."""
    parts = [by(*(f if i == j else f.detach() for j, f in enumerate(factors))) for i in range(len(factors))]
    return sum(parts) / len(parts)


def einsum(equation: str):
    return lambda *factors: product(*factors, by=lambda *f: torch.einsum(equation, *f))


def branches():
    return {
        "b": nn.Conv2d(3, 4, 3, padding=1), "v": nn.Conv2d(3, 4, 3, padding=1), "m": nn.Parameter(torch.zeros(8, 5)),
        "l": nn.Parameter(torch.zeros(4, 3, 6)), "f": nn.Parameter(torch.zeros(4, 3)), "s": nn.Softmax(dim=-1),
        "n": nn.Parameter(torch.zeros(3, 4)),
    }  # fmt: skip


SOFTMAX = spellings(
    "softmax",
    lambda s, x: s.s(s.a(x)),
    lambda s, x: F.softmax(s.a(x), 1),
    lambda s, x: F.softmax(s.a(x), dim=-2, dtype=torch.float64),
    lambda s, x: torch.softmax(s.a(x), dim=1),
    lambda s, x: torch.softmax(input=s.a(x), dim=2),
    lambda s, x: s.a(x).softmax(-1),
    lambda s, x: s.a(x).permute(1, 2, 0, 3).softmax(dim=0).permute(2, 0, 1, 3),
    modules=branches,
)
MATMUL = {
    **spellings(
        "matmul",
        lambda s, x: s.a(x) @ s.b(x).transpose(-2, -1),
        lambda s, x: torch.matmul(s.a(x), s.b(x).mT),
        lambda s, x: torch.matmul(input=s.a(x), other=s.b(x).transpose(2, 3)),
        lambda s, x: s.a(x).matmul(s.b(x).transpose(-1, -2)),
        lambda s, x: torch.bmm(s.a(x).flatten(0, 1), s.b(x).flatten(0, 1).transpose(1, 2)).view(-1, 4, 6, 6),
        lambda s, x: s.a(x).flatten(0, 1).bmm(s.b(x).flatten(0, 1).transpose(1, 2)).unflatten(0, (-1, 4)),
        lambda s, x: (s.a(x).transpose(0, 1) @ s.b(x).permute(1, 0, 3, 2)).transpose(0, 1),
        surrogate=lambda s, x: product(s.a(x), s.b(x).transpose(-2, -1)),
        modules=branches,
    ),
    **spellings(
        "matmul with a constant",
        lambda s, x: s.a(x) @ s.m,
        lambda s, x: operator.matmul(s.l, s.a(x)),
        lambda s, x: torch.matmul(s.l, s.a(x)),
        lambda s, x: torch.matmul(s.a(x).permute(1, 2, 0, 3).transpose(0, 2).transpose(1, 2), s.m),
        lambda s, x: s.a(x).mean((2, 3)) @ s.f,
        lambda s, x: torch.mm(s.a(x).mean((2, 3)), s.f),
        lambda s, x: s.a(x).mean((2, 3)).mm(s.f),
        lambda s, x: (s.n @ s.a(x).mean((2, 3)).t()).T,
        modules=branches,
    ),
    "matmul of one with itself": Case(
        lambda s, x: (lambda y: y @ y.transpose(-2, -1))(s.a(x)),
        lambda s, x: (lambda y: product(y, y.transpose(-2, -1)))(s.a(x)),
    ),
    "matmul that broadcasts": Case(
        lambda s, x: s.a(x).mean(1, keepdim=True) @ s.b(x).transpose(-2, -1),
        lambda s, x: product(s.a(x).mean(1, keepdim=True), s.b(x).transpose(-2, -1)), modules=branches,
    ),
}  # fmt: skip
EINSUM = {
    **spellings(
        "einsum",
        lambda s, x: torch.einsum("bhid,bhjd->bhij", s.a(x), s.b(x)),
        lambda s, x: torch.einsum("b h i d, b h j d -> b h i j", [s.a(x), s.b(x)]),
        lambda s, x: torch.einsum("...id,...jd->...ij", s.a(x), s.b(x)),
        lambda s, x: torch.einsum("hbid,bhjd->bhij", s.a(x).transpose(0, 1), s.b(x)),
        lambda s, x: torch.einsum("hbid,hb...d->bhi...", s.a(x).transpose(0, 1), s.b(x).transpose(0, 1)),
        surrogate=lambda s, x: einsum("bhid,bhjd->bhij")(s.a(x), s.b(x)),
        modules=branches,
    ),
    **spellings(
        "einsum with a constant",
        lambda s, x: torch.einsum("nchw,wk->nchk", s.a(x), s.m),
        lambda s, x: torch.einsum("wk,nchw->nk", s.m, s.a(x)),
        lambda s, x: torch.einsum("nchw,ck,wj->nkhj", s.a(x), s.f, s.m),
        lambda s, x: torch.einsum("nchw->nwc", s.a(x)),
        lambda s, x: torch.einsum("nchw->nwhc", s.a(x)),
        lambda s, x: torch.einsum("...w,wk", s.a(x), s.m),
        lambda s, x: torch.einsum("achw,wk", s.a(x), s.m),
        lambda s, x: torch.einsum("nchw,nch->ncw", s.a(x), x.new_ones((x.size(0), 4, 6)).cumsum(0)),
        modules=branches,
    ),
    "einsum that sums by itself": Case(
        lambda s, x: torch.einsum("nchw,ndij->nch", s.a(x), s.b(x)),
        lambda s, x: einsum("nchw,ndij->nch")(s.a(x), s.b(x)), modules=branches,
    ),
    "einsum of three": Case(
        lambda s, x: torch.einsum("nchw,ncjw,ncjk->nchk", s.a(x), s.b(x), s.v(x)),
        lambda s, x: einsum("nchw,ncjw,ncjk->nchk")(s.a(x), s.b(x), s.v(x)), modules=branches,
    ),
    "einsum of one with itself": Case(
        lambda s, x: (lambda y: torch.einsum("nchw,ncjw->nchj", y, y))(s.a(x)),
        lambda s, x: (lambda y: einsum("nchw,ncjw->nchj")(y, y))(s.a(x)),
    ),
}  # fmt: skip


def layers():
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(12, 12, generator=generator) < 0.4
    return {
        "p": nn.Conv2d(3, 6, 2, 2), "qkv": nn.Linear(6, 18), "o": nn.Linear(6, 6), "norm": nn.LayerNorm(6),
        "scale": nn.Parameter(torch.zeros(2, 1, 1)), "mask": nn.Buffer(mask.fill_diagonal_(False)),
        "table": nn.Parameter(torch.zeros(23, 2)), "token": nn.Parameter(torch.zeros(1, 1, 6)),
        "place": nn.Buffer(torch.arange(12)[:, None] - torch.arange(12)[None] + 11),
    }  # fmt: skip


def tokens(s, x):
    return s.p(x).flatten(2).transpose(1, 2)


def heads(s, y):
    """Queries, keys and values (N, heads, L, D): the batch is axis 1 on the way."""
    return s.qkv(y).reshape(y.shape[0], -1, 3, 2, 3).permute(2, 0, 3, 1, 4)


def joined(s, y):
    return s.o(y.transpose(1, 2).reshape(y.shape[0], -1, 6))


def attend(multiply, change=lambda s, scores: scores, norm=False):
    """A layer of attention with some way to multiply, and some change of its scores."""

    def layer(s, x):
        y = tokens(s, x)
        q, k, v = heads(s, y).unbind(0)
        if norm:
            q, k = (t / t.norm(dim=-1, keepdim=True) for t in (q, k))
        scores = change(s, multiply(q * 3**-0.5, k.transpose(-2, -1)))
        return y + joined(s, multiply(scores.softmax(dim=-1), v))

    return layer


def attend_detached(change=lambda s, scores: scores):
    def layer(s, x):
        y = tokens(s, x)
        q, k, v = heads(s, y).unbind(0)
        q, k = (t / t.detach().norm(dim=-1, keepdim=True) for t in (q, k))
        scores = change(s, product(q * 3**-0.5, k.transpose(-2, -1)))
        return y + joined(s, product(scores.softmax(dim=-1), v))

    return layer


def by_index(s, x):
    y = tokens(s, x)
    qkv = heads(s, y)
    q, k, v = qkv[0], qkv[1], qkv[2]
    return y + joined(s, ((q * 3**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v)


def by_chunk(s, x):
    y = tokens(s, x)
    n, length, _ = y.shape
    q, k, v = (t.view(n, length, 2, 3).transpose(1, 2) for t in s.qkv(y).chunk(3, dim=-1))
    return y + joined(s, torch.softmax(q @ k.mT / 3**0.5, -1) @ v)


def by_einsum(s, x):
    y = tokens(s, x)
    q, k, v = s.qkv(y).view(x.shape[0], -1, 3, 2, 3).unbind(2)
    share = torch.einsum("bihd,bjhd->bhij", q, k).mul(3**-0.5).softmax(-1)
    return y + s.o(torch.einsum("bhij,bjhd->bihd", share, v).flatten(2))


def by_function(s, x):
    y = tokens(s, x)
    q, k, v = heads(s, y).unbind(0)
    return y + joined(s, F.scaled_dot_product_attention(q, k, v))


def linear_attention(multiply):
    def layer(s, x):
        y = tokens(s, x)
        q, k, v = heads(s, y).unbind(0)
        return joined(s, multiply(q.softmax(-1), multiply(k.softmax(dim=-2).transpose(-2, -1), v)))

    return layer


def masked(s, scores):
    return scores.masked_fill(s.mask, float("-inf"))


def minus_infinity(s, scores):
    return scores + torch.zeros_like(s.place, dtype=scores.dtype).masked_fill(s.mask, float("-inf"))


def biased(s, scores):
    return scores + s.table[s.place.view(-1)].view(12, 12, 2).permute(2, 0, 1).contiguous().unsqueeze(0)


def learned_scale(s, scores):
    return scores * s.scale.clamp(max=4.6).exp()


def talking_heads(s, scores):
    return torch.einsum("nhij,hk->nkij", scores, s.scale.squeeze(-1).expand(-1, 2))


def class_token_attention(multiply):
    """CaiT: only the class token asks."""

    def layer(s, x):
        y = torch.cat([s.token.expand(x.shape[0], -1, -1), tokens(s, x)], 1)
        q, k, v = heads(s, y).unbind(0)
        share = multiply(q[:, :, :1], k.transpose(-2, -1)).softmax(-1)
        return multiply(share, v).transpose(1, 2).reshape(x.shape[0], -1)

    return layer


def window_attention(multiply):
    """Swin: windows in the batch, shifted, with a mask for each window."""

    def layer(s, x):
        y = torch.roll(s.p(x).permute(0, 2, 3, 1), (-1, -1), (1, 2))
        n, h, w, c = y.shape
        y = y.view(n, 1, h, 2, w // 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, h * w // 2, c)
        q, k, v = heads(s, y).unbind(0)
        scores = multiply(q, k.transpose(-2, -1))
        mask = torch.zeros_like(s.place[:2, :6, None], dtype=scores.dtype).masked_fill(s.mask[:2, :6, None], -100.0)
        scores = scores.view(n, 2, 2, 6, 6) + (mask + mask.transpose(1, 2)).unsqueeze(1).unsqueeze(0)
        y = joined(s, multiply(scores.view(-1, 2, 6, 6).softmax(-1), v))
        y = y.view(n, 1, 2, h, w // 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return torch.roll(y, (1, 1), (1, 2)).permute(0, 3, 1, 2)

    return layer


def transposed_attention(multiply):
    """XCiT: channels attend to channels, over normalised queries and keys."""

    def layer(s, x):
        q, k, v = heads(s, tokens(s, x)).transpose(-2, -1).unbind(0)
        return multiply(multiply(q, k.transpose(-2, -1)).softmax(-1), v).permute(0, 3, 1, 2).flatten(2)

    return layer


CHANGES = (masked, minus_infinity, biased, learned_scale, talking_heads)
LAYERS = {
    **spellings(
        "attention", attend(operator.matmul), by_index, by_chunk, by_einsum, by_function, surrogate=attend(product),
        modules=layers,
    ),
    **{
        f"attention {change.__name__}": Case(attend(torch.matmul, change), attend(product, change), modules=layers)
        for change in CHANGES
    },
    "cosine attention": Case(
        attend(torch.matmul, learned_scale, norm=True), attend_detached(learned_scale), modules=layers
    ),
    **{
        make.__name__.replace("_", " "): Case(make(torch.matmul), make(product), modules=layers)
        for make in (linear_attention, class_token_attention, window_attention, transposed_attention)
    },
}  # fmt: skip
CASES = {**SOFTMAX, **MATMUL, **EINSUM, **LAYERS}


@pytest.mark.parametrize("name", CASES)
def test_attention(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize("multiply", [torch.matmul, lambda q, k: torch.einsum("nhid,nhdj->nhij", q, k)])
def test_a_product_with_a_stabiliser(multiply) -> None:
    """Each factor has ``sum_j x_ji z_j / (2 z_j + eps sign z_j)``: AttnLRP, equation 15."""
    epsilon = 0.3
    net, images = build(Case(lambda s, x: multiply(s.a(x), s.b(x).transpose(-2, -1)), modules=branches))
    overrides = [{"rule": "epsilon", "epsilon": epsilon, "kinds": ["product"]}]
    found = HeatmapDecoder(net, composite_kwargs={"overrides": overrides}).eval()(images).heatmaps
    z = multiply(net.a(images), net.b(images).transpose(-2, -1)).detach()
    share = 2 * z / (2 * z + torch.where(z < 0, -1.0, 1.0).double() * epsilon)
    expected = input_x_gradient(
        lambda x: net.head((product(net.a(x), net.b(x).transpose(-2, -1)) * share).flatten(1)), images
    )
    close(found, expected)


REFUSED = {
    "matrices of images": lambda s, x: s.a(x).flatten(1) @ s.b(x).flatten(1).t(),
    "images as the inner axis": lambda s, x: (s.a(x).flatten(1).t() @ s.b(x).flatten(1)).expand(x.size(0), -1, -1),
    "a vector": lambda s, x: s.a(x) @ s.m[:, 0],
    "einsum over images": lambda s, x: torch.einsum("nchw,nchk->cwk", s.a(x), s.b(x)).expand(x.size(0), -1, -1, -1),
    "einsum of a diagonal": lambda s, x: torch.einsum("nchh->nc", s.a(x)[..., :6]),
    "softmax over images": lambda s, x: s.a(x).softmax(0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    net, images = build(Case(REFUSED[name], modules=branches))
    with pytest.raises(UnsupportedOpError):
        HeatmapDecoder(net).eval()(images)
