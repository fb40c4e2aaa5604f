"""Dropout: relevance follows the units that were kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.lrp.ops.harness import SIZES, Case, build, check, close, decode
from tests.oracles.gradients import input_x_gradient
from tw_seg.lrp import HeatmapDecoder

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

CASES = {**DROPOUT}


@pytest.mark.parametrize("name", CASES)
def test_dropout(name: str) -> None:
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
