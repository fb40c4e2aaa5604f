from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.contract import ENCODER, ModelContract, randomise
from tw_seg.errors import InputError, UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder, Schedule
from tw_seg.models.backbones import create_classifier
from tw_seg.models.segmenter import HeatmapSegmenter

PLACES = ["layer3", "input", "layer1"]


class TestTied(ModelContract):
    model_class = HeatmapSegmenter
    arguments = ENCODER


class TestSmallNet(ModelContract):
    """Compiled in a second; ``tests/lrp/test_compile.py`` compiles ENCODER in several ways."""

    model_class = HeatmapSegmenter
    arguments = {
        "encoder_name": "tests.models.test_segmenter:factory",
        "classes": 4,
        "compress": 0.5,
        "class_prior": 0.5,
        "decoder_kwargs": {"read_out": ["0", "input"]},
    }
    exports = compiles = True


class TestUntiedAtSeveralDepths(ModelContract):
    model_class = HeatmapSegmenter
    arguments = {
        **ENCODER,
        "compress": 0.5,
        "decoder_kwargs": {"tie_weights": False, "read_out": PLACES, "schedule": {"chunk_size": 3}},
    }


class TestWithinAMemoryBudget(ModelContract):
    model_class = HeatmapSegmenter
    arguments = {**ENCODER, "decoder_kwargs": {"read_out": ["layer3", "layer1"], "schedule": {"memory_budget": 1e-4}}}


class TestConstantBackground(ModelContract):
    model_class = HeatmapSegmenter
    arguments = {
        **ENCODER,
        "background": "constant",
        "decoder_kwargs": {"composite": "epsilon_flat", "schedule": {"recompute": True}},
    }
    exports = True

    def create_classifier(self) -> nn.Module:
        return create_classifier(**{**ENCODER, "classes": 3})


class TestVisionTransformer(ModelContract):
    """Its positions are made for images of one size."""

    model_class = HeatmapSegmenter
    arguments = {
        "encoder_name": "timm/vit_tiny_patch16_224",
        "classes": 4,
        "encoder_kwargs": {"img_size": 48, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2},
        "decoder_kwargs": {"read_out": ["blocks.0", "input"]},
    }
    size = (48, 48)
    any_size = False


def create(**kwargs: Any) -> HeatmapSegmenter:
    model = randomise(HeatmapSegmenter(**{**ENCODER, **kwargs})).double().eval()
    with torch.no_grad():
        model.offset.copy_(torch.linspace(-1, 1, len(model.offset)))
        model.log_scale.copy_(torch.linspace(-0.5, 0.5, len(model.log_scale) + 1)[1:])
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 33, 47, dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def by_hand(model: HeatmapSegmenter, heatmap: Tensor, depth: int, compress: float | None = None) -> Tensor:
    """scale * resize(f(H * W * heatmap)), class by class."""
    h, w = heatmap.shape[-2:]
    scaled = torch.asinh(compress * h * w * heatmap) if compress else h * w * heatmap
    resized = [F.interpolate(scaled[:, [k]], (33, 47), mode="bilinear") for k in range(heatmap.shape[1])]
    return model.log_scale[depth].exp() * torch.cat(resized, 1)


@pytest.mark.parametrize(("read_out", "compress"), [("input", None), ("layer3", 0.3)])
def test_mask_logits_are_scaled_heatmaps(images: Tensor, read_out: str, compress: float | None) -> None:
    model = create(compress=compress, decoder_kwargs={"read_out": read_out})
    output = model(images)
    decoded = HeatmapDecoder(model.classifier, read_out=read_out)(images)
    expected = by_hand(model, decoded.heatmaps, 0, compress) + model.offset[:, None, None]
    close(output.mask_logits, expected)
    assert torch.equal(output.logits, decoded.logits) and output.aux == ()


@pytest.mark.parametrize("compress", [None, 0.3])
def test_several_read_outs_add_up(images: Tensor, compress: float | None) -> None:
    model = create(compress=compress, decoder_kwargs={"read_out": PLACES})
    output, decoded = model(images), model.decoder(images)
    maps = [by_hand(model, heatmap, d, compress) for d, heatmap in enumerate(decoded.readouts)]
    offset = model.offset[:, None, None]
    close(output.mask_logits, sum(maps) + offset)
    assert len(output.aux) == 3
    for found, expected in zip(output.aux, maps, strict=True):
        close(found, expected + offset)


