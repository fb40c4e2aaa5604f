"""Every call's relevance is accounted for, and every logit: the balance of each call and completeness."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracles import nets
from tests.oracles.nets import Calls, conv
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.conservation.diagnose import completeness, conservation

COMPOSITES = [
    ("epsilon", {}),
    ("epsilon", {"epsilon": 0.2}),
    ("epsilon_flat", {"stabilizer": 0.1}),
    ("epsilon_wsquare", {"epsilon": 0.2}),
    ("epsilon_box", {"low": -4.0, "high": 4.0, "stabilizer": 0.1}),
]


def pictures(*size: int) -> Tensor:
    return torch.randn(*(size or (2, 3, 17, 19)), dtype=torch.float64)


def assert_conserved(decoder: HeatmapDecoder, images: Tensor, classes=None) -> None:
    balances = conservation(decoder, images, classes)
    assert balances
    for b in balances:
        scale = max(float(t.abs().max()) for t in (b.relevance_out, b.relevance_in, b.bias, b.stabilizer))
        assert b.missing.abs().max() <= 1e-10 * scale, b.path
    for place in range(len(decoder.read_out)):
        c = completeness(decoder, images, classes, read_out=place)
        assert c.missing.abs().max() <= 1e-10 * c.logits.abs().max()


@pytest.mark.parametrize("training", [False, True])
def test_standard_nets(quick, training: bool) -> None:
    net, images = quick
    assert_conserved(HeatmapDecoder(copy.deepcopy(net).train(training)), images, [1])


@pytest.mark.parametrize(("composite", "kwargs"), COMPOSITES)
@pytest.mark.parametrize("training", [False, True])
def test_composites(composite: str, kwargs, training: bool) -> None:
    net = nets.tiny(dropout=0.3).train(training)
    assert_conserved(HeatmapDecoder(net, composite, composite_kwargs=kwargs), pictures())


@pytest.mark.parametrize("place", ["input", "conv1", "bn1", "pool", "conv2", "bn2", "add", "iadd", "cat"])
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_read_outs(place: str, epsilon: float) -> None:
    """Where a skip connection passes a read-out, its relevance is counted as elsewhere."""
    if place == "add":
        place = "relu_1"
    decoder = HeatmapDecoder(nets.tiny(), read_out=[place, "conv3"], composite_kwargs={"epsilon": epsilon})
    images = pictures()
    assert_conserved(decoder, images)
    c = completeness(decoder, images)
    torch.testing.assert_close(c.heatmap, decoder(images).heatmaps.sum((2, 3)).detach())
    assert bool((c.elsewhere.abs() > 1e-6).any()) == (place in ("conv2", "bn2"))


def test_a_bias_is_the_bias() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    found = completeness(HeatmapDecoder(net), pictures(2, 3, 2, 2)).bias
    torch.testing.assert_close(found, net[1].bias.detach().expand(2, 3))


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.a(x) + 1.5,
        lambda s, x: 1.5 + s.a(x),
        lambda s, x: s.a(x) + s.p,
        lambda s, x: torch.add(s.a(x), s.p, alpha=-2),
        lambda s, x: torch.add(s.p, s.a(x), alpha=-2),
        lambda s, x: s.a(x) + s.batch,
        lambda s, x: torch.cat([s.q, s.b(x), torch.relu(s.q)], 1),
        lambda s, x: s.n(F.relu(s.a(x))),
        lambda s, x: F.adaptive_avg_pool2d(F.relu6(s.a(x)), 3),
    ],
)
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_constants_and_shifts_absorb(function, epsilon: float) -> None:
    net = Calls(
        function, a=conv(), b=conv(3, 2), n=nn.BatchNorm2d(4), p=nn.Parameter(torch.randn(1, 1, 1)),
        q=nn.Parameter(torch.randn(2, 1, 17, 19)), batch=nn.Parameter(torch.randn(2, 4, 17, 19)),
    )  # fmt: skip
    assert_conserved(HeatmapDecoder(net, composite_kwargs={"epsilon": epsilon}), pictures())


def test_overlapping_max_pool_conserves() -> None:
    (pool,) = [b for b in conservation(HeatmapDecoder(nets.tiny()), pictures()) if b.kind == "max_pool"]
    torch.testing.assert_close(pool.relevance_in, pool.relevance_out, rtol=1e-13, atol=0)


def test_decoder_weights_show_as_missing() -> None:
    """An untied decoder does not explain its classifier: that is what missing tells."""
    decoder = HeatmapDecoder(nets.tiny(), tie_weights=False)
    assert_conserved(decoder, pictures())
    with torch.no_grad():
        decoder.decoder_weights["conv2/weight"].mul_(2)
    (changed,) = [b for b in conservation(decoder, pictures()) if b.path == "conv2"]
    assert changed.missing.abs().max() > 1e-3
