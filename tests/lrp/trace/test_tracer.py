"""The traced graph computes what the forward computes, and tracing leaves the classifier as it was."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import prune
from torchvision.models import SwinTransformer, VisionTransformer

from tests.oracles.gradients import input_x_gradient
from tw_seg.errors import TraceError
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.trace.tracer import Traced, symbolic_trace

SHAPE = (3, 8, 12)


class Forward(nn.Module):
    """A function of the images as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def trace(net: nn.Module, shape: tuple[int, ...] | None = SHAPE, **options: Any) -> Traced:
    settings = {"training": False, "known_functions": (), "defaults": {}, **options}
    return symbolic_trace(net, image_shape=shape, **settings)


def run(net: nn.Module, traced: Traced, images: Tensor) -> Any:
    return fx.Interpreter(net, graph=traced.graph).run(images)


def targets(traced: Traced) -> list[Any]:
    return [node.target for node in traced.graph.nodes]


def images(batch: int = 5, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(batch, *shape, dtype=torch.float64)


# Control flow


def pad(x: Tensor) -> Tensor:
    h, w = x.shape[-2:]
    if w % 8 or h % 8:
        x = F.pad(x, (0, (8 - w % 8) % 8, 0, (8 - h % 8) % 8))
    return x.mean((2, 3))


def same_padding(x: Tensor) -> Tensor:
    h, w = x.shape[2:]
    rows = max((math.ceil(h / 3) - 1) * 3 + 5 - h, 0)
    return F.pad(x, [0, 0, rows // 2, rows - rows // 2]).sum((2, 3)) / round(w / 5) * math.floor(h / 3)


def loop(x: Tensor) -> Tensor:
    total = x.new_zeros(x.shape[0], 3)
    for i in range(x.shape[2] // 2):
        total = total + x[:, :, 2 * i, i]
    return total * math.sqrt(x.shape[3]) * int(x.shape[3] / 5)


def divide(x: Tensor) -> Tensor:
    rows, left = divmod(x.shape[3], 5)
    return x[..., :rows].mean((2, 3)) if left else x.mean((2, 3))


def chunks(x: Tensor) -> Tensor:
    return torch.stack([part.mean((2, 3)) for part in x.split(5, dim=3)]).sum(0)


@pytest.mark.parametrize("function", [pad, same_padding, loop, divide, chunks])
def test_a_branch_on_a_size_is_taken_for_that_size(function: Callable[[Tensor], Tensor]) -> None:
    net, x = Forward(function), images()
    traced = trace(net)
    assert traced.specialised
    assert torch.equal(run(net, traced, x), function(x))


def unpacked(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, c, h * w).transpose(1, 2).mean(1)


def by_axes(x: Tensor) -> Tensor:
    if x.ndim != 4 or x.dim() == 3 or len(x.shape) != 4 or not x.is_floating_point() or x.device.type != "cpu":
        raise ValueError(x.shape)
    keep = [size for size in x.shape[:2]]
    return x.reshape(*keep, -1).amax(2) * x.new_ones((x.shape[0],) + (1,) * (x.ndim - 3))


def sizes(x: Tensor) -> Tensor:
    rolled = torch.roll(x, (x.shape[2] // 2, -(x.shape[3] // 2)), dims=(2, 3))
    rows = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
    return (F.pad(rolled, (0, x.shape[3] % 8)) * rows.unsqueeze(1)).sum((2, 3))


def parts(x: Tensor) -> Tensor:
    return torch.cat([part.mean((2, 3)) for part in torch.split(x, [1, 2], dim=1)], 1)


@pytest.mark.parametrize("function", [unpacked, by_axes, sizes, parts])
def test_sizes_that_are_only_computed_with_stay_free(function: Callable[[Tensor], Tensor]) -> None:
    net = Forward(function)
    traced = trace(net)
    assert not traced.specialised
    for x in (images(1), images(4, (3, 15, 7))):
        assert torch.equal(run(net, traced, x), function(x))


def test_sizes_of_parameters_do_not_specialise() -> None:
    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.weight.T if self.weight.shape[0] > 2 else x

    net = Net(288, 4).double()
    traced = trace(net)
    assert not traced.specialised
    x = images()
    assert torch.equal(run(net, traced, x), net(x))


UNREGISTERED = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.sum() if x.shape[0] > 2 else x, "batch size.*False for 2 images and True for 3 images"),
        (lambda x: sum(row.mean() for row in x), "batch size"),
        (lambda x: x.relu() if x.mean() > 0 else x, "values of a tensor"),
        (lambda x: x * int(x.argmax()), "values of a tensor"),
        (lambda x: x.relu() if x.mean().item() > 0 else x, "item"),
        (lambda x: x.view(2, 7)[0] if x.view(2, 7).shape[0] > 3 else x, "invalid for input of size.*image_size"),
        (lambda x: x * random.random(), "random numbers in Python"),
        (lambda x: x * UNREGISTERED, "not registered"),
    ],
)
def test_what_no_graph_can_hold_is_refused(function: Callable[[Tensor], Tensor], message: str) -> None:
    state = random.getstate()
    with pytest.raises(TraceError, match=message):
        trace(Forward(function))
    assert random.getstate() == state


def test_an_error_names_the_module_and_the_line() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Sequential(Forward(lambda x: x if x.max() > 0 else -x)))
    with pytest.raises(TraceError, match=r"in '1\.0', .*test_tracer\.py:\d+"):
        trace(net)


def test_a_second_required_argument_is_refused() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(TraceError, match=r"one argument.*\['x', 'y'\]"):
        trace(Net())


def test_other_arguments_keep_their_defaults() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, factor: float = 2.0, *, double: bool = False) -> Tensor:
            return x * factor * (2 if double else 1)

    x = images()
    assert torch.equal(run(Net(), trace(Net()), x), 2 * x)
    assert torch.equal(run(Net(), trace(Net(), defaults={"double": True}), x), 4 * x)
    assert [node.op for node in trace(Net()).graph.nodes].count("placeholder") == 1


# What is recorded


@fx.wrap
def wrapped(x: Tensor, times: int) -> Tensor:
    for _ in range(times):
        x = torch.tanh(x)
    return x


def test_wrapped_functions_are_traced_into_unless_they_are_known() -> None:
    net, x = Forward(lambda x: wrapped(x, 2)), images()
    traced = trace(net)
    assert wrapped not in targets(traced) and targets(traced).count(torch.tanh) == 2
    assert torch.equal(run(net, traced, x), x.tanh().tanh())
    function = wrapped.__wrapped__ if hasattr(wrapped, "__wrapped__") else wrapped
    assert targets(trace(net, known_functions={function})).count(function) == 1


def assign(x: Tensor) -> Tensor:
    mask = torch.zeros(x.shape[2:], dtype=x.dtype, device=x.device)
    mask[1:3, -2:] = 1
    mask[0] = x.shape[1]
    y = x * mask
    y[:, 0] = 7.0
    y += x
    y /= 3
    return y


def test_assignments_and_in_place_operators_are_recorded() -> None:
    net, x = Forward(assign), images()
    traced = trace(net)
    assert torch.equal(run(net, traced, x), assign(x))
    assert not traced.specialised


def test_random_numbers_are_drawn_in_every_run() -> None:
    net, x = Forward(lambda x: x + torch.rand(3, 1, 1)), images()
    state = torch.get_rng_state()
    traced = trace(net)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    expected = [net(x), net(x)]
    torch.manual_seed(1)
    assert all(torch.equal(run(net, traced, x), e) for e in expected) and not torch.equal(*expected)


def test_tensors_from_elsewhere_are_copied_into_each_run() -> None:
    table = torch.arange(3.0, dtype=torch.float64).reshape(3, 1, 1)

    def function(x: Tensor) -> Tensor:
        return (x * table).add_(table)

    net, x = Forward(function), images()
    traced = trace(net)
    before = table.clone()
    assert torch.equal(run(net, traced, x), function(x))
    assert torch.equal(fx.GraphModule(net, traced.graph)(x), function(x))
    assert torch.equal(table, before) and not hasattr(net, "_tensor_constant0")


def test_methods_of_tensors_from_elsewhere_are_recorded() -> None:
    mean, table = torch.full((3, 1, 1), 0.5), torch.arange(20.0)

    def function(x: Tensor) -> Tensor:
        rows = table[: x.shape[2]].to(x.device, x.dtype).expand(x.shape[0], 1, -1).unsqueeze(3)
        return (x - mean.to(x.device)) * rows

    net = Forward(function)
    traced = trace(net)
    assert not traced.specialised
    for x in (images(), images(2, (3, 5, 6))):
        assert torch.equal(run(net, traced, x), function(x))


def test_an_autocast_block_may_name_the_device_of_its_input() -> None:
    def function(x: Tensor) -> Tensor:
        with torch.autocast(device_type=x.device.type, enabled=False):
            return x.relu()

    net, x = Forward(function), images()
    assert torch.equal(run(net, trace(net), x), x.relu())


def test_leaves_stay_whole() -> None:
    net = nn.Sequential(Forward(torch.tanh), nn.MultiheadAttention(12, 2))
    assert "0" in targets(trace(net[:1], rules=(Forward,)))
    assert "0" not in targets(trace(net[:1]))


# Layers that compute something else than their class


class TripleConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class TripleInside(nn.Conv2d):
    def _conv_forward(self, *args: Any) -> Tensor:
        return 3 * super()._conv_forward(*args)


class TripleLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class TripleNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def layers(conv: Any = nn.Conv2d, norm: Any = nn.BatchNorm2d, linear: Any = nn.Linear) -> nn.Sequential:
    torch.manual_seed(0)
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(conv(3, 4, 3), norm(4), nn.ReLU(), *pool, linear(4, 2)).double().eval()
    net[1].running_mean.normal_()
    return net


def triple(module: nn.Module, method: str = "forward") -> None:
    original = getattr(module, method)
    setattr(module, method, lambda *args: 3 * original(*args))


def assert_decodes(net: nn.Module, **options: Any) -> None:
    """Logits are the net's own, heatmaps are input x gradient."""
    x = images(2)
    decoded = HeatmapDecoder(net, composite_kwargs={"epsilon": 0.0}, **options).eval()(x)
    torch.testing.assert_close(decoded.logits, net(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(decoded.heatmaps, input_x_gradient(net, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kinds", [{"conv": TripleConv}, {"conv": TripleInside}, {"norm": TripleNorm},
                                   {"linear": TripleLinear}])  # fmt: skip
def test_a_subclass_is_not_taken_for_its_base(kinds: Any) -> None:
    assert_decodes(layers(**kinds))


@pytest.mark.parametrize(
    ("layer", "method"), [*((i, "forward") for i in (0, 1, 2, 3, 5)), (0, "_conv_forward"), (1, "_check_input_dim")]
)
def test_a_layer_with_a_method_of_its_own_is_not_taken_for_its_class(layer: int, method: str) -> None:
    net = layers()
    if method == "_check_input_dim":
        net[layer]._check_input_dim = lambda x: None
    else:
        triple(net[layer], method)
    assert_decodes(net)


WEIGHTS: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "prune": lambda m: prune.l1_unstructured(m, "weight", 0.3),
}


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("conv", [nn.Conv2d, TripleConv])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_computed(name: str, conv: Any, patched: bool) -> None:
    net = layers(conv)
    WEIGHTS[name](net[0])
    if patched:
        triple(net[0])
    assert_decodes(net.double().eval())


def test_attention_with_a_forward_of_its_own() -> None:
    """As the same attention and a product after it."""

    class Attends(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head, self.factor = nn.Conv2d(3, 8, 3), nn.Linear(8, 2), factor
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).flatten(2).transpose(1, 2)
            return self.head(self.attention(tokens, tokens, tokens)[0].mean(1) * self.factor)

    net, expected = Attends(1).double().eval(), Attends(3).double().eval()
    attend = net.attention.forward
    net.attention.forward = lambda *args: (3 * attend(*args)[0], None)
    decoder = HeatmapDecoder(net).eval()
    x = images(2)
    assert not decoder.graph(x).specialised
    torch.testing.assert_close(decoder(x)[:2], HeatmapDecoder(expected).eval()(x)[:2], rtol=1e-10, atol=1e-10)


def test_a_custom_rule_keeps_a_layer_with_a_forward_of_its_own_whole() -> None:
    net = layers()
    triple(net[2])
    assert_decodes(net, custom_rules={nn.ReLU: lambda c, inputs, output, module: c * 3 * (inputs[0] > 0)})


# Nothing changes


class Stateful(nn.Module):
    """Changes all that a forward may change, before and after it asks for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 3, 1))
        self.dropout = nn.Dropout()
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("runs", torch.zeros(()))
        self.cache: dict[str, Any] = {}
        self.norm.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.conv(self.norm(x)))
        self.steps += 1
        self.runs = self.runs + 1
        self.cache[str(x.device)] = x
        self.last = x
        if x.shape[2] % 8 == 0:
            x = self.norm(x) + torch.rand((), device=x.device)
        return x.mean((2, 3))


@pytest.mark.parametrize("training", [False, True])
def test_tracing_changes_nothing(training: bool) -> None:
    net = Stateful()
    calls: list[str] = []
    net.norm.register_forward_hook(lambda *_: calls.append("norm"))
    state = {name: (t, t._version, t.clone()) for name, t in net.state_dict(keep_vars=True).items()}
    flags, attributes, random_state = [m.training for m in net.modules()], set(vars(net)), torch.get_rng_state()
    traced = trace(net, training=training)
    assert traced.specialised
    found = net.state_dict(keep_vars=True)
    assert all(found[n] is t and t._version == v and torch.equal(t, old) for n, (t, v, old) in state.items())
    assert [m.training for m in net.modules()] == flags and set(vars(net)) == attributes and net.cache == {}
    assert torch.equal(torch.get_rng_state(), random_state) and calls == []
    assert torch.add.__name__ == "add" and isinstance(torch.zeros(1), Tensor)


def test_the_graph_changes_what_the_forward_changes() -> None:
    net = Stateful()
    traced = trace(net)
    run(net, traced, torch.randn(2, *SHAPE))
    run(net, traced, torch.randn(2, *SHAPE))
    assert net.steps == 2 and net.runs == 2


class Stores(nn.Module):
    """Stores features, for whoever reads them later."""

    def __init__(self, features: Tensor | None, store: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.store = layers(), store
        self.register_buffer("features", features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.net[:3](x)
        self.features = self.store(x)
        return self.net[3:](x)


@pytest.mark.parametrize("store", [lambda x: x.mean((0, 2, 3)), lambda x: x.detach().amax((0, 2, 3))])
def test_a_buffer_holds_what_the_forward_stores(store: Callable[[Tensor], Any]) -> None:
    net, x = Stores(torch.zeros(4).double(), store).eval(), images(2)
    assert_decodes(net)
    net(x)
    expected = net.features.detach().clone()
    net.features = torch.zeros(4).double()
    HeatmapDecoder(net).eval()(x)
    torch.testing.assert_close(net.features, expected)
    assert not net.features.requires_grad


def test_features_that_a_run_cannot_store() -> None:
    with pytest.raises(TraceError, match="the forward fills the buffer 'features', which is None before: register it"):
        trace(Stores(None, lambda x: x))


def test_hooks_of_gradients_are_refused_unless_gradients_are_asked_for() -> None:
    def hook(gradient: Tensor) -> None:
        pass

    def store(x: Tensor) -> Tensor:
        x.register_hook(hook)
        return x

    with pytest.raises(TraceError, match=r"gives the function hook to a call of a tensor.*only if x.requires_grad"):
        trace(Stores(torch.zeros(1).double(), store))
    assert_decodes(Stores(torch.zeros(1).double(), lambda x: store(x) if x.requires_grad else x).eval())


def test_a_failed_trace_changes_nothing() -> None:
    net = nn.Sequential(Stateful(), Forward(lambda x: x if x.max() > 0 else -x))
    attributes = set(vars(net[0]))
    with pytest.raises(TraceError):
        trace(net, training=True)
    assert set(vars(net[0])) == attributes and net.training and net[0].steps == 0
    assert isinstance(torch.zeros(1), Tensor)


# Real classifiers


def vit() -> nn.Module:
    return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3)


def swin() -> nn.Module:
    return SwinTransformer([2, 2], 8, depths=[2, 1], num_heads=[2, 2], window_size=[3, 3], num_classes=3)


REAL: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], bool]] = {
    "torchvision vit": (vit, (3, 32, 32), False),
    "torchvision swin": (swin, (3, 26, 32), True),
    "timm vit": (lambda: timm.create_model("test_vit", num_classes=3, img_size=64), (3, 64, 64), True),
    "timm same padding": (lambda: timm.create_model("test_efficientnet", pad_type="same"), (3, 40, 33), True),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_classifier_is_traced_exactly(name: str) -> None:
    make, shape, specialised = REAL[name]
    net = make().double().eval()
    for parameter in net.parameters():  # heads begin at zero
        nn.init.normal_(parameter, std=0.2)
    x = images(2, shape)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    for training in (False, True):
        traced = trace(net, shape, training=training)
        assert traced.specialised is specialised
        net.train(training)
        torch.manual_seed(0)
        expected = net(x)
        after = {key: value.clone() for key, value in net.state_dict().items()}
        net.load_state_dict(state)
        torch.manual_seed(0)
        torch.testing.assert_close(run(net, traced, x), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(dict(net.state_dict()), after, rtol=1e-10, atol=1e-10)
        net.load_state_dict(state)
        net.eval()
