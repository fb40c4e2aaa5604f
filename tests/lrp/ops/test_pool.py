"""Max pools and dropout: relevance goes to the winners, and to the units that were kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.lrp.ops.harness import SIZES, Case, build, check, close, decode, spellings
from tests.oracles.gradients import input_x_gradient
from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder

MAX = {
    f"max_pool{dims}d {name}": Case(body, size=SIZES[dims], modules=modules)
    for dims, module, function, other in (
        (1, nn.MaxPool1d, F.max_pool1d, torch.max_pool1d),
        (2, nn.MaxPool2d, F.max_pool2d, torch.max_pool2d),
        (3, nn.MaxPool3d, F.max_pool3d, torch.max_pool3d),
    )
    for name, body, modules in (
        ("module", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(2)}),
        ("overlap", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(3, 2, 1)}),
        ("ceil", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(2, 2, 1, 2, ceil_mode=True)}),
        ("stride 1", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(3, stride=1, padding=1)}),
        ("function", lambda s, x, f=function: f(s.a(x), 3, 2, 1), dict),
        ("keywords", lambda s, x, f=function: f(s.a(x), kernel_size=2, stride=1, dilation=2, ceil_mode=True), dict),
        ("default stride", lambda s, x, f=function: f(input=s.a(x), kernel_size=2), dict),
        ("torch's", lambda s, x, f=other: f(s.a(x), 3, 1, 1, 1, True), dict),
    )
}
ADAPTIVE = {
    f"adaptive_max_pool{dims}d {name}": Case(body, size=SIZES[dims], modules=modules)
    for dims, module, function in (
        (1, nn.AdaptiveMaxPool1d, F.adaptive_max_pool1d),
        (2, nn.AdaptiveMaxPool2d, F.adaptive_max_pool2d),
        (3, nn.AdaptiveMaxPool3d, F.adaptive_max_pool3d),
    )
    for name, body, modules in (
        ("one", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(1)}),
        ("odd", lambda s, x: s.p(s.a(x)), lambda m=module: {"p": m(3)}),
        ("function", lambda s, x, f=function: f(s.a(x), 5), dict),
        ("keyword", lambda s, x, f=function: f(s.a(x), output_size=7), dict),
    )
}
UNEVEN = {
    "max_pool2d uneven": Case(lambda s, x: F.max_pool2d(s.a(x), (1, 3), (1, 2), (0, 1))),
    "adaptive_max_pool2d uneven": Case(lambda s, x: F.adaptive_max_pool2d(s.a(x), (4, 11))),
    "adaptive_max_pool2d None": Case(lambda s, x: s.p(s.a(x)), modules=lambda: {"p": nn.AdaptiveMaxPool2d((None, 3))}),
}
AMAX = spellings(
    "amax",
    lambda s, x: torch.amax(s.a(x), 1),
    lambda s, x: torch.amax(s.a(x), dim=(-1, -2), keepdim=True),
    lambda s, x: torch.amax(input=s.a(x), dim=[1, 3]),
    lambda s, x: s.a(x).amax(-1),
    lambda s, x: s.a(x).amax((1, 2), True),
    lambda s, x: s.a(x) + s.a(x).amax(dim=1, keepdim=True),
    lambda s, x: s.a(x).permute(1, 2, 0, 3).amax((0, 3)).transpose(0, 1),
)
VALUES = spellings(
    "max",
    lambda s, x: s.a(x).max(1)[0],
    lambda s, x: torch.max(s.a(x), dim=-1, keepdim=True).values,
    lambda s, x: torch.max(s.a(x), s.a(x).flip(2)),
    lambda s, x: (lambda pair: pair[0])(s.a(x).max(dim=2)),
    lambda s, x: s.a(x).permute(1, 2, 0, 3).max(0).values.transpose(0, 1),
)
DROPOUT = {
    f"{name} {training} {number}": Case(
        lambda s, x, f=body: f(s, s.a(x)), size=size, modules=modules, training=training
    )
    for name, size, modules, bodies in (
        (
            "dropout", SIZES[2], lambda: {"d": nn.Dropout(0.4), "i": nn.Dropout(0.4, inplace=True)},
            (
                lambda s, y: s.d(y), lambda s, y: s.i(y), lambda s, y: F.dropout(y, 0.4, s.training),
                lambda s, y: F.dropout(y, p=0.3, training=s.training, inplace=True),
                lambda s, y: s.d(y.permute(2, 3, 0, 1)).permute(2, 3, 0, 1),
            ),
        ),
        (
            "dropout1d", SIZES[1], lambda: {"d": nn.Dropout1d(0.4)},
            (lambda s, y: s.d(y), lambda s, y: F.dropout1d(y, 0.4, training=s.training)),
        ),
        (
            "dropout2d", SIZES[2], lambda: {"d": nn.Dropout2d(0.4)},
            (lambda s, y: s.d(y), lambda s, y: F.dropout2d(y, 0.4, s.training)),
        ),
        (
            "dropout3d", SIZES[3], lambda: {"d": nn.Dropout3d(0.4)},
            (lambda s, y: s.d(y), lambda s, y: F.dropout3d(y, 0.4, training=s.training)),
        ),
    )
    for training in (False, True)
    for number, body in enumerate(bodies)
}  # fmt: skip
CASES = {**MAX, **ADAPTIVE, **UNEVEN, **AMAX, **VALUES, **DROPOUT}


@pytest.mark.parametrize("name", CASES)
def test_pool(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_all_or_nothing_is_dropped(p: float) -> None:
    net, images = build(Case(lambda s, x: s.d(s.a(x)) + x[:, :1], modules=lambda: {"d": nn.Dropout(p)}, training=True))
    close(decode(HeatmapDecoder(net), images).heatmaps, input_x_gradient(net, images))


def test_a_rate_that_changes_is_followed() -> None:
    """Schedules of dropout set the module's ``p`` between steps."""
    net, images = build(Case(lambda s, x: s.d(s.a(x)), modules=lambda: {"d": nn.Dropout(0.1)}, training=True))
    decoder = HeatmapDecoder(net)
    net.d.p = 0.7
    torch.manual_seed(1)
    expected = input_x_gradient(net, images)
    close(decode(decoder, images).heatmaps, expected)


def test_ties_are_won_once() -> None:
    """A plane of equal values: relevance is conserved, by pools and by amax."""
    for body in (lambda s, x: F.max_pool2d(s.a(x), 3, 2, 1), lambda s, x: s.a(x).amax((2, 3))):
        net, _ = build(Case(body))
        torch.nn.init.zeros_(net.a.weight)
        images = torch.ones(1, 3, 6, 8, dtype=torch.float64)
        decoder = HeatmapDecoder(net, read_out="a").eval()
        decoded = decoder(images)
        close(decoded.heatmaps.sum((2, 3)), decoded.logits - net.head.bias)


REFUSED = {
    "over the batch": (lambda s, x: s.a(x).amax((0, 1)).unsqueeze(0), "mixes the images"),
    "pool of another batch axis": (lambda s, x: F.max_pool2d(s.a(x).transpose(0, 1), 2).transpose(0, 1), "at axis 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    body, message = REFUSED[name]
    net, images = build(Case(body))
    with pytest.raises(UnsupportedOpError, match=message):
        HeatmapDecoder(net)(images)