def test_the_mean_is_the_logit_less_what_biases_absorb(images: Tensor) -> None:
    model = create()
    with torch.no_grad():
        model.log_scale.zero_()
        model.offset.zero_()
        for name, parameter in model.classifier.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.zero_()
    output = model(images)
    close(output.mask_logits.mean((2, 3)), output.logits)


@pytest.mark.parametrize("classes", [None, [0], [3, 0, 1], [2], [1, 3], torch.tensor([0, 2])])
def test_constant_background(images: Tensor, classes) -> None:
    """Class k of the mask is the classifier's class k - 1; the background's logit is its offset."""
    model = create(background="constant")
    output = model(images, classes)
    logits, heatmaps, _ = HeatmapDecoder(model.classifier)(images)
    assert logits.shape == (3, 3)
    close(output.logits[:, 1:], logits)
    assert not output.logits[:, 0].any()
    maps = torch.cat([torch.zeros(3, 1, 33, 47, dtype=torch.float64), by_hand(model, heatmaps, 0)], 1)
    expected = (maps + model.offset[:, None, None])[:, range(4) if classes is None else [int(k) for k in classes]]
    close(output.mask_logits, expected)


@pytest.mark.parametrize("classes", [[4], torch.tensor([4])])
def test_wrong_classes_are_named_as_given(images: Tensor, classes) -> None:
    """Not by the classifier's column, which is another where it does not know the background."""
    with pytest.raises(InputError, match=r"classes \[4\] are outside 0..3"):
        create(background="constant")(images, classes)


def test_parameters_are_the_classifiers_and_scale_and_offset() -> None:
    tied, untied = create(), create(decoder_kwargs={"tie_weights": False})
    count = sum(p.numel() for p in create_classifier(**ENCODER).parameters())
    assert sum(p.numel() for p in tied.parameters()) == count + 1 + 4
    assert {n for n, _ in tied.named_parameters() if not n.startswith("decoder.classifier.")} == {
        "log_scale",
        "offset",
    }
    own = sum(p.numel() for n, p in untied.classifier.named_parameters() if n.endswith("weight"))
    assert sum(p.numel() for p in untied.parameters()) == count + 1 + 4 + own
    assert tied.classifier is tied.decoder.classifier


@pytest.mark.parametrize("tie_weights", [True, False])
def test_a_warm_start_reaches_the_decoder(images: Tensor, tie_weights: bool) -> None:
    model = create(decoder_kwargs={"tie_weights": tie_weights})
    state = randomise(create_classifier(**ENCODER)).double().state_dict()
    model.load_classifier_state(state)
    other = create(decoder_kwargs={"tie_weights": True})
    other.load_classifier_state(state)
    close(model(images).mask_logits, other(images).mask_logits)


def test_a_constant_background_takes_the_objects_of_a_whole_classifier(images: Tensor) -> None:
    classifier = randomise(create_classifier(**ENCODER)).double().eval()
    model = create(background="constant")
    model.load_classifier_state(classifier.state_dict())
    logits = model(images).logits
    close(logits[:, 1:], classifier(images)[:, 1:])
    assert (logits[:, 0] == 0).all()
    again = create(background="constant")  # its own state fits as it is
    again.load_classifier_state(model.classifier.state_dict())
    close(again(images).logits, logits)


def test_tied_and_untied_learn_apart(images: Tensor) -> None:
    """One step on the mask logits alone: tied, the image-level logits move with them in another way."""
    results = []
    for tie_weights in (True, False):
        torch.manual_seed(0)
        model = create(decoder_kwargs={"tie_weights": tie_weights})
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        model(images).mask_logits.square().mean().backward()
        optimizer.step()
        results.append(model(images))
    tied, untied = results
    assert not torch.allclose(tied.logits, untied.logits, rtol=1e-3)
    assert not torch.allclose(tied.mask_logits, untied.mask_logits, rtol=1e-3)


