"""Compiled whole, once for one shape and once for all: no graph break, and no recompilation over shapes.

``fullgraph=True`` makes a graph break an error. Shapes become symbols when a second shape arrives (torch's automatic
dynamic shapes), or at once with ``dynamic=True`` or ``torch._dynamo.mark_dynamic``. One decoder is compiled in each of
these ways; the others once, with ``mark_dynamic``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torchvision.models.vgg import VGG, make_layers

from tests.models.contract import randomise
from tests.oracles import nets
from tests.oracles.gradients import agreement, gradients
from tw_seg.lrp import HeatmapDecoder
from tw_seg.models.segmenter import HeatmapSegmenter

# torch 2.11 compiles a pool, with or without this package, once for every parity of its input's sizes.
OLD = torch.__version__ < (2, 12)
SIZES = [(64, 96), (96, 64), (64, 64), (128, 96)] if OLD else [(40, 48), (48, 56), (56, 40), (33, 47)]
SHAPES = [
    (2, (32, 32), 3, 2),
    (3, SIZES[0], 2, 3),
    (5, SIZES[1], 4, 2),
    (4, SIZES[2], 6, 4),
    (2, SIZES[3], 2, 2),
]
"""Number of images, their size, number of decoded samples and of classes."""

DISTINCT = [(6, SIZES[0], 2, 5), *SHAPES[2:]]
"""It begins with numbers that all differ, from the 3 channels too: ``dynamic=True`` takes equal ones for the same."""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def graphs() -> int:
    """Graphs compiled so far."""
    return int(counters["stats"]["unique_graphs"])


def example(shape: tuple[int, tuple[int, int], int, int], outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    samples, size, decoded, classes = shape
    images = torch.randn(samples, 3, *size, dtype=torch.float64)
    return images, torch.randint(outputs, (classes,)), torch.randint(samples, (decoded,))


def check(compiled: Any, model: nn.Module, twin: nn.Module, given: tuple[Tensor, ...]) -> None:
    """Values, gradients and buffers of one step are those of the twin, which is not compiled."""
    steps = []
    for function, owner in ((compiled, model), (twin, twin)):
        output = function(*given)
        maps = output[1]
        pixels = torch.linspace(-1, 1, maps.numel(), dtype=maps.dtype).reshape(maps.shape)
        loss = output.logits.square().sum() + (maps * pixels).sum() + maps.square().sum()
        steps.append((output.logits, maps, gradients(loss, list(owner.parameters()))))
    (logits, maps, found), (expected_logits, expected_maps, expected) = steps
    torch.testing.assert_close(logits, expected_logits, rtol=1e-10, atol=1e-10)
    peak = float(expected_maps.detach().abs().max())
    torch.testing.assert_close(maps, expected_maps, rtol=1e-10, atol=1e-10 * peak)
    direction, length = agreement(found, expected)
    assert direction < 1e-10 and length < 1e-10
    for buffer, other in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-10, atol=1e-10)


def compiled_once(model: nn.Module, outputs: int, *, dynamic: bool | None = None, pairs: bool = True) -> None:
    """One graph for all shapes, said to vary by ``dynamic=True`` or by marks; without ``pairs`` of all classes."""
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    given = [example(shape, outputs)[: 3 if pairs else 1] for shape in DISTINCT]
    if dynamic is None:
        for x, axes in zip(given[0], ((0, 2, 3), 0, 0), strict=False):
            torch._dynamo.mark_dynamic(x, axes)
    check(compiled, model, twin, given[0])
    with torch.compiler.set_stance("fail_on_recompile"):
        for one in given[1:]:
            check(compiled, model, twin, one)
    assert graphs() == 1


def test_a_second_shape_is_the_last_to_be_compiled() -> None:
    model = HeatmapDecoder(nets.tiny())
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for shape in SHAPES[:2]:
        check(compiled, model, twin, example(shape, 3))
    assert graphs() == 2
    with torch.compiler.set_stance("fail_on_recompile"):
        for shape in SHAPES[2:]:
            check(compiled, model, twin, example(shape, 3))
    assert graphs() == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "training"),
    [
        ({"schedule": {"recompute": True}}, False),  # of all classes of all samples
        ({"tie_weights": False, "read_out": ["conv2", "input"], "seed": "contrastive"}, False),
        ({"composite": "epsilon_plus_flat"}, True),
    ],
    ids=str,
)
def test_decoder(options: dict[str, Any], training: bool) -> None:
    decoder = HeatmapDecoder(nets.tiny(), **options).train(training)
    compiled_once(decoder, 3, pairs="schedule" not in options)


def short_vgg() -> nn.Module:
    """Torchvision's, with two convolutions: adaptive pool to 7x7, dropout."""
    net = VGG(make_layers([8, "M", 8, "M"], batch_norm=True), num_classes=3)
    net.classifier = nn.Sequential(nn.Linear(8 * 7 * 7, 16), nn.ReLU(True), nn.Dropout(), nn.Linear(16, 3))
    return nets.initialise(net.double()).eval()


@pytest.mark.slow
def test_decoder_of_vgg() -> None:
    compiled_once(HeatmapDecoder(short_vgg()), 3)


def tiny(in_channels: int, num_classes: int) -> nn.Module:
    return nets.tiny(classes=num_classes).float()


@pytest.mark.slow
def test_segmenter() -> None:
    """With all that it adds to a decoder; its plain form compiles in tests/models, for one shape."""
    decoder_kwargs = {"read_out": ["conv2", "pool"], "tie_weights": False}
    arguments = {"background": "constant", "compress": 0.5, "refine": 4, "decoder_kwargs": decoder_kwargs}
    made = HeatmapSegmenter(f"{__name__}:tiny", classes=4, **arguments)
    compiled_once(randomise(made).double().train(), 4)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["dynamic", "mark_dynamic"])
def test_one_graph_where_shapes_are_said_to_vary(how: str) -> None:
    compiled_once(HeatmapDecoder(nets.tiny()), 3, dynamic=True if how == "dynamic" else None)
