"""Classifiers that are refused when the decoder is made: whoever follows the advice gets heatmaps."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tw_seg.errors import InputError, TraceError, UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder


def small() -> nn.Sequential:
    torch.manual_seed(0)
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *pool, nn.Linear(4, 3)).eval()


class Then(nn.Module):
    """A small classifier and a function of its logits."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.function = small(), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.net(x))


class Before(nn.Module):
    """A function of the images before a small classifier."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.function = small(), function

    def forward(self, x: Tensor) -> Any:
        return self.net(self.function(x))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, x: Tensor, *, scale: float) -> Tensor:
        return self.net(x) * scale


class Wrapper(nn.Module):
    """As DistributedDataParallel: a forward that cannot be traced, around a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x) if x.sum() < 1e9 else x


@dataclass
class Output:
    hidden: Tensor | None
    logits: Tensor


class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """As transformers' own: a mapping with attributes."""


def check_works(classifier: nn.Module, logits: Tensor | None = None) -> None:
    images = torch.rand(2, 3, 8, 8)
    decoded = HeatmapDecoder(classifier).eval()(images)
    torch.testing.assert_close(decoded.logits, small()(images) if logits is None else logits)
    assert decoded.heatmaps.abs().sum() > 0


@pytest.mark.parametrize(
    ("classifier", "named"),
    [
        (lambda x: x, "must be a torch.nn.Module, got <function"),
        ("resnet18", r"make it first, for example with getattr\(torchvision.models, 'resnet18'\)\(\)"),
        (nn.Linear, "got the class Linear: call it first"),
        (None, "must be a torch.nn.Module, got None"),
    ],
)
def test_what_is_no_module(classifier: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        HeatmapDecoder(classifier)


def test_lazy_modules() -> None:
    net = nn.Sequential(*small()[:-1], nn.LazyLinear(3)).eval()
    with pytest.raises(TraceError, match=r"classifier.4 \(LazyLinear\) is lazy.*Run the classifier once"):
        HeatmapDecoder(net)
    logits = net(torch.rand(2, 3, 8, 8))
    assert logits.shape == (2, 3)
    HeatmapDecoder(net).eval()(torch.rand(2, 3, 8, 8))


def test_compiled_modules() -> None:
    classifier = torch.compile(small(), backend="eager")
    with pytest.raises(TraceError, match=r"the classifier is compiled.*, which is classifier._orig_mod"):
        HeatmapDecoder(classifier)
    check_works(classifier._orig_mod)
    net = nn.Sequential(torch.compile(small(), backend="eager"))
    with pytest.raises(TraceError, match=r"classifier.0 is compiled.*, which is classifier.0._orig_mod"):
        HeatmapDecoder(net)
    net[0] = net[0]._orig_mod
    check_works(net)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("script", [torch.jit.script, lambda m: torch.jit.trace(m, torch.rand(1, 3, 8, 8))])
def test_torchscript(script: Callable[[nn.Module], Any]) -> None:
    classifier = script(small())
    with pytest.raises(TraceError, match=r"TorchScript.*original.load_state_dict\(classifier.state_dict\(\)\)"):
        HeatmapDecoder(classifier)
    original = small()
    original.load_state_dict(classifier.state_dict())
    check_works(original)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_quantised_modules() -> None:
    classifier = torch.ao.quantization.quantize_dynamic(small(), {nn.Linear})
    with pytest.raises(TraceError, match=r"classifier.4 \(Linear\) is quantised.*before it was quantised"):
        HeatmapDecoder(classifier)


@pytest.mark.parametrize(
    "output",
    [
        lambda y: {"loss": None, "logits": y},
        lambda y: {"out": y},
        lambda y: Output(None, y),
        lambda y: ModelOutput(logits=y),
    ],
)
def test_outputs_by_name(output: Callable[[Tensor], Any]) -> None:
    classifier = Then(output)
    with pytest.raises(TraceError, match=r"it returns .* by name. Pass a module around it") as caught:
        HeatmapDecoder(classifier)
    code = str(caught.value).partition("around it:\n")[2]
    exec(code, {"torch": torch, "HeatmapDecoder": HeatmapDecoder, "classifier": classifier}, names := {})
    check_works(names["Logits"](classifier))


def test_no_output() -> None:
    with pytest.raises(TraceError, match="must return logits, or a tuple that begins with them, not None"):
        HeatmapDecoder(Then(lambda y: None))


def test_more_arguments() -> None:
    with pytest.raises(TraceError, match=r"takes \['x', 'scale'\]. Pass a module .* self.model\(images, scale=...\)"):
        HeatmapDecoder(Scaled())

    class One(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            return self.model(images, scale=1)

    check_works(One(Scaled()))


def test_wrappers() -> None:
    classifier = Wrapper(small())
    with pytest.raises(TraceError, match="It is wrapped around another module: pass that, classifier.module"):
        HeatmapDecoder(classifier)
    check_works(classifier.module)
    check_works(nn.DataParallel(small()))


def test_decoders_themselves() -> None:
    decoder = HeatmapDecoder(small())
    with pytest.raises(InputError, match=r"this HeatmapDecoder decodes already: pass .* classifier.classifier"):
        HeatmapDecoder(decoder)
    check_works(decoder.classifier)
    with pytest.raises(InputError, match=r"this Sequential decodes already.* classifier.0.classifier"):
        HeatmapDecoder(nn.Sequential(decoder))


@pytest.mark.parametrize(
    ("classifier", "shape"),
    [(nn.Conv2d(3, 4, 3), r"\(2, 4, 14, 14\)"), (Then(lambda y: y[:, :0]), r"\(2, 0\)")],
)
def test_outputs_that_are_no_logits(classifier: nn.Module, shape: str) -> None:
    with pytest.raises(InputError, match=rf"logits of shape \(N, K\), it returned {shape}"):
        HeatmapDecoder(classifier)


@pytest.mark.parametrize("mix", [lambda x: x - x.mean(0), lambda x: x - x.mean(0, keepdim=True), lambda x: x.cumsum(0)])
def test_images_of_a_batch_that_are_mixed(mix: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedOpError):
        HeatmapDecoder(Before(mix))


@pytest.mark.parametrize("end", [lambda y: y.log_softmax(1), nn.LogSoftmax(1), lambda y: y - y.logsumexp(1, True)])
def test_logarithms_of_probabilities_are_warned_of(end: Callable[[Tensor], Tensor]) -> None:
    with pytest.warns(UserWarning, match="ends in a log_softmax.*replace the module with torch.nn.Identity"):
        HeatmapDecoder(Then(end))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HeatmapDecoder(Then(nn.Identity()))


def test_a_module_with_a_rule_of_the_user_may_be_anything() -> None:
    class quantized(nn.Module):
        __module__ = "some.quantized.layers"

        def forward(self, x: Tensor) -> Tensor:
            return x * 1

    with pytest.raises(TraceError, match="quantised"):
        HeatmapDecoder(nn.Sequential(quantized(), small()))
    rules: Any = {quantized: lambda c, inputs, output, module: c}
    HeatmapDecoder(nn.Sequential(quantized(), small()), custom_rules=rules)