def test_scale_and_offset_can_be_fixed() -> None:
    model = HeatmapSegmenter(**ENCODER, scale=0.25, learn_scale=False)
    assert not model.log_scale.requires_grad and not model.offset.requires_grad
    torch.testing.assert_close(model.log_scale.exp(), torch.tensor([0.25]))
    assert set(model.state_dict()) >= {"log_scale", "offset"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(images: Tensor, dtype: torch.dtype) -> None:
    model = create(decoder_kwargs={"read_out": PLACES})
    exact = model(images).mask_logits
    output = copy.deepcopy(model).to(dtype)(images.to(dtype))
    assert output.logits.isfinite().all() and output.mask_logits.isfinite().all()
    assert F.cosine_similarity(output.mask_logits.double().flatten(), exact.flatten(), dim=0) > 0.9


def test_a_module_of_ones_own() -> None:
    model = HeatmapSegmenter("tests.models.test_segmenter:factory", classes=5, in_channels=2)
    assert model(torch.randn(2, 2, 20, 24)).mask_logits.shape == (2, 5, 20, 24)


def factory(in_channels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )


class Cumulated(nn.Module):
    """A classifier with an operation that has no rule."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(2).cumsum(2).mean(2))


class Sort(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(2).values.mean(2)


class SortedInAModule(Cumulated):
    """One with its operation in a module of its own."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(in_channels, num_classes)
        self.sort = Sort()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.sort(x.flatten(2)))


CUSTOM_RULES = {Sort: lambda c, inputs, output, module: (c / inputs[0].shape[2]).unsqueeze(2).expand(inputs[0].shape)}
NO_RULES = [Sort]


