"""The contract of every model, as one suite: a new model is a subclass with a class and its arguments.

class TestUNet(ModelContract):
    model_class = UNet
    arguments = {**ENCODER, "decoder_channels": [16, 16, 8, 8, 8]}
    exports, compiles, any_size = True, True, True

One model is built for each subclass and shared by its tests: a test that changes it takes a copy.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.oracles.nets import DYNAMIC_BATCH
from tw_seg.errors import InputError
from tw_seg.models.backbones import create_classifier
from tw_seg.models.base import SegModel
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

    model_class: type[SegModel]
    arguments: dict[str, Any]
    size: tuple[int, int] = (40, 48)
    """Height and width of the images; where ``any_size`` is False, the only one."""
    without_gradient: tuple[str, ...] = ()
    """Prefixes of trainable parameters that no output reads."""

    # What the model can do: True is proved, False is proved too, None is not looked at with these arguments.
    exports: bool | None = None
    """``torch.export``, for any batch size."""
    compiles: bool | None = None
    """``torch.compile`` as one graph."""
    any_size: bool | None = True
    """Images of even, odd and large sizes."""

    def create(self, seed: int = 0) -> SegModel:
        torch.manual_seed(seed)
        model = self.model_class(**self.arguments)
        randomise(model)
        return model.double()

    @classmethod
    @functools.cache
    def share(cls, seed: int) -> SegModel:
        return cls().create(seed).eval()

    @classmethod
    @functools.cache
    def share_output(cls) -> SegOutput:
        logits, mask_logits, aux = cls.share(0)(cls().images_of(*cls.size))
        return SegOutput(logits.detach(), mask_logits.detach(), tuple(one.detach() for one in aux))

    @pytest.fixture
    def model(self) -> Iterator[SegModel]:
        model = self.share(0)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        yield model
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module.training for module in model.modules())
        model.zero_grad()

    @pytest.fixture
    def other(self) -> SegModel:
        """The same model from another seed, for this test alone."""
        return copy.deepcopy(self.share(1))

    @pytest.fixture
    def images(self) -> Tensor:
        return self.images_of(*self.size)

    @pytest.fixture
    def output(self) -> SegOutput:
        """What the model returns for the images."""
        return self.share_output()

    def images_of(self, height: int, width: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(3, 3, height, width, dtype=torch.float64, generator=generator)

    def rows(self, samples: int) -> int:
        return samples if self.model_class.makes_masks else 0

    # -------------------------------------------------------------------------------------------- the output

    def test_shapes(self, model: SegModel, output: SegOutput) -> None:
        self.check_shapes(model, output, self.size)

    def check_shapes(self, model: SegModel, output: SegOutput, size: tuple[int, int]) -> None:
        assert isinstance(output, SegOutput)
        assert output.logits.shape == (3, 4)
        for mask_logits in (output.mask_logits, *output.aux):
            assert mask_logits.shape == (self.rows(3), 4, *size)
            assert mask_logits.isfinite().all()
        assert model.num_classes == 4

    def test_classes_are_a_slice(self, model: SegModel, images: Tensor, output: SegOutput) -> None:
        some = model(images, classes=[3, 0, 2])
        torch.testing.assert_close(some.logits, output.logits)
        torch.testing.assert_close(some.mask_logits, output.mask_logits[:, [3, 0, 2]])

    def test_samples_are_a_slice(self, model: SegModel, images: Tensor, output: SegOutput) -> None:
        some = model(images, samples=torch.tensor([2, 0]))
        expected = output.mask_logits[[2, 0]] if self.model_class.makes_masks else output.mask_logits
        torch.testing.assert_close(some.mask_logits, expected)
        self.check_logits_of_samples(some.logits, output.logits, [2, 0])

    def check_logits_of_samples(self, found: Tensor, expected: Tensor, samples: list[int]) -> None:
        torch.testing.assert_close(found, expected)

    def test_no_samples(self, model: SegModel, images: Tensor) -> None:
        output = model(images, classes=[1, 2], samples=torch.tensor([], dtype=torch.int64))
        assert output.mask_logits.shape == (0, 2, *self.size)
        assert output.logits.shape == (3, 4)
        assert output.logits.isfinite().all()

    def test_eval_is_deterministic(self, model: SegModel, images: Tensor, output: SegOutput) -> None:
        again = model(images)
        assert torch.equal(again.logits, output.logits)
        assert torch.equal(again.mask_logits, output.mask_logits)

    def test_inference_mode(self, model: SegModel, images: Tensor, output: SegOutput) -> None:
        with torch.inference_mode():
            found = model(images.clone(), samples=torch.tensor([0, 1, 2]))
        torch.testing.assert_close(found.mask_logits, output.mask_logits)
        torch.testing.assert_close(found.logits, output.logits)

    def test_bfloat16_autocast_is_finite(self, model: SegModel, images: Tensor) -> None:
        single = copy.deepcopy(model).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = single(images.float())
        assert output.logits.isfinite().all()
        assert output.mask_logits.isfinite().all()

    def test_eval_forward_changes_nothing(self, model: SegModel, images: Tensor) -> None:
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

    def test_arguments_are_checked(self, model: SegModel, images: Tensor) -> None:
        """In the one place that has every case in ``test_base.py``."""
        assert self.model_class.forward is SegModel.forward
        with pytest.raises(InputError, match=r"images must have the shape \(N, 3, H, W\), got \(2, 4, 32, 32\)"):
            model(torch.zeros(2, 4, 32, 32))
        with pytest.raises(InputError, match=r"classes \[4\] are outside 0..3"):
            model(images, classes=[4])
        with pytest.raises(InputError, match="samples must be"):
            model(images, samples=torch.tensor([0.0]))
        count = len(images)
        with pytest.raises(InputError, match=f"samples must be .* < {count}, the number of images, found {count}$"):
            model(images, samples=torch.tensor([0, count]))

    def test_arguments_are_names_and_numbers(self) -> None:
        assert json.loads(json.dumps(self.arguments)) == self.arguments

    # ---------------------------------------------------------------------------------------------- training

    def test_backward_reaches_every_parameter(self, model: SegModel, images: Tensor) -> None:
        model = copy.deepcopy(model).train()
        expected = {
            name
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and not name.startswith(self.without_gradient)
        }
        assert bool(expected) == model.trainable
        if not model.trainable:
            assert not model(images).mask_logits.requires_grad
            return
        output = model(images)
        masks = torch.arange(self.rows(3) * self.size[0] * self.size[1]).view(-1, *self.size) % 4
        loss = output.logits.square().mean()
        if self.model_class.makes_masks:
            loss = loss + F.cross_entropy(output.mask_logits, masks)
        loss.backward()
        for name, parameter in model.named_parameters():
            if name in expected:
                assert parameter.grad is not None, f"{name} has no gradient"
                assert parameter.grad.isfinite().all(), f"{name} has a gradient that is not finite"
            elif name.startswith(self.without_gradient):
                assert parameter.grad is None, f"{name} has a gradient: take it off without_gradient"

    def test_a_step_without_samples_is_finite(self, model: SegModel, images: Tensor) -> None:
        if not model.trainable:
            return
        model = copy.deepcopy(model).train()
        output = model(images, samples=torch.tensor([], dtype=torch.int64))
        (output.logits.square().mean() + output.mask_logits.sum()).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)

    def test_what_the_training_task_may_ask(self, model: SegModel, images: Tensor) -> None:
        """Its paths exist, its parameters have roles, and what it says it cannot do is refused."""
        modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
        assert {*model.decoder_paths} <= modules.keys() and {*model.scale_names} <= parameters.keys()
        roles = {name: model.parameter_role(name) for name in parameters}
        assert {name for name, role in roles.items() if role == "scale"} == {*model.scale_names}
        decoder = {id(p) for path in model.decoder_paths for p in modules[path].parameters()}
        assert {id(parameters[name]) for name, role in roles.items() if role == "decoder"} == decoder
        if model.classifier_path is not None:
            assert modules[model.classifier_path].state_dict().keys() == self.create_classifier().state_dict().keys()
        if not model.needs_calibration:
            with pytest.raises(InputError, match="nothing to calibrate"):
                model.calibrate([])
        if not model.can_gate:
            for refused in (lambda: model.record(images), lambda: model.decode_pairs(None, images, images)):
                with pytest.raises(InputError, match="does not decode single pairs"):
                    refused()

    # ------------------------------------------------------------------------------------- copies and weights

    def test_state_dict_round_trip(self, model: SegModel, other: SegModel, images: Tensor, output: SegOutput) -> None:
        assert not torch.equal(other(images).logits, output.logits)
        other.load_state_dict(model.state_dict())
        assert_same(other(images), output)

    def test_deepcopy_is_equal_and_separate(self, model: SegModel, images: Tensor, output: SegOutput) -> None:
        other = copy.deepcopy(model)
        assert_same(other(images), output)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        assert_same(model(images), output)

    def test_warm_start_uses_the_classifier_state(
        self, model: SegModel, other: SegModel, images: Tensor, output: SegOutput
    ) -> None:
        torch.manual_seed(2)
        state = randomise(self.create_classifier()).double().state_dict()
        kept = {name: value.clone() for name, value in state.items()}
        model = copy.deepcopy(model)
        for one in (model, other):
            one.load_classifier_state(state)
        after = model(images).logits
        assert not torch.equal(after, output.logits)
        self.check_logits_of_warm_start(other(images).logits, after)
        assert state.keys() == kept.keys() and all(torch.equal(state[name], kept[name]) for name in kept)

    def check_logits_of_warm_start(self, found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected)

    def test_warm_start_names_what_is_missing(self, model: SegModel) -> None:
        state = self.create_classifier().double().state_dict()
        missing = next(name for name in state if name.endswith("weight") and state[name].ndim == 4)
        del state[missing]
        with pytest.raises(InputError, match=f"missing: {missing}"):
            model.load_classifier_state(state)  # the fixture sees that nothing was loaded

    def create_classifier(self) -> nn.Module:
        names = ("encoder_name", "in_channels", "classes", "encoder_kwargs")
        return create_classifier(**{k: v for k, v in self.arguments.items() if k in names})

    # ------------------------------------------------------------------------------------------ capabilities

    def test_any_size(self, model: SegModel) -> None:
        sizes = [(64, 96), (33, 47)]
        if self.any_size:
            for size in sizes:
                self.check_shapes(model, model(self.images_of(*size)), size)
        elif self.any_size is False:
            for size in sizes:
                with pytest.raises((InputError, AssertionError), match="size|height|width"):
                    model(self.images_of(*size))

    def test_exports(self, model: SegModel, images: Tensor, output: SegOutput) -> None:
        batch = {0: torch.export.Dim("batch", min=1, max=64)} if DYNAMIC_BATCH else None
        if self.exports:
            program = torch.export.export(model, (images,), dynamic_shapes={"images": batch}).module()
            for n in (1, 2) if DYNAMIC_BATCH else (len(images),):
                found = program(images[:n])
                torch.testing.assert_close(found.logits, output.logits[:n])
                torch.testing.assert_close(found.mask_logits, output.mask_logits[: self.rows(n)])
        elif self.exports is False:
            with pytest.raises(InputError, match="neither compiled nor exported"):
                torch.export.export(model, (images,), dynamic_shapes={"images": batch})

    def test_compiles(self, model: SegModel, images: Tensor, output: SegOutput) -> None:
        if self.compiles is None:
            return
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        if self.compiles:
            found = compiled(images, [2, 0], torch.tensor([1]))
            expected = (
                output.mask_logits[1:2, [2, 0]] if self.model_class.makes_masks else output.mask_logits[:, [2, 0]]
            )
            torch.testing.assert_close(found.mask_logits, expected)
        else:
            with pytest.raises(Exception, match="neither compiled nor exported"):
                compiled(images)
