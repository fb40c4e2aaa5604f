"""The refining net, against a plain one on whole inputs, by itself and in the segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.contract import ENCODER, ModelContract, randomise
from tw_seg.errors import InputError
from tw_seg.models.base import SegModel
from tw_seg.models.refine import RefiningNet
from tw_seg.models.segmenter import HeatmapSegmenter
from tw_seg.training.optim import group_parameters

PLACES = ["layer3", "layer1", "layer2"]
KINDS: list[dict[str, Any]] = [
    {"compress": 0.5, "decoder_kwargs": {"read_out": PLACES, "tie_weights": False}},
    {"background": "constant", "decoder_kwargs": {"read_out": ["layer3", "input"]}},
    {"share_offset": True, "background": "constant", "compress": 2.0, "decoder_kwargs": {"read_out": "layer2"}},
]


def fill_last_layer(model: HeatmapSegmenter) -> None:
    """Random numbers where a new net has zeros."""
    for net in model.refine:
        for parameter in net.last.parameters():
            nn.init.normal_(parameter)


class RefinedContract(ModelContract):
    model_class = HeatmapSegmenter

    def create(self, seed: int = 0) -> SegModel:
        model = super().create(seed)
        fill_last_layer(model)
        return model


class TestRefinedSmallNet(RefinedContract):
    arguments = {
        "encoder_name": "tests.models.test_segmenter:factory",
        "classes": 4,
        "refine": 5,
        "decoder_kwargs": {"read_out": ["0", "input"]},
    }
    exports = compiles = True


class TestRefined(RefinedContract):
    arguments = {**ENCODER, "refine": 6, **KINDS[0]}


def refine_by_hand(net: RefiningNet, maps: Sequence[Tensor], images: Tensor) -> Tensor:
    """Class by class and with one convolution at each read-out, of its maps and all that is known before."""
    corrections = []
    for k in range(maps[0].shape[1]):
        x = net.maps[0](maps[0][:, k])
        for depth in range(1, len(maps)):
            wide = F.interpolate(x.relu(), maps[depth].shape[3:], mode="bilinear")
            layer, known = net.maps[depth], net.known[depth - 1]
            x = F.conv2d(
                torch.cat([maps[depth][:, k], wide], 1), torch.cat([layer.weight, known.weight], 1), layer.bias, 1, 1
            )
        x = (x + net.image(F.adaptive_avg_pool2d(images, maps[-1].shape[3:]))).relu()
        corrections.append(net.last(net.inner(x).relu()))
    return torch.cat(corrections, 1)


def create_net(depths: int = 2) -> RefiningNet:
    net = RefiningNet(depths, 3, 5, maps=3).double()
    nn.init.normal_(net.last.weight)
    nn.init.normal_(net.last.bias)
    return net


def draw_maps(samples: int = 3, classes: int = 4) -> list[Tensor]:
    return [torch.randn(samples, classes, 3, *size, dtype=torch.float64) for size in ((4, 5), (9, 12))]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------------- the net


@pytest.mark.parametrize("size", [(18, 24), (17, 25), (9, 12), (8, 12)])
def test_it_is_a_plain_net_class_by_class(size: tuple[int, int]) -> None:
    net, maps, images = create_net(), draw_maps(), torch.randn(3, 3, *size, dtype=torch.float64)
    expected = refine_by_hand(net, maps, images)
    close(net(maps, images), expected)
    rows, classes = torch.tensor([2, 0, 2]), torch.tensor([1, 3, 0])
    pairs = [one[rows, classes][:, None] for one in maps]
    close(net(pairs, images, rows)[:, 0], expected[rows, classes])
    one = create_net(1)
    close(one(maps[:1], images), refine_by_hand(one, maps[:1], images))


def test_gradients_are_those_of_finite_differences() -> None:
    net = create_net()
    maps, images = draw_maps(2, 2), torch.randn(2, 3, 17, 23, dtype=torch.float64)
    names, parameters = zip(*net.named_parameters(), strict=True)

    def run(first: Tensor, second: Tensor, *values: Tensor) -> Tensor:
        arguments = ([first, second], images)
        return torch.func.functional_call(net, dict(zip(names, values, strict=True)), arguments)

    assert torch.autograd.gradcheck(run, [*(one.requires_grad_() for one in maps), *parameters], fast_mode=True)


def test_a_new_net_corrects_nothing_and_only_its_last_layer_moves() -> None:
    net = RefiningNet(2, 3, 5, maps=3).double()
    correction = net(draw_maps(), torch.randn(3, 3, 18, 24, dtype=torch.float64))
    assert correction.shape == (3, 4, 9, 12) and not correction.any()
    correction.square().sum().add(correction.sum()).backward()
    assert {name for name, p in net.named_parameters() if p.grad.any()} == {"last.weight", "last.bias"}


@pytest.mark.parametrize("refine", [0, -1, 1.5, "16"])
def test_channels_are_a_positive_number(refine: Any) -> None:
    with pytest.raises(InputError, match=f"refine must be a whole number >= 1, got {refine!r}"):
        HeatmapSegmenter(**ENCODER, refine=refine)


# ------------------------------------------------------------------------------------------------- in the segmenter


def create(**kwargs: Any) -> HeatmapSegmenter:
    model = randomise(HeatmapSegmenter(**{**ENCODER, **kwargs})).double().eval()
    with torch.no_grad():
        model.offset.copy_(torch.linspace(-1, 1, len(model.offset)))
    return model


def create_pair(**kwargs: Any) -> tuple[HeatmapSegmenter, HeatmapSegmenter]:
    """One with a refining net that corrects something, and the same without."""
    model, plain = create(refine=6, **kwargs), create(**kwargs)
    added = ("refine.", "decoder.projections.")
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith(added)})
    fill_last_layer(model)
    return model, plain


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 33, 47, dtype=torch.float64)


@pytest.mark.parametrize("kwargs", KINDS, ids=str)
def test_it_starts_as_the_model_without_it(images: Tensor, kwargs: dict[str, Any]) -> None:
    model, plain = create_pair(**kwargs)
    nn.init.zeros_(model.refine[0].last.weight)
    nn.init.zeros_(model.refine[0].last.bias)
    found, expected = model(images), plain(images)
    for one, other in zip((*found[:2], *found.aux), (*expected[:2], *expected.aux), strict=True):
        close(one, other)


@pytest.mark.parametrize("classes", [None, [3, 0, 1], [0], torch.tensor([0, 2, 2])])
@pytest.mark.parametrize("kwargs", KINDS, ids=str)
def test_the_correction_is_added(images: Tensor, kwargs: dict[str, Any], classes: Any) -> None:
    """To the mask logits alone, not to those of single read-outs, and not to a background that is constant."""
    model, plain = create_pair(**kwargs)
    samples = torch.tensor([2, 0])
    output, expected = model(images, classes, samples), plain(images, classes, samples)
    decoded = model.decoder.project(model.decoder.record(images), samples=samples)
    gain = 1.0 if model.compress is None else model.compress
    seen = []
    for heatmap, others in sorted(
        zip(decoded.readouts, decoded.projections, strict=True), key=lambda both: both[0].shape[2]
    ):
        maps = torch.cat([heatmap[:, :, None], others], 2)
        seen.append((maps * gain * heatmap[0, 0].numel()).asinh())
    correction = F.interpolate(refine_by_hand(model.refine[0], seen, images[samples]), (33, 47), mode="bilinear")
    if model.background == "constant":
        correction = F.pad(correction, (0, 0, 0, 0, 1, 0))
    if classes is not None:
        correction = correction[:, torch.as_tensor(classes)]
    close(output.mask_logits, expected.mask_logits + correction)
    assert bool(correction.any()) == (classes != [0] or model.background == "class")
    for one, other in zip((output.logits, *output.aux), (expected.logits, *expected.aux), strict=True):
        close(one, other)


@pytest.mark.parametrize("kwargs", KINDS, ids=str)
def test_pairs_are_refined_as_all_classes_are(images: Tensor, kwargs: dict[str, Any]) -> None:
    model, _ = create_pair(**kwargs)
    samples, classes = torch.tensor([2, 0, 0, 1, 2]), torch.tensor([1, 3, 0, 2, 1])
    tape, _ = model.record(images)
    found, expected = model.decode_pairs(tape, samples, classes), model(images)
    for one, other in zip((found.mask_logits, *found.aux), (expected.mask_logits, *expected.aux), strict=True):
        close(one, other[samples, classes][:, None])
    assert model.decode_pairs(tape, samples[:0], classes[:0]).mask_logits.shape == (0, 1, 33, 47)


def test_classes_in_another_order_of_the_head_are_masks_in_that_order(images: Tensor) -> None:
    """So that nothing of a class is in the net."""
    model, _ = create_pair(share_offset=True, background="constant", **KINDS[0])
    expected, order = model(images).mask_logits, torch.tensor([2, 0, 1])
    head = model.classifier.get_submodule("fc")
    with torch.no_grad():
        for parameter in (head.weight, head.bias):
            parameter.copy_(parameter[order].clone())
        for name, weight in model.decoder.decoder_weights.named_parameters():
            if "fc" in name:
                weight.copy_(weight[order].clone())
    close(model(images).mask_logits, expected[:, [0, *(order + 1).tolist()]])


def test_its_parameters_are_the_decoders() -> None:
    model, factor = create(refine=4), 0.5
    groups = group_parameters(model, lr=1.0, weight_decay=0.1, decoder_lr_factor=factor, scale_lr_factor=3.0)
    found = {id(p): group for group in groups for p in group["params"]}
    for parameter in (*model.refine.parameters(), *model.decoder.projections):
        group = found[id(parameter)]
        assert group["lr"] == factor and group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