@pytest.mark.parametrize("custom_rules", ["tests.models.test_segmenter:CUSTOM_RULES", CUSTOM_RULES])
def test_custom_rules_by_name_or_as_they_are(custom_rules) -> None:
    model = HeatmapSegmenter(
        "tests.models.test_segmenter:SortedInAModule",
        classes=4,
        learn_scale=False,
        decoder_kwargs={"custom_rules": custom_rules},
    ).double()
    images = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    weight = model.classifier.head.weight
    close(model(images).mask_logits, torch.einsum("nchw,kc->nkhw", images, weight))


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("tests.models.test_segmenter:NO_RULES", "must be a mapping of module classes"),
        ("tests.models.test_segmenter:NONE", "custom_rules=.*must be 'package.module:NAME' of a mapping"),
    ],
)
def test_custom_rules_that_are_not_there(place: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        HeatmapSegmenter(
            "tests.models.test_segmenter:SortedInAModule", classes=4, decoder_kwargs={"custom_rules": place}
        )


def test_seed_and_fractions_reach_the_decoder(images: Tensor) -> None:
    model = create(decoder_kwargs={"seed": "contrastive", "read_out": [1.0, 0.5]})
    decoder = HeatmapDecoder(model.classifier, seed="contrastive", read_out=[1.0, 0.5])
    for found, expected in zip(model.decoder(images).readouts, decoder(images).readouts, strict=True):
        close(found, expected)
    logit = HeatmapDecoder(model.classifier, read_out=[1.0, 0.5])
    assert not torch.allclose(model.decoder(images).heatmaps, logit(images).heatmaps)
    assert len(model.log_scale) == 2 and create(decoder_kwargs={"read_out": 0.5}).decoder.read_out == (0.5,)


@pytest.mark.parametrize(
    "schedule", [{"memory_budget": 1e-4}, {"gradient_threshold": 0.0}, {"chunk_size": 3, "gradient_threshold": 0.0}]
)
def test_ways_to_save_memory_change_neither_masks_nor_gradients(images: Tensor, schedule: dict[str, Any]) -> None:
    kwargs = {"read_out": ["layer3", "layer1"]}
    plain, lean = create(decoder_kwargs=kwargs), create(decoder_kwargs={**kwargs, "schedule": schedule})
    lean.load_state_dict(plain.state_dict())
    assert lean.decoder.schedule == Schedule(**schedule)
    outputs = [model(images, samples=torch.tensor([0, 2])) for model in (plain, lean)]
    for one, other in zip(outputs[0].aux, outputs[1].aux, strict=True):
        close(one, other)
    for output in outputs:
        (output.mask_logits.square().mean() + output.logits.square().mean()).backward()
    for (name, one), other in zip(plain.named_parameters(), lean.parameters(), strict=True):
        if one.grad is not None:
            assert other.grad is not None, name
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"background": "none"}, InputError, "background must be 'class' or 'constant', got 'none'"),
        ({"scale": 0.0}, InputError, "scale must be positive"),
        ({"compress": -1.0}, InputError, "compress must be positive"),
        ({"decoder_kwargs": {"schedule": {"chunk_size": 0}}}, InputError, "chunk_size"),
        ({"decoder_kwargs": {"depth": 1, "scale": 2}}, InputError, "composite, .*image_size, not 'depth', 'scale'"),
        ({"decoder_kwargs": {"tie_weights": "false"}}, InputError, "must be true or false, got 'false'"),
        ({"decoder_kwargs": ["layer3"]}, InputError, "decoder_kwargs must be a mapping of composite.*got list"),
        ({"decoder_kwargs": {"read_out": "layer9"}}, InputError, "read_out 'layer9'"),
        ({"decoder_kwargs": {"composite": "nothing"}}, InputError, "unknown composite"),
        (
            {"encoder_name": "tests.models.test_segmenter:Cumulated", "encoder_kwargs": None},
            UnsupportedOpError,
            "cumsum",
        ),
        ({"share_offset": "no"}, InputError, "share_offset must be true or false, got 'no'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        HeatmapSegmenter(**{**ENCODER, **arguments})


@pytest.mark.parametrize("background", ["class", "constant"])
def test_a_shared_offset_is_that_of_every_object(background, images):
    own = create(background=background)
    shared = create(background=background, share_offset=True)
    state = own.state_dict()
    state["offset"] = torch.tensor([-0.5, 2.0])
    shared.load_state_dict(state)
    with torch.no_grad():
        own.offset.copy_(torch.tensor([-0.5, *[2.0] * (len(own.offset) - 1)]))
    for classes in (None, [2, 0], torch.tensor([1, 2])):
        output = shared(images, classes=classes)
        torch.testing.assert_close(output.mask_logits, own(images, classes=classes).mask_logits)
    output.mask_logits.sum().backward()  # of two objects
    assert shared.offset.grad.tolist() == pytest.approx([0.0, 2 * images.numel() / 3])


@pytest.mark.parametrize("background", ["class", "constant"])
@pytest.mark.parametrize("share_offset", [False, True])
def test_heatmaps_are_mask_logits_without_offset_and_prior(background, share_offset, images):
    kwargs = {"background": background, "share_offset": share_offset, "decoder_kwargs": {"read_out": "layer3"}}
    bare, model = create(**kwargs), create(**kwargs, class_prior=0.7)
    model.load_state_dict(bare.state_dict())
    with torch.no_grad():
        bare.offset.zero_()
    rows = torch.tensor([2, 0])
    found = model.find_heatmaps(model(images, samples=rows), rows)
    torch.testing.assert_close(found, bare(images, samples=rows).mask_logits)
    torch.testing.assert_close(bare.find_heatmaps(bare(images, samples=rows), rows), found)


@pytest.mark.parametrize("background", ["class", "constant"])
@pytest.mark.parametrize("classes", [None, [2, 0], torch.tensor([1, 2])], ids=str)
def test_a_class_prior_adds_the_logarithm_of_the_probability_of_each_object(background, classes, images):
    plain = create(background=background, decoder_kwargs={"read_out": ["layer3", "layer1"]})
    weighed = create(background=background, decoder_kwargs={"read_out": ["layer3", "layer1"]}, class_prior=0.7)
    weighed.load_state_dict(plain.state_dict())
    rows = torch.tensor([1, 0])
    expected, found = (model(images, classes=classes, samples=rows) for model in (plain, weighed))
    prior = 0.7 * expected.logits.double().sigmoid().log()
    prior[:, 0] = 0
    prior = prior[rows][:, [0, 1, 2, 3] if classes is None else list(classes)][..., None, None].detach()
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.mask_logits, expected.mask_logits + prior)
    torch.testing.assert_close(found.aux, tuple(one + prior for one in expected.aux))
    for one, other in zip(gradients(weighed, found), gradients(plain, expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def gradients(model, output):
    weights = torch.arange(output.mask_logits.numel(), dtype=torch.float64).cos().view_as(output.mask_logits)
    return torch.autograd.grad((output.mask_logits * weights).sum(), list(model.parameters()), materialize_grads=True)
