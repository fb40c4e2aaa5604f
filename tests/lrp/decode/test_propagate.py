"""Without a graph coefficients are written in place: heatmaps stay the same, and so does all that was recorded."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.lrp.decoding import pictures
from tests.oracles import nets
from tests.oracles.gradients import input_x_gradient
from tests.oracles.nets import Calls, conv
from tw_seg.lrp import HeatmapDecoder


def residual(s, x: Tensor) -> Tensor:
    """Coefficients that several calls hand on, a ReLU whose output is read out, and one that is read twice."""
    x = F.relu(s.a(x))
    y = F.relu(s.n(s.b(x)) + x)
    return F.relu(y + (y + F.relu(s.c(F.max_pool2d(y, 3, 1, 1)))))


NETS = {
    "chain": (nets.tiny, ["relu", "input"]),
    "residual": (
        lambda: Calls(residual, a=conv(), b=conv(4, 4), c=conv(4, 4), n=nn.BatchNorm2d(4)),
        ["relu_1", "relu", "input"],
    ),
}
PAIRS = {
    "one image after the other": [0, 0, 1, 2, 2],
    "in any order": [2, 0, 2, 1, 0],
    "one image": [1, 1],
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("pairs", [None, *PAIRS.values()], ids=["every pair", *PAIRS])
def test_in_place_and_out_of_place_are_the_same(name: str, pairs: list[int] | None) -> None:
    build, places = NETS[name]
    net, images = build().eval(), pictures()
    decoder = HeatmapDecoder(net, read_out=places)
    exact = input_x_gradient(net, images)

    def decode(tape) -> tuple[Tensor, ...]:
        if pairs is None:
            return decoder.decode(tape).readouts
        return decoder.decode_pairs(tape, torch.tensor(pairs), torch.arange(len(pairs)) % 3).readouts

    expected = decode(decoder.record(images))
    assert all(maps.requires_grad for maps in expected)
    if pairs is not None:
        exact = exact[pairs, torch.arange(len(pairs)) % 3].unsqueeze(1)
    torch.testing.assert_close(expected[-1].detach(), exact, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        tape = decoder.record(images)
        recorded = copy.deepcopy((tape.values, tape.saved))
        for _ in range(2):  # the first one leaves the tape as it was
            torch.testing.assert_close(decode(tape), expected, rtol=1e-12, atol=1e-14)
    for before, after in zip(recorded, (tape.values, tape.saved), strict=True):
        assert before.keys() == after.keys()
        for key, value in after.items():
            if isinstance(value, Tensor) and value.device.type == "cpu":
                assert torch.equal(value, before[key])
