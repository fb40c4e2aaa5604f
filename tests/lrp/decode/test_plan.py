"""Plans: read-outs that are found, and forwards that branch on sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.lrp.decoding import assert_equal, pictures
from tests.oracles import nets
from tests.oracles.gradients import input_x_gradient
from tests.oracles.nets import Calls, conv
from tw_seg.errors import InputError
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.trace.build import trace


def padded(s, x: Tensor) -> Tensor:
    """Pads odd widths and pools large heights: another graph for each."""
    if x.shape[-1] % 2:
        x = F.pad(x, (0, 1))
    x = F.relu(s.a(x))
    return s.pool(x) if x.shape[-2] > 12 else x


def branching(**modules: Any) -> Calls:
    return Calls(padded, a=conv(), pool=nn.MaxPool2d(2), **modules)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_a_forward_that_branches_on_sizes(tie_weights: bool) -> None:
    net = branching()
    decoder = HeatmapDecoder(net, image_size=(11, 8), tie_weights=tie_weights)
    for height, width in [(11, 8), (11, 9), (17, 8), (17, 9), (11, 8), (17, 9)]:
        images = pictures(2, 3, height, width)
        decoded = decoder(images)
        assert torch.equal(decoded.logits, net(images))
        torch.testing.assert_close(decoded.heatmaps, input_x_gradient(net, images), rtol=1e-12, atol=1e-14)
        pools = [call.name for call in decoder.graph(images).calls if call.kind == "max_pool"]
        assert pools == ["pool"] * (height == 17)


def test_each_size_is_traced_once(monkeypatch) -> None:
    traced: list[tuple[int, ...]] = []

    def counted(classifier: nn.Module, training: bool, *, image_shape: tuple[int, int, int], **options: Any) -> Any:
        traced.append(image_shape)
        return trace(classifier, training, image_shape=image_shape, **options)

    monkeypatch.setattr("tw_seg.lrp.decode.plan.trace", counted)
    decoder = HeatmapDecoder(branching(), image_size=(11, 8))
    for width in (8, 9, 8, 9, 7, 9):
        decoder(pictures(2, 3, 11, width))
        decoder.train(not decoder.training)
    assert traced == [(3, 11, 8)] * 2 + [(3, 11, 9)] * 2 + [(3, 11, 7)] * 2  # both modes
    traced.clear()
    decoder = HeatmapDecoder(nets.tiny())
    for width in (17, 18):
        decoder(pictures(2, 3, 17, width))
    assert traced == [(3, 224, 224)] * 2


def test_a_read_out_that_is_not_there_at_every_size() -> None:
    decoder = HeatmapDecoder(branching(), image_size=(17, 8), read_out="pool")
    assert decoder(pictures(2, 3, 17, 8)).heatmaps.shape == (2, 3, 8, 4)
    with pytest.raises(InputError, match="read_out 'pool' is neither"):
        decoder(pictures(2, 3, 11, 8))


def test_compile_a_forward_that_branches_on_sizes() -> None:
    """It cannot be traced while it is compiled; after one run at that size it need not be."""
    decoder, images = HeatmapDecoder(branching(), image_size=(11, 8)), pictures(2, 3, 11, 9)
    torch._dynamo.reset()
    compiled = torch.compile(decoder, fullgraph=True, backend="eager")
    message = r"was not traced for images \(3, 11, 9\) yet: run the decoder once"
    with pytest.raises(Exception, match=message):  # torch wraps the InputError
        compiled(images)
    expected = decoder(images)
    torch._dynamo.reset()
    assert_equal(torch.compile(decoder, fullgraph=True, backend="eager")(images), expected)


@pytest.mark.parametrize(
    ("fraction", "place"), [(0, "input"), (0.0, "input"), (0.3, "conv1"), (0.5, "conv2"), (1, "conv3")]
)
def test_a_read_out_at_a_fraction_of_the_depth(fraction: float, place: str) -> None:
    net, images = nets.tiny(), pictures()
    found = HeatmapDecoder(net, read_out=fraction)(images).heatmaps
    assert torch.equal(found, HeatmapDecoder(net, read_out=place)(images).heatmaps)
    several = HeatmapDecoder(net, read_out=["pool", fraction])(images).readouts[1]
    torch.testing.assert_close(several, found, rtol=1e-12, atol=1e-14)


def test_a_tape_of_another_decoder(decoder: HeatmapDecoder) -> None:
    with pytest.raises(InputError, match="another decoder"):
        decoder.decode(HeatmapDecoder(nets.tiny()).record(pictures()))
