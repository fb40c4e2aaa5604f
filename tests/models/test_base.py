"""What all models have in common, on a model of two layers; and that the contract sees a model that breaks it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.contract import ModelContract
from tw_seg.errors import InputError
from tw_seg.models.base import SegModel
from tw_seg.types import SegOutput


class TinyModel(SegModel):
    """A convolution and a BatchNorm for the encoder, the same for the decoder, a scale."""

    classifier_path = "encoder"
    decoder_paths = ("decoder",)
    scale_names = ("scale",)

    def __init__(self, encoder_name: str, encoder_weights: str | None = None, **kwargs: Any) -> None:
        super().__init__(encoder_name, encoder_weights, **kwargs)
        k = self.num_classes
        self.encoder = nn.Sequential(nn.Conv2d(self.in_channels, k, 1), nn.BatchNorm2d(k))
        self.decoder = nn.Sequential(nn.Conv2d(k, k, 1), nn.BatchNorm2d(k))
        self.scale = nn.Parameter(torch.ones(1))

    def segment(self, images: Tensor, classes: tuple[int, ...] | Tensor, samples: Tensor | None) -> SegOutput:
        features = self.encoder(images)
        rows = features if samples is None else features.index_select(0, samples)
        if samples is not None and len(samples) == 0:
            return SegOutput(features.mean((2, 3)), features.new_zeros((0, len(classes), *images.shape[2:])))
        return SegOutput(features.mean((2, 3)), self.scale * self.decoder(rows)[:, list(classes)])


class OneSize(TinyModel):
    def segment(self, images: Tensor, classes: tuple[int, ...] | Tensor, samples: Tensor | None) -> SegOutput:
        if images.shape[2:] != (40, 48):
            raise InputError("images must have the size 40 x 48")
        return super().segment(images, classes, samples)


class DataDependent(TinyModel):
    """Looks at its values, which neither a compiler nor an export can."""

    def segment(self, images: Tensor, classes: tuple[int, ...] | Tensor, samples: Tensor | None) -> SegOutput:
        if torch.compiler.is_compiling():
            raise InputError("it can be neither compiled nor exported")
        return super().segment(images, classes, samples)


class TestTinyModel(ModelContract):
    model_class = TinyModel
    arguments = {"encoder_name": "none", "classes": 4}
    exports = compiles = any_size = True

    def create_classifier(self) -> nn.Module:
        return TinyModel(**self.arguments).encoder


class TestOneSize(TestTinyModel):
    model_class = OneSize
    exports = compiles = None
    any_size = False


class TestDataDependent(TestTinyModel):
    model_class = DataDependent
    exports = compiles = False


@pytest.mark.parametrize(
    ("contract", "flag", "said"),
    [
        (TestOneSize, "any_size", True),
        (TestTinyModel, "any_size", False),
        (TestDataDependent, "exports", True),
        (TestTinyModel, "exports", False),
        (TestDataDependent, "compiles", True),
        (TestTinyModel, "compiles", False),
    ],
)
def test_a_capability_that_is_not_so_is_seen(contract: type[ModelContract], flag: str, said: bool) -> None:
    wrong = type("Wrong", (contract,), {flag: said})()
    given = [wrong.share(0)]
    if flag != "any_size":
        given += [wrong.images_of(40, 48), wrong.share_output()]
    with pytest.raises((Exception, pytest.fail.Exception), match="DID NOT RAISE|40 x 48|neither compiled"):
        getattr(wrong, f"test_{flag}")(*given)


def create(**kwargs: Any) -> TinyModel:
    return TinyModel("none", **{"classes": 4, **kwargs})


# ------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(3, 32, 32), r"\(3, 32, 32\)"),
        (torch.zeros(2, 4, 32, 32), r"\(2, 4, 32, 32\)"),
        (torch.zeros(2, 32, 32, 3), r"\(2, 32, 32, 3\)"),
        (torch.zeros(0, 3, 32, 32), r"\(0, 3, 32, 32\)"),
        ([[0.0]], "list"),
    ],
)
def test_bad_images_are_named(images: Any, found: str) -> None:
    with pytest.raises(InputError, match=found):
        create()(images)


@pytest.mark.parametrize(
    ("classes", "found"),
    [([4], r"\[4\]"), ([-1], r"\[-1\]"), ([0, 9], r"\[9\]"), (torch.tensor([4]), r"\[4\]"), ([], "none")]
    + [(torch.tensor([0.5]), "torch.float32")],
)
def test_bad_classes_are_named(classes: Any, found: str) -> None:
    with pytest.raises(InputError, match=f"classes.*{found}"):
        create()(torch.zeros(2, 3, 8, 8), classes=classes)


@pytest.mark.parametrize("samples", [torch.tensor([0.0]), torch.tensor([[0]]), torch.tensor([True]), torch.tensor([2])])
def test_bad_samples_are_named(samples: Tensor) -> None:
    with pytest.raises(InputError, match="samples"):
        create()(torch.zeros(2, 3, 8, 8), samples=samples)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"classes": 0}, "at least 1, got 3 and 0"),
        ({"in_channels": 0}, "at least 1, got 0 and 4"),
        ({"encoder_kwargs": {"weights": "DEFAULT"}}, r"must not hold \['weights'\]"),
    ],
)
def test_bad_arguments_of_the_encoder_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        create(**arguments)


# ------------------------------------------------------------------------------- what the training task asks


def test_parameters_have_roles() -> None:
    model = create()
    roles = {name: model.parameter_role(name) for name, _ in model.named_parameters()}
    assert {name for name, role in roles.items() if role == "encoder"} == {
        f"encoder.{layer}.{kind}" for layer in (0, 1) for kind in ("weight", "bias")
    }
    assert {name for name, role in roles.items() if role == "decoder"} == {
        f"decoder.{layer}.{kind}" for layer in (0, 1) for kind in ("weight", "bias")
    }
    assert roles["scale"] == "scale"
    assert model.parameter_role("decoders.weight") == "encoder"  # a path is whole names


def test_batch_norms_of_the_encoder() -> None:
    model = create()
    assert model.encoder_batch_norms() == [model.encoder[1]]


def test_a_model_without_a_classifier_must_load_weights_itself() -> None:
    model = create()
    model.classifier_path = None  # type: ignore[misc]
    with pytest.raises(NotImplementedError, match="TinyModel has no classifier"):
        model.load_classifier_state({})
