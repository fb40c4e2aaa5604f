"""A backward pass: with epsilon 0 its coefficients are gradients, by autograd at that very place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracles import nets
from tests.oracles.gradients import gradient_x_activation, input_x_gradient
from tests.oracles.nets import Calls, conv
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.core.backward import Backward
from tw_seg.lrp.core.graph import Ref


def pictures(*size: int) -> Tensor:
    return torch.randn(*(size or (2, 3, 11, 9)), dtype=torch.float64)


def shared_norm(s, x):
    return s.n(s.c(F.relu(s.n(s.c(s.a(x))))))


def norm_apart(s, x):
    return s.n(F.relu(s.a(x)))


def norm_with_two_readers(s, x):
    y = s.a(x)
    return s.n(y) + F.relu(y)


GRADIENTS = {
    "conv": lambda s, x: s.a(x),
    "conv3x3s2": lambda s, x: F.conv2d(x, s.a.weight, s.a.bias, 2, 1, 2),
    "same": lambda s, x: F.conv2d(x, s.w, None, padding="same"),
    "norm": lambda s, x: s.n(s.a(x)),
    "norm shared": shared_norm,
    "norm apart": norm_apart,
    "norm two readers": norm_with_two_readers,
    "norm no affine": lambda s, x: F.relu(s.plain(s.a(x))),
    "norm functional": lambda s, x: F.batch_norm(s.a(x), s.n.running_mean, s.n.running_var, eps=0.1),
    "relu": lambda s, x: s.a(x).relu(),
    "relu_": lambda s, x: torch.relu_(s.a(x)),
    "leaky": lambda s, x: F.leaky_relu(s.a(x), 0.2),
    "max pool": lambda s, x: F.max_pool2d(s.a(x), 3, 2, 1),
    "max pool module": lambda s, x: s.pool(s.a(x)),
    "adaptive max pool": lambda s, x: F.adaptive_max_pool2d(s.a(x), (3, 4)),
    "avg pool": lambda s, x: F.avg_pool2d(s.a(x), 3, 2, 1, True, False),
    "avg pool keywords": lambda s, x: F.avg_pool2d(s.a(x), kernel_size=(2, 3), divisor_override=4),
    "adaptive avg pool": lambda s, x: F.adaptive_avg_pool2d(s.a(x), (7, 4)),
    "mean": lambda s, x: s.a(x) + s.a(x).mean((-1, -2), keepdim=True),
    "mean of an axis": lambda s, x: s.a(x) + torch.mean(x, dim=1, keepdim=True),
    "mean in numpy's words": lambda s, x: s.a(x) + x.mean(axis=1, keepdims=True),
    "add": lambda s, x: s.a(x) + s.b(x),
    "add itself": lambda s, x: (lambda y: y + y)(s.a(x)),
    "add alpha": lambda s, x: torch.add(s.a(x), s.b(x), alpha=-0.7),
    "add alpha method": lambda s, x: s.a(x).add(s.b(x), alpha=3),
    "add itself alpha": lambda s, x: (lambda y: torch.add(y, y, alpha=2))(s.a(x)),
    "add broadcast": lambda s, x: s.a(x) + s.b(x).mean((2, 3), keepdim=True),
    "add broadcast channels": lambda s, x: x.mean(1, keepdim=True) + s.a(x),
    "add number": lambda s, x: F.relu(1.5 + s.a(x)),
    "add parameter": lambda s, x: F.relu(s.p + s.a(x)),
    "sum": lambda s, x: sum([s.a(x), s.b(x), s.a(x)]),
    "dropout": lambda s, x: F.dropout(s.a(x), 0.5, s.training),
    "identity": lambda s, x: s.identity(s.a(x)).contiguous().clone(),
    "reshape": lambda s, x: F.relu(s.a(x).flatten(1)).view(x.size(0), 4, 11, 9),
    "linear on columns": lambda s, x: s.columns(s.a(x)),
}


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's advice
def test_heatmap_is_input_x_gradient(name: str) -> None:
    net = Calls(
        GRADIENTS[name], a=conv(), b=conv(), c=conv(4, 4), n=nn.BatchNorm2d(4, eps=0.1),
        plain=nn.BatchNorm2d(4, affine=False), w=nn.Parameter(torch.randn(4, 3, 2, 4)),
        p=nn.Parameter(torch.randn(4, 1, 9)), columns=nn.Linear(9, 5), identity=nn.Identity(),
        pool=nn.MaxPool2d(3, 1, dilation=2, ceil_mode=True),
    )  # fmt: skip
    images = pictures()
    expected = input_x_gradient(net, images)
    found = HeatmapDecoder(net)(images).heatmaps
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))


@pytest.mark.parametrize("dim", [1, -3, 2, -1])
def test_cat(dim: int) -> None:
    def function(s, x):
        y = torch.cat([s.a(x), s.p.expand(x.size(0), -1, -1, -1), s.a(x).relu()], dim)
        return s.b(y) if dim in (1, -3) else y

    net = Calls(function, a=conv(), b=conv(12, 4), p=nn.Parameter(torch.randn(1, 4, 11, 9)))
    images = pictures()
    torch.testing.assert_close(
        HeatmapDecoder(net)(images).heatmaps, input_x_gradient(net, images), rtol=1e-12, atol=1e-13
    )


def test_relu6_is_the_ratio() -> None:
    """``f(u) / u``, so that relevance is conserved where the gradient of a saturated unit is 0."""
    net = Calls(lambda s, x: F.relu6(s.a(x)), a=conv())
    with torch.no_grad():
        net.a.weight.mul_(20)
    images = pictures()
    decoder = HeatmapDecoder(net, read_out="a")
    u = net.a(images)
    ratio = torch.where(u.abs() > 0, F.relu6(u) / u, 0)
    expected = torch.einsum("nchw,nchw,kc->nkhw", u, ratio, net.fc.weight) / 99
    assert (u > 6).any()
    torch.testing.assert_close(decoder(images).heatmaps, expected, rtol=1e-12, atol=1e-13)


def test_dropout_follows_the_units_that_were_kept() -> None:
    net = Calls(lambda s, x: F.dropout2d(F.relu(s.a(x)), 0.4, s.training), a=conv()).train()
    images = pictures()
    torch.manual_seed(3)
    expected = input_x_gradient(net, images)
    torch.manual_seed(3)
    torch.testing.assert_close(HeatmapDecoder(net)(images).heatmaps, expected, rtol=1e-12, atol=1e-13)


def test_a_unit_at_zero_passes_nothing() -> None:
    net = Calls(lambda s, x: F.relu(s.a(x)), a=conv(bias=False))
    tape, kept = HeatmapDecoder(net).coefficients(torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    assert not tape.values["relu"].any() and not kept["a"].any()


PLACES = ["conv1", "bn1", "relu", "pool", "conv2", "bn2", "conv3"]


@pytest.mark.parametrize("place", PLACES)
def test_read_outs_are_gradient_x_activation(place: str) -> None:
    """Also at a convolution whose BatchNorm is multiplied into it."""
    net, images = nets.tiny(), pictures(2, 3, 17, 19)
    expected = gradient_x_activation(net, getattr(net, place), images)
    found = HeatmapDecoder(net, read_out=place)(images).heatmaps
    assert found.shape == expected.shape and expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("place", [place for place in PLACES if place not in ("conv1", "conv2")])  # fused with a norm
def test_coefficients_are_gradients(place: str) -> None:
    """At every call, classes outermost: row ``k * N + n``."""
    net, images = nets.tiny(), pictures(2, 3, 17, 19)
    tape, kept = HeatmapDecoder(net).coefficients(images, [2, 0])
    name = tape.graph.readout(place)
    maps = gradient_x_activation(net, getattr(net, place), images)[:, [2, 0]]
    assert kept[name].shape == (4, *tape.values[name].shape[1:])
    relevance = (kept[name].unflatten(0, (2, 2)) * tape.values[name]).sum(2).transpose(0, 1)
    torch.testing.assert_close(relevance, maps, rtol=1e-12, atol=1e-13)


# The parts of a pass


def several_rows(s, x):
    """Two rows for each image at ``view``, the batch at axis 2 at ``permute``."""
    return s.a(x).view(-1, 2, 11, 9).relu().view(-1, 4, 11, 9).permute(1, 2, 0, 3).relu().permute(2, 0, 1, 3)


def pass_of(net: nn.Module, images: Tensor, samples: list[int] | None) -> Backward:
    decoder = HeatmapDecoder(net)
    tape = decoder.coefficients(images)[0]
    return decoder.prepare(tape, None if samples is None else torch.tensor(samples, dtype=torch.int64))


@pytest.mark.parametrize("samples", [None, [2, 0], [1], [1, 1], []])
def test_values_of_the_decoded_samples(samples: list[int] | None) -> None:
    """Those that a tape of these images alone would hold, wherever the batch is."""
    net, images = Calls(several_rows, a=conv()), pictures(3, 3, 11, 9)
    backward = pass_of(net, images, samples)
    rows = list(range(3)) if samples is None else samples
    for name, axis, per_image in (("a", 0, 1), ("view", 0, 2), ("relu", 0, 2), ("permute", 2, 1), ("relu_1", 2, 1)):
        whole = backward.tape.values[name]
        assert (backward.axis(name), backward.per_image(name)) == (axis, per_image)
        parts = whole.unflatten(axis, (3, per_image)).unbind(axis)
        expected = torch.cat([parts[row] for row in rows], axis) if rows else whole.narrow(axis, 0, 0)
        assert torch.equal(backward.value(name), expected)


def test_a_value_is_chosen_once() -> None:
    backward = pass_of(Calls(several_rows, a=conv()), pictures(3, 3, 11, 9), [2, 0])
    assert backward.value("a") is backward.value("a")


def test_the_shape_of_an_input_for_a_coefficient_at_the_output() -> None:
    backward = pass_of(Calls(several_rows, a=conv()), pictures(3, 3, 11, 9), [2, 0])
    c = torch.empty(3 * 2 * 2, 2, 11, 9)  # classes, samples, rows of a sample
    assert backward.shape(backward.calls["view"], c) == [6, 4, 11, 9]
    assert backward.shape(backward.calls["view_1"], torch.empty(6, 4, 11, 9)) == [12, 2, 11, 9]


@pytest.mark.parametrize(
    ("shape", "per_sample"),
    [((3, 4, 5), True), ((1, 4, 5), False), ((3, 1, 1), True), ((5,), False), ((4, 1), False), ((), False)],
)
def test_operands_of_a_product(shape: tuple[int, ...], per_sample: bool) -> None:
    """One with a row for each image meets each class; others broadcast. As the product would of a larger batch."""
    backward = pass_of(Calls(several_rows, a=conv()), pictures(3, 3, 11, 9), [2, 0])
    factor = torch.randn(shape)
    output = torch.randn(3, 4, 5)
    found, known = backward.operand(factor, output, 0)
    assert known == per_sample
    expected = factor.expand(3, 4, 5)[[2, 0]] if per_sample else factor.expand(1, 4, 5)
    assert torch.equal(found.expand(expected.shape), expected)
    assert backward.operand(2.5, output, 0) == (2.5, False)


def test_a_coefficient_times_an_operand() -> None:
    net = Calls(lambda s, x: s.a(x) * s.b(x), a=conv(), b=conv())
    backward = pass_of(net, pictures(3, 3, 11, 9), [2, 0])
    c = torch.randn(6, 4, 11, 9, dtype=torch.float64)
    expected = c * backward.tape.values["b"][[2, 0, 2, 0, 2, 0]]
    assert torch.equal(backward.multiply(c, Ref("b"), backward.calls["mul"]), expected)
    assert torch.equal(backward.multiply(c, 3.0, backward.calls["mul"]), c * 3.0)


def test_decoder_weights_stand_for_the_classifiers() -> None:
    net = Calls(lambda s, x: s.a(x) * s.gamma, a=conv(), gamma=nn.Parameter(torch.ones(4, 1, 1)))
    decoder = HeatmapDecoder(net)
    tape = decoder.coefficients(pictures())[0]
    calls = {call.name: call for call in tape.graph.calls}
    own = {"a.weight": torch.zeros(1), "gamma": torch.ones(2)}
    for weights in ({}, own):
        backward = Backward(tape, calls, {}, None, weights, frozenset())
        assert backward.weight(calls["a"]) is weights.get("a.weight", net.a.weight)
        assert backward.weight(calls["fc"]) is net.fc.weight and backward.weight(calls["mean"]) is None
        gamma = backward.tape.resolve(backward.parameter(calls["mul"].options["other"]))
        assert gamma is weights.get("gamma", net.gamma)
        assert backward.parameter(2.0) == 2.0
