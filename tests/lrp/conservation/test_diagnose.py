"""Conservation call by call, completeness, and that the checks see what is wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.oracles import nets
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.conservation.diagnose import completeness, conservation, non_finite


def pictures(*size: int) -> Tensor:
    return torch.randn(*(size or (2, 3, 17, 19)), dtype=torch.float64)


@torch.no_grad()
def test_logit_is_heatmap_and_bias_relevance(quick) -> None:
    net, images = quick
    decoder = HeatmapDecoder(net)
    decoded = decoder(images, classes=[2, 0])
    bias = completeness(decoder, images, [2, 0]).bias
    scale = float(decoded.logits.abs().max())
    assert bias.abs().max() > 1e-3 * scale
    torch.testing.assert_close(
        decoded.heatmaps.sum((2, 3)) + bias, decoded.logits[:, [2, 0]], rtol=0, atol=1e-10 * scale
    )


def test_order_and_shapes() -> None:
    balances = conservation(HeatmapDecoder(nets.tiny()), pictures(), [1])
    assert balances[0].path == "fc" and balances[-1].kind == "conv+batch_norm"
    assert all(b.missing.shape == (2, 1) and b.missing.dtype == torch.float64 for b in balances)


def test_checks_leave_no_trace() -> None:
    net = nets.tiny()
    decoder = HeatmapDecoder(net)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    for check in (conservation, completeness, non_finite):
        check(decoder, pictures())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_non_finite_names_the_origin() -> None:
    decoder, images = HeatmapDecoder(nets.tiny()), pictures()
    assert non_finite(decoder, images) == []
    images[0, 0, 3, 3] = torch.nan
    assert non_finite(decoder, images)[0].startswith("images: 1 of 1938")
    with torch.no_grad():
        decoder.classifier.conv2.weight[0] = torch.inf
    lines = non_finite(decoder, pictures())
    assert lines[0].startswith("conv2 (conv 'conv2')") and "activation" in lines[0]
    assert any("coefficient" in line for line in lines)
