"""What is written out computes what torch computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.lrp.trace.test_tracer import Forward, images, run, targets, trace
from tw_seg.errors import TraceError
from tw_seg.lrp.trace.lowering import LOWERED_FUNCTIONS


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.randn(2, 4, n, 6, dtype=torch.float64) for n in (5, 7, 7))  # type: ignore[return-value]


MASK = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) > 0.3
HIDDEN = MASK & (torch.arange(5) != 2).unsqueeze(1)  # row 2 looks nowhere


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": MASK},
        {"attn_mask": HIDDEN},
        {"attn_mask": torch.randn(2, 1, 5, 7, dtype=torch.float64)},
    ],
)
def test_attention_equals_torch(qkv: tuple[Tensor, Tensor, Tensor], options: dict[str, Any]) -> None:
    expected = F.scaled_dot_product_attention(*qkv, **options)
    found = LOWERED_FUNCTIONS[F.scaled_dot_product_attention](*qkv, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_grouped_attention_equals_torch(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    query, key, value = qkv[0], qkv[1][:, :2], qkv[2][:, :2]
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    found = LOWERED_FUNCTIONS[F.scaled_dot_product_attention](query, key, value, enable_gqa=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_attention_drops_weights_as_torch_does(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    torch.manual_seed(3)
    expected = F.scaled_dot_product_attention(*qkv, dropout_p=0.5)
    torch.manual_seed(3)
    found = LOWERED_FUNCTIONS[F.scaled_dot_product_attention](*qkv, dropout_p=0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


class Attend(nn.Module):
    """Multi-head attention of the rows of one channel, to themselves or to those of another."""

    def __init__(self, attention: nn.MultiheadAttention, keys: int = 0, values: int = 0, **options: Any) -> None:
        super().__init__()
        self.attention, self.keys, self.values, self.options = attention, keys, values, options

    def forward(self, x: Tensor) -> Any:
        query = x[:, 0]
        keys = query if self.keys == 0 else x[:, self.keys]
        return self.attention(query, keys, query if self.values == 0 else x[:, self.values], **self.options)


CAUSAL = torch.ones(8, 8, dtype=torch.bool).triu(1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    ("made", "called"),
    [
        ({}, {}),
        ({"bias": False}, {"need_weights": False}),
        ({}, {"keys": 1, "values": 2}),
        ({"kdim": 12, "vdim": 12}, {"keys": 1, "average_attn_weights": False}),
        ({}, {"attn_mask": CAUSAL, "is_causal": True}),
        ({}, {"attn_mask": torch.randn(8, 8, dtype=torch.float64)}),
    ],
)
def test_multi_head_attention_equals_torch(batch_first: bool, made: dict[str, Any], called: dict[str, Any]) -> None:
    attention = nn.MultiheadAttention(12, 3, batch_first=batch_first, **made)
    if made.get("kdim"):  # torch keeps one matrix where all sizes agree
        attention._qkv_same_embed_dim = False
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            setattr(attention, name, nn.Parameter(torch.randn(12, 12)))
    net, x = Attend(attention, **called).double().eval(), images(8 if not batch_first else 5)
    traced = trace(net)
    assert F.scaled_dot_product_attention not in targets(traced)
    torch.testing.assert_close(run(net, traced, x), net(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", [torch.arange(8) > 5, torch.randn(8, dtype=torch.float64)])
def test_padding_masks_equal_torch(mask: Tensor) -> None:
    class Net(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            rows = x[:, 0]
            return super().forward(rows, rows, rows, key_padding_mask=mask.expand(x.shape[0], -1))

    net, x = Net(12, 3, batch_first=True).double().eval(), images()
    torch.testing.assert_close(run(net, trace(net), x), net(x), rtol=0, atol=1e-12)


def test_dropped_attention_follows_the_training_flag() -> None:
    net, x = Attend(nn.MultiheadAttention(12, 3, dropout=0.5, batch_first=True), need_weights=False).double(), images()
    graphs = [trace(net, training=mode) for mode in (False, True)]
    flags = [next(n for n in g.graph.nodes if n.target is F.dropout).kwargs["training"] for g in graphs]
    assert flags == [False, True]
    torch.manual_seed(3)
    expected = net(x)[0]
    torch.manual_seed(3)
    torch.testing.assert_close(run(net, graphs[1], x)[0], expected, rtol=0, atol=1e-12)


def test_an_encoder_layer_is_traced_into() -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True, dropout=0.1)
    net = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(1, 2), nn.TransformerEncoder(layer, 2)).double().eval()
    traced, x = trace(net), images()
    assert "2.layers.1.linear1" in targets(traced) and "2.layers.0.self_attn.in_proj_weight" in targets(traced)
    torch.testing.assert_close(run(net, traced, x), net(x), rtol=0, atol=1e-10)


def test_lowered_calls_keep_the_path_of_their_module() -> None:
    net = nn.Sequential(nn.Flatten(1, 2), nn.Sequential(Forward(lambda x: x), nn.GLU(1)))
    product = next(node for node in trace(net).graph.nodes if node.target is torch.sigmoid)
    assert list(product.meta["nn_module_stack"])[-1] == "1.1"


@pytest.mark.parametrize("made", [{"add_bias_kv": True}, {"add_zero_attn": True}], ids=["add_bias_kv", "add_zero_attn"])
def test_extra_keys_are_refused(made: dict[str, Any]) -> None:
    with pytest.raises(TraceError, match="add_zero_attn"):
        trace(Attend(nn.MultiheadAttention(12, 3, **made)))


@pytest.mark.parametrize(
    "net",
    [
        Forward(lambda x: F.glu(x, 3)),
        nn.GLU(2),
        Forward(lambda x: F.normalize(x, dim=-1)),
        Forward(lambda x: F.normalize(x * 0, p=1.0, dim=1)),
        Forward(lambda x: F.softmin(x, dim=1)),
        nn.Softmin(2),
        nn.Softmax2d(),
    ],
)
def test_other_lowered_operations_equal_torch(net: nn.Module) -> None:
    traced, x = trace(net), images()
    torch.testing.assert_close(run(net, traced, x), net(x), rtol=0, atol=1e-12)
    assert not {F.glu, F.normalize, F.softmin}.intersection(t for t in targets(traced) if callable(t))
    assert all(node.op != "call_module" for node in traced.graph.nodes)
