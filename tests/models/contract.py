"""The contract of every model, as one suite: a new model is a subclass with a class and its arguments.

class TestUNet(ModelContract):
    model_class = UNet
    arguments = {**ENCODER, "decoder_channels": [16, 16, 8, 8, 8]}
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tw_seg.errors import InputError
from tw_seg.models.backbones import create_classifier
from tw_seg.types import SegOutput

ENCODER: dict[str, Any] = {
    "encoder_name": "timm/resnet10t",
    "classes": 4,
    "encoder_kwargs": {"channels": [8, 8, 16, 16]},
}
"""Arguments of a small encoder that every model takes."""


def randomise(model: nn.Module) -> nn.Module:
    """Give every norm layer statistics and weights of its own, so that nothing is zero or one by accident."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def assert_same(found: SegOutput, expected: SegOutput) -> None:
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.mask_logits, expected.mask_logits)
    torch.testing.assert_close(found.aux, expected.aux)


class ModelContract:
    """Subclass it as ``Test...`` in the model's test file."""

    model_class: type[nn.Module]
    arguments: dict[str, Any]
    decodes = True
    """False: mask_logits never has a row (an image-level model)."""
    trainable = True
    """False: no parameter is trained and the output carries no gradient."""
    without_gradient: tuple[str, ...] = ()
    """Prefixes of trainable parameters that no output reads."""

    def create(self) -> nn.Module:
        return randomise(self.model_class(**self.arguments)).double()

    @pytest.fixture
    def model(self) -> nn.Module:
        return self.create().eval()

    @pytest.fixture
    def images(self) -> Tensor:
        return torch.randn(3, 3, 40, 48, dtype=torch.float64)

    def rows(self, samples: int) -> int:
        return samples if self.decodes else 0

    @pytest.mark.parametrize("size", [(32, 32), (64, 96), (33, 47), (71, 50)])
    def test_shapes_for_even_and_odd_sizes(self, model: nn.Module, size: tuple[int, int]) -> None:
        output = model(torch.randn(2, 3, *size, dtype=torch.float64))
        assert isinstance(output, SegOutput)
        assert output.logits.shape == (2, 4)
        for mask_logits in (output.mask_logits, *output.aux):
            assert mask_logits.shape == (self.rows(2), 4, *size)
            assert mask_logits.isfinite().all()
        assert model.num_classes == 4

    def test_classes_are_a_slice(self, model: nn.Module, images: Tensor) -> None:
        everything, some = model(images), model(images, classes=[3, 0, 2])
        torch.testing.assert_close(some.logits, everything.logits)
        torch.testing.assert_close(some.mask_logits, everything.mask_logits[:, [3, 0, 2]])

    def test_samples_are_a_slice(self, model: nn.Module, images: Tensor) -> None:
        everything, some = model(images), model(images, samples=torch.tensor([2, 0]))
        torch.testing.assert_close(
            some.mask_logits, everything.mask_logits[[2, 0]] if self.decodes else everything.mask_logits
        )
        self.check_logits_of_samples(some.logits, everything.logits, [2, 0])

    def check_logits_of_samples(self, found: Tensor, expected: Tensor, samples: list[int]) -> None:
        torch.testing.assert_close(found, expected)

    def test_no_samples(self, model: nn.Module, images: Tensor) -> None:
        output = model(images, classes=[1, 2], samples=torch.tensor([], dtype=torch.int64))
        assert output.mask_logits.shape == (0, 2, 40, 48)
        assert output.logits.shape == (3, 4)
        assert output.logits.isfinite().all()

    def test_a_step_without_samples_is_finite(self, images: Tensor) -> None:
        if not self.trainable:
            return
        model = self.create()
        output = model(images, samples=torch.tensor([], dtype=torch.int64))
        (output.logits.square().mean() + output.mask_logits.sum()).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)

    def test_eval_is_deterministic(self, model: nn.Module, images: Tensor) -> None:
        first, second = model(images), model(images)
        assert torch.equal(first.logits, second.logits)
        assert torch.equal(first.mask_logits, second.mask_logits)

    def test_backward_reaches_every_parameter(self, images: Tensor) -> None:
        model = self.create()
        expected = {
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not name.startswith(self.without_gradient)
        }
        if not self.trainable:
            assert not expected
            return
        output = model.train()(images)
        masks = torch.arange(self.rows(3) * 40 * 48).view(-1, 40, 48) % 4
        loss = output.logits.square().mean()
        if self.decodes:
            loss = loss + F.cross_entropy(output.mask_logits, masks)
        loss.backward()
        for name, parameter in model.named_parameters():
            if name in expected:
                assert parameter.grad is not None, f"{name} has no gradient"
                assert parameter.grad.isfinite().all(), f"{name} has a gradient that is not finite"
            elif name.startswith(self.without_gradient):
                assert parameter.grad is None, f"{name} has a gradient: take it off without_gradient"

    def test_state_dict_round_trip(self, model: nn.Module, images: Tensor) -> None:
        torch.manual_seed(1)
        other = self.create().eval()
        assert not torch.equal(other(images).logits, model(images).logits)
        other.load_state_dict(model.state_dict())
        assert_same(other(images), model(images))

    def test_deepcopy_is_equal_and_separate(self, model: nn.Module, images: Tensor) -> None:
        before = model(images)
        other = copy.deepcopy(model)
        assert_same(other(images), before)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        assert_same(model(images), before)

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
    def test_bad_images_are_named(self, model: nn.Module, images: Any, found: str) -> None:
        with pytest.raises(InputError, match=found):
            model(images)

    @pytest.mark.parametrize("classes", [[4], [-1], []])
    def test_bad_classes_are_named(self, model: nn.Module, images: Tensor, classes: list[int]) -> None:
        with pytest.raises(InputError, match="classes"):
            model(images, classes=classes)

    @pytest.mark.parametrize("samples", [torch.tensor([0.0]), torch.tensor([[0]]), torch.tensor([True])])
    def test_bad_samples_are_named(self, model: nn.Module, images: Tensor, samples: Tensor) -> None:
        with pytest.raises(InputError, match="samples"):
            model(images, samples=samples)

    def test_eval_forward_changes_nothing(self, model: nn.Module, images: Tensor) -> None:
        state = {name: value.clone() for name, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        needs = [parameter.requires_grad for parameter in model.parameters()]
        random, given = torch.get_rng_state(), images.clone()
        model(images)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert [parameter.requires_grad for parameter in model.parameters()] == needs
        assert torch.equal(torch.get_rng_state(), random)
        assert torch.equal(images, given) and not images.requires_grad
        assert not any(module._forward_hooks for module in model.modules())

    def test_inference_mode(self, model: nn.Module, images: Tensor) -> None:
        expected = model(images)
        with torch.inference_mode():
            found = model(images.clone(), samples=torch.tensor([0, 1, 2]))
        torch.testing.assert_close(found.mask_logits, expected.mask_logits.detach())
        torch.testing.assert_close(found.logits, expected.logits.detach())

    def test_bfloat16_autocast_is_finite(self, images: Tensor) -> None:
        model = self.create().float().eval()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(images.float())
        assert output.logits.isfinite().all()
        assert output.mask_logits.isfinite().all()

    def test_arguments_are_names_and_numbers(self) -> None:
        assert json.loads(json.dumps(self.arguments)) == self.arguments

    def test_warm_start_uses_the_classifier_state(self, model: nn.Module, images: Tensor) -> None:
        state = randomise(self.create_classifier()).double().state_dict()
        kept = {name: value.clone() for name, value in state.items()}
        before = model(images).logits
        model.load_classifier_state(state)
        after = model(images).logits
        assert not torch.equal(after, before)
        torch.manual_seed(1)
        other = self.create().eval()
        other.load_classifier_state(state)
        self.check_logits_of_warm_start(other(images).logits, after)
        assert state.keys() == kept.keys() and all(torch.equal(state[name], kept[name]) for name in kept)

    def check_logits_of_warm_start(self, found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected)

    def test_warm_start_names_what_is_missing(self, model: nn.Module) -> None:
        state = self.create_classifier().double().state_dict()
        del state["layer1.0.conv1.weight"]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(InputError, match=r"missing: layer1\.0\.conv1\.weight"):
            model.load_classifier_state(state)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def create_classifier(self) -> nn.Module:
        names = ("encoder_name", "in_channels", "classes", "encoder_kwargs")
        return create_classifier(**{k: v for k, v in self.arguments.items() if k in names})
