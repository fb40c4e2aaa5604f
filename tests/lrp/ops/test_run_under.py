"""Many operations at once under every way of running: without gradients, in half precision, compiled, exported."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.lrp.ops import (
    test_attention,
    test_batch_norm,
    test_indexing,
    test_interpolate,
    test_linear,
    test_norm,
    test_pool,
    test_shape,
)
from tests.lrp.ops.harness import SIZES, Case, Many, close
from tests.lrp.trace import test_rewriting
from tests.oracles.gradients import agreement, gradients
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.ops import indexing, shape

pytestmark = [  # torch's advice
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning"),
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning"),
]

MOVES = [
    "reshape 9", "squeeze 5", "unsqueeze 4", "permute 5", "transpose 7", "movedim 4", "roll 1", "flip 2", "expand 4",
    "repeat 2", "repeat_interleave 1", "pad 1", "pad 4", "pad 5", "pad 6", "cat 8", "stack 3", "split 0", "split 1",
    "unbind 2", "getitem 9", "getitem 18", "getitem 20", "select 3", "narrow 1", "index_select 0", "pixel_shuffle 0",
    "pixel_unshuffle 0", "channel_shuffle 0", "unfold 1", "windows 0", "fold 1", "masked_fill 5", "where 3",
    "split heads", "split heads by index", "swin windows", "windows with a bias", "channels in the batch", "setitem 2",
]  # fmt: skip
CONVOLUTIONS = [
    "conv2d same even", "conv2d stride", "conv_transpose2d output padding", "conv_transpose2d dilation",
    "batch_norm2d grouped transposed", "avg_pool2d ceil", "adaptive_avg_pool2d odd", "interpolate area 2d {} size",
    "interpolate bicubic 2d {} factor", "interpolate nearest-exact 2d {} factor",
]  # fmt: skip
ATTENTION = [
    "attention 1", "attention 3", "attention 4", "attention masked", "attention minus_infinity", "attention biased",
    "cosine attention", "window attention", "class token attention",
]  # fmt: skip
LINEAR_MAPS = {**test_linear.CASES, **test_batch_norm.CASES, **test_pool.CASES, **test_interpolate.CASES}
NETS: dict[str, list[Case]] = {
    "attention": [
        *(test_attention.CASES[name] for name in ATTENTION),
        test_norm.CASES["layer_norm of channels"],
        test_norm.CASES["rms_norm 0"],
    ],
    "convolutions and moves": [
        *({**test_shape.CASES, **test_indexing.CASES}[name] for name in MOVES),
        test_rewriting.CASES["gather"],
        *(LINEAR_MAPS[name] for name in CONVOLUTIONS),
        *test_norm.GROUP.values(),
        test_pool.CASES["max_pool2d ceil"],
        test_pool.CASES["adaptive_max_pool2d odd"],
        test_pool.CASES["amax 4"],
        test_pool.CASES["max 0"],
    ],
}


@cache
def decoder(name: str) -> HeatmapDecoder:
    return HeatmapDecoder(Many(NETS[name]), image_size=SIZES[2][2:]).eval()


def pictures(samples: int = 2) -> Tensor:
    return torch.randn(samples, *SIZES[2][1:], dtype=torch.float64)


def test_every_move_is_there() -> None:
    kinds = {call.kind for call in decoder("convolutions and moves").graph(pictures()).calls if call.inputs}
    assert {op.kind for op in (*shape.OPS, *indexing.OPS)} - kinds == {"cast", "clone", "identity"}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(name: str, context: type[AbstractContextManager[None]]) -> None:
    images = pictures()
    expected = decoder(name)(images).heatmaps
    with context():
        found = decoder(name)(images).heatmaps
    assert not found.requires_grad
    close(found.clone(), expected.detach())


@pytest.mark.parametrize("name", NETS)
def test_bfloat16_autocast(name: str) -> None:
    made = HeatmapDecoder(Many(NETS[name]).float(), image_size=SIZES[2][2:]).eval()
    images = pictures().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made(images).heatmaps
    found.square().sum().backward()
    assert found.isfinite().all() and found.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)
    exact = made(images).heatmaps
    assert F.cosine_similarity(found.flatten(), exact.flatten(), dim=0).item() > 0.98


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(name: str, dtype: torch.dtype) -> None:
    made = HeatmapDecoder(Many(NETS[name]).to(dtype), image_size=SIZES[2][2:]).eval()
    found = made(pictures().to(dtype)).heatmaps
    assert found.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_compile(name: str) -> None:
    torch._dynamo.reset()
    images = pictures()
    compiled = torch.compile(decoder(name), fullgraph=True, backend="aot_eager")
    found, expected = (d(images, [2, 0], torch.tensor([1])).heatmaps for d in (compiled, decoder(name)))
    close(found, expected.detach())
    parameters = list(decoder(name).parameters())
    both = [gradients(h.square().sum(), parameters) for h in (found, expected)]
    assert max(agreement(*both)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_export_with_a_dynamic_batch(name: str) -> None:
    if name == "attention" and torch.__version__ < (2, 12):
        pytest.skip("torch 2.11 cannot export these with any batch size")
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(decoder(name), (pictures(3),), dynamic_shapes={"images": {0: batch}})
    for samples in (1, 2, 5):
        images = pictures(samples)
        close(program.module()(images).heatmaps, decoder(name)(images).heatmaps.detach())
