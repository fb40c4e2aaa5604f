"""From a classifier to its calls: what is accepted, what is refused and how, and what is noted on each call."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracles.gradients import input_x_gradient
from tests.oracles.nets import Calls, Tiny, conv, initialise
from tw_seg.errors import TraceError, UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.core.graph import Graph
from tw_seg.lrp.trace.build import trace
from tw_seg.lrp.trace.modes import follow_modes


def graph_of(function, **modules) -> Graph:
    return trace(Calls(function, **modules), False)


def kinds(function, **modules) -> list[str]:
    return [c.kind for c in graph_of(function, **modules).calls if c.kind != "constant"]


def pictures() -> Tensor:
    return torch.randn(2, 3, 11, 9, dtype=torch.float64)


# Kinds


def test_a_module_used_twice_is_two_calls() -> None:
    graph = graph_of(lambda s, x: s.c(F.relu(s.c(s.a(x)))), a=conv(), c=conv(4, 4))
    assert [c.path for c in graph.calls if c.kind == "conv"] == ["a", "c", "c"]
    assert len({c.name for c in graph.calls}) == len(graph.calls)


def test_kinds_of_functional_calls() -> None:
    def function(s, x):
        x = s.c(x)
        x = torch.relu(x).clone().contiguous()
        x = F.max_pool2d(F.leaky_relu(x, 0.2), 2)
        x = F.dropout2d(F.relu6(x), 0.1, s.training)
        return torch.cat((x, x.relu()), axis=1)

    assert kinds(function, channels=8, c=conv())[:9] == [
        "conv", "relu", "clone", "contiguous", "leaky_relu", "max_pool", "relu6", "dropout2d", "relu",
    ]  # fmt: skip


def test_a_value_of_a_tuple_is_a_part_and_of_a_tensor_an_item() -> None:
    found = kinds(lambda s, x: torch.cat([s.c(x).chunk(2, 1)[1], s.c(x)[:, :2]], 1), c=conv())
    assert found == ["conv", "split", "part", "conv", "getitem", "cat", "mean", "linear"]


def test_dead_calls_are_left_out() -> None:
    graph = graph_of(lambda s, x: (s.c(x), torch.sigmoid(x))[0], c=conv())
    assert [c.kind for c in graph.calls] == ["conv", "mean", "linear"]


def test_weights_have_names() -> None:
    def function(s, x):
        standardised = s.c.weight - s.c.weight.mean()
        return F.conv2d(s.c(x), s.w) + F.conv2d(x, standardised, padding=1)

    graph = graph_of(function, c=conv(), w=nn.Parameter(torch.randn(4, 4, 1, 1)))
    assert [c.weight for c in graph.calls if c.kind == "conv"] == ["c.weight", "w", None]


GATES = {
    "sigmoid": lambda s, x: s.a(x) * torch.sigmoid(s.b(x)),
    "first factor": lambda s, x: torch.sigmoid(s.b(x)) * s.a(x),
    "broadcast": lambda s, x: s.a(x) * F.hardsigmoid(s.b(x).mean((2, 3))).unsqueeze(2).unsqueeze(3),
    "tanh": lambda s, x: torch.mul(s.a(x), s.b(x).tanh()),
    "softmax": lambda s, x: s.a(x) * s.b(x).softmax(1).expand_as(x[:, :1].expand(-1, 4, -1, -1)),
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_gets_no_relevance(name: str) -> None:
    (product,) = [c for c in graph_of(GATES[name], a=conv(), b=conv()).calls if c.kind == "mul"]
    assert product.inputs == ("a",)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.a(x) * s.b(x),
        lambda s, x: torch.sigmoid(s.a(x)) * torch.sigmoid(s.b(x)),
        lambda s, x: s.a(x) * s.b(torch.sigmoid(x)),  # a gate inside is none at the end
    ],
)
def test_both_factors_of_other_products_get_relevance(function) -> None:
    (product,) = [c for c in graph_of(function, a=conv(), b=conv()).calls if c.kind == "mul"]
    assert len(product.inputs) == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.a(x) / s.a(x).norm(dim=1, keepdim=True),
        lambda s, x: s.a(x) * torch.rsqrt(s.a(x).var(1, keepdim=True) + 1e-5),
        lambda s, x: s.a(x) * (s.a(x) > 0),
        lambda s, x: s.a(x) + torch.ones_like(x[:, :1]),
        lambda s, x: s.a(x) * s.a(x).detach(),
        lambda s, x: s.a(x) * x.size(2),
    ],
)
def test_statistics_choices_and_sizes_are_constants(function) -> None:
    net = Calls(function, a=conv())
    (last,) = [c for c in trace(net, False).calls if c.kind in ("div", "mul", "add") and c.inputs]
    assert last.inputs == ("a",)


# What is noted on calls


@pytest.mark.parametrize(
    ("function", "modules", "fused"),
    [
        (lambda s, x: s.n(s.c(x)), {}, True),
        (lambda s, x: (lambda y: s.n(y) + y)(s.c(x)), {}, False),  # the convolution has another reader
        (lambda s, x: s.n(F.relu(s.c(x))), {}, False),
    ],
)
def test_a_batch_norm_is_fused_where_it_is_the_only_reader(function, modules, fused) -> None:
    graph = graph_of(function, c=conv(), n=nn.BatchNorm2d(4), **modules)
    assert [c.norm for c in graph.calls if c.kind == "conv"] == (["n"] if fused else [None])


@pytest.mark.parametrize("layer", [conv(4, 4), nn.ConvTranspose2d(4, 4, 2), nn.Conv2d(4, 4, 1, groups=2)])
def test_a_batch_norm_is_fused_into_the_convolution_after_it(layer: nn.Module) -> None:
    graph = graph_of(lambda s, x: s.d(s.n(F.relu(s.c(x)))), c=conv(), n=nn.BatchNorm2d(4), d=layer)
    assert [(c.norm, c.norm_before) for c in graph.calls if c.path in ("c", "d")] == [(None, None), (None, "n")]


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: s.d(s.n(s.c(x))),  # it belongs to the convolution before it
        lambda s, x: (lambda y: s.d(y) + y)(s.n(F.relu(s.c(x)))),  # another reader
        lambda s, x: s.d(F.relu(s.n(F.relu(s.c(x))))),
    ],
)
def test_a_batch_norm_is_not_fused_into_the_convolution_after_it(function) -> None:
    graph = graph_of(function, c=conv(), n=nn.BatchNorm2d(4), d=conv(4, 4))
    assert [c.norm_before for c in graph.calls if c.path == "d"] == [None]


def test_depth_counts_linear_calls() -> None:
    graph = trace(Tiny(), False)
    found = {c.name: c.depth for c in graph.calls if c.kind in ("conv", "linear")}
    assert found == {"conv1": 0.0, "conv2": 1 / 3, "conv3": 2 / 3, "fc": 1.0}
    assert {c.name: c.depth for c in graph.calls}["pool"] == 0.0  # that of the linear call before it


NONNEGATIVE = {
    "relu": lambda s, x: F.relu(s.c(x)),
    "pools": lambda s, x: F.avg_pool2d(F.max_pool2d(F.relu6(s.c(x)), 2), 2),
    "sum": lambda s, x: F.relu(s.c(x)) + F.relu(s.c(x)) + 1.5,
    "gate": lambda s, x: F.relu(s.c(x)) * torch.sigmoid(s.c(x)),
    "cat": lambda s, x: torch.cat([F.relu(s.c(x)), F.softplus(s.c(x))], 1)[:, :4],
    "activations": lambda s, x: F.silu(F.leaky_relu(F.hardsigmoid(s.c(x)), -0.2)),
    "parts": lambda s, x: torch.stack([*s.c(x).abs().unbind(1)], 1).permute(0, 1, 3, 2).narrow(2, 0, 5),
    "dropout": lambda s, x: F.dropout(s.c(x).square().roll(1, 3), 0.4, s.training),
    "in place": lambda s, x: F.relu_(s.c(x)).add_(0.5).mul_(2),
}
OF_ANY_SIGN = {
    "images": lambda s, x: x[:, [0, 1, 2, 2]],
    "conv": lambda s, x: s.c(x),
    "norm": lambda s, x: s.n(F.relu(s.c(x))),
    "number": lambda s, x: F.relu(s.c(x)) + (-1.5),
    "number in place": lambda s, x: F.relu(s.c(x)).add_(-1.5),
    "difference": lambda s, x: F.relu(s.c(x)) - 1.5,
    "factor": lambda s, x: F.relu(s.c(x)) * -2,
    "factor in place": lambda s, x: F.relu(s.c(x)).mul_(-2),
    "alpha": lambda s, x: torch.add(F.relu(s.c(x)), F.relu(s.c(x)), alpha=-2),
    "parameter": lambda s, x: F.relu(s.c(x)) * s.p,
    "parameter added": lambda s, x: F.relu(s.c(x)) + s.p,
    "one part": lambda s, x: torch.cat([F.relu(s.c(x))[:, :2], s.c(x)[:, :2]], 1),
    "sum": lambda s, x: F.relu(s.c(x)) + s.c(x),
    "divisor": lambda s, x: F.avg_pool2d(F.relu(s.c(x)), 2, divisor_override=-3),
    "gelu": lambda s, x: F.gelu(s.c(x)),
    "leaky": lambda s, x: F.leaky_relu(s.c(x)),
    "bicubic": lambda s, x: F.interpolate(F.relu(s.c(x)), scale_factor=2.0, mode="bicubic"),
    "pad": lambda s, x: F.pad(F.relu(s.c(x)), (1, 1), value=-1.0),
}


@pytest.mark.parametrize("name", [*NONNEGATIVE, *(f"not {name}" for name in OF_ANY_SIGN)])
def test_inputs_that_are_not_negative(name: str) -> None:
    """Rules leave the negative half out where the flag is set: it must never be set wrongly."""
    expected = name in NONNEGATIVE
    function = NONNEGATIVE[name] if expected else OF_ANY_SIGN[name.removeprefix("not ")]
    net = Calls(
        lambda s, x: s.d(function(s, x)), c=conv(), d=conv(4, 4), n=nn.BatchNorm2d(4), p=nn.Parameter(-torch.ones(1))
    )  # fmt: skip
    (last,) = [c for c in trace(net, False).calls if c.path == "d"]
    assert last.nonnegative == expected
    seen: list[Tensor] = []
    net.d.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    net(pictures())
    assert (seen[0].min() >= 0) == expected


# What is refused


def test_every_unsupported_call_is_listed_before_computing() -> None:
    def function(s, x):
        x = torch.erf(s.p(s.c(x)))
        return torch.cumsum(s.s(x), 1) ** s.c.bias.view(4, 1, 1)

    ran: list[int] = []
    net = Calls(function, c=conv(), p=nn.LPPool2d(2, 2), s=nn.Sequential(nn.Softsign(), nn.LogSigmoid()))
    net.c.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(UnsupportedOpError) as caught:
        trace(net, False)
    message = str(caught.value)
    assert "6 call(s)" in message and not ran
    for line in ("p: LPPool2d", "(root): erf", "s.0: Softsign", "s.1: LogSigmoid", "(root): cumsum", "(root): pow"):
        assert line in message
    assert "custom_rules" in message


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda s, x: nn.functional.conv2d(x, x[:, :, :3, :3]), "weights that depend on the images"),
        (lambda s, x: s.c(x) + x.mean(), "mean over every axis"),
        (lambda s, x: s.c(x) + x.sum(), "sum over every axis"),
        (lambda s, x: torch.add(s.c(x), 1, out=x), "add"),
        (lambda s, x: s.r(x), "padding_mode='reflect'"),
        (lambda s, x: 1 / (s.c(x) + 9), "truediv of a constant by a value that depends on the images"),
        (lambda s, x: s.c(x) ** s.c(x), "pow with an exponent that is no number"),
        (lambda s, x: torch.addcmul(s.c(x), s.c(x), s.c(x)), "addcmul of three values"),
        (lambda s, x: torch.cat(s.c(x).chunk(2, 1)), "cat of a list that is not written out"),
        (lambda s, x: torch.cat(s.c(x).split(1, 1)[1:], 1), "several parts at once"),
    ],
)
def test_calls_that_only_look_supported(function, named: str) -> None:
    net = Calls(function, c=conv(), r=conv(padding_mode="reflect"))
    with pytest.raises(UnsupportedOpError, match=named):
        trace(net, False)


def test_what_relevance_does_not_reach_needs_no_rule() -> None:
    graph = graph_of(lambda s, x: s.c(x) * torch.erf(s.c(x)).detach(), c=conv())
    assert "unsupported" in {c.kind for c in graph.calls}


def test_a_rule_of_ones_own_comes_first() -> None:
    net = Calls(lambda s, x: s.p(torch.erf(F.relu(s.c(x)))).exp(), c=conv(), p=nn.LPPool2d(2, 2))
    rules = {nn.LPPool2d: print, torch.erf: repr, F.relu: id, "exp": len}  # not called here
    found = {c.name: c.options["rule"] for c in trace(net, False, custom_rules=rules).calls if c.kind == "custom"}
    assert found == {"relu": id, "erf": repr, "p": print, "exp": len}


# In-place calls


def dead_in_place(s, x):
    y = s.c(x)
    y.mul_(2)
    return y


def operator_in_place(s, x):
    z = y = s.c(x)
    z *= 2
    return y


def chain_in_place(s, x):
    z = y = s.c(x)
    z -= 1.0
    w = z
    w /= 2
    return y


def view_in_place_read_through_the_view(s, x):
    z = s.c(x).transpose(2, 3)
    z.add_(1.0)
    return z.transpose(2, 3)


def copy_in_place(s, x):
    y = s.c(x)
    z = y.clone()
    z.relu_()
    return y + z


def mask_in_place(s, x):
    mask = torch.zeros_like(x[:, :1])
    mask[:, :, 2:] = 1
    return s.c(x) * mask


@pytest.mark.parametrize(
    "function",
    [
        dead_in_place, operator_in_place, chain_in_place, view_in_place_read_through_the_view, copy_in_place,
        mask_in_place,
    ],
)  # fmt: skip
def test_changes_in_place_that_are_followed(function) -> None:
    net, images = Calls(function, c=conv()), pictures()
    decoded = HeatmapDecoder(net)(images)
    torch.testing.assert_close(decoded.logits, net(images), rtol=0, atol=0)
    torch.testing.assert_close(decoded.heatmaps, input_x_gradient(net, images), rtol=1e-12, atol=1e-13)


def view_in_place(s, x):
    y = s.c(x)
    F.relu_(y.flatten(1))
    return y


def dropout_in_place(s, x):
    y = s.c(x)
    z = F.relu_(F.dropout(y, 0.5, s.training))  # in evaluation mode dropout returns its input
    return y + z


def buffer_in_place(s, x):
    s.buffer.add_(x.mean((2, 3), keepdim=True))
    return s.c(x)


def slice_in_place(s, x):
    y = s.c(x)
    y[:, 0].relu_()
    return y


def item_of_a_buffer(s, x):
    s.buffer[:] = s.c(x)[:1, :, :1, :1]
    return s.c(x) + s.buffer


def part_in_place(s, x):
    y = s.c(x)
    y.chunk(2, 1)[0].relu_()
    return y


def maybe_copy_in_place(s, x):
    y = s.c(x).permute(0, 1, 3, 2)
    z = y.contiguous().relu_()  # here a copy, elsewhere y itself
    return y + z


def einsum_in_place(s, x):
    y = s.c(x)
    z = torch.einsum("nchw->ncwh", y).relu_()
    return y + z.transpose(2, 3)


def cast_in_place(s, x):
    y = s.c(x)
    z = y.to(torch.float64).relu_()
    return y + z


def view_read_after_its_base_changed(s, x):
    y = s.c(x)
    z = y.view_as(y)
    y.add_(1.0)
    return z


def detached_in_place(s, x):
    y = s.c(x)
    y.detach().mul_(0)
    return y


def data_in_place(s, x):
    y = s.c(x)
    y.data.mul_(2)
    return y


def unknown_in_place(s, x):
    y = s.c(x)
    y.zero_()
    return y


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (view_in_place, "reads 'c' after a change in place"),
        (dropout_in_place, "reads 'c' after a change in place"),
        (buffer_in_place, "changes 'buffer' by the images"),
        (slice_in_place, "reads 'c' after a change in place"),
        (item_of_a_buffer, "changes 'buffer' by the images"),
        (part_in_place, "reads 'c' after a change in place"),
        (maybe_copy_in_place, "reads 'permute' after a change in place"),
        (einsum_in_place, "reads 'c' after a change in place"),
        (cast_in_place, "reads 'c' after a change in place"),
        (view_read_after_its_base_changed, "reads 'view_as' after a change in place"),
        (detached_in_place, "in place"),
        (data_in_place, "reads 'c' after a change in place"),
        (unknown_in_place, "zero_"),
    ],
)
def test_changes_in_place_that_a_run_out_of_place_would_miss(function, named: str) -> None:
    net = Calls(function, c=conv())
    net.register_buffer("buffer", torch.zeros(1, 3, 1, 1))
    with pytest.raises(UnsupportedOpError, match=named):
        trace(net, False)


# What does and does not trace


class Branches(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


class Named(nn.Module):
    def forward(self, x):
        return {"out": x.mean((2, 3))}


class Nothing(nn.Module):
    def forward(self, x):
        return None


class NoInput(nn.Module):
    def forward(self):
        return torch.zeros(1)


@pytest.mark.parametrize(
    ("net", "named"),
    [
        (Branches(), "Branches cannot be traced: the forward branches on values"),
        (TwoInputs(), r"one argument \(images\), it takes \['x', 'y'\]"),
        (Named(), "must return logits, or a tuple that begins with them"),
        (Nothing(), "must return logits, or a tuple that begins with them"),
        (NoInput(), "must take one argument"),
    ],
)
def test_what_does_not_trace(net, named: str) -> None:
    with pytest.raises(TraceError, match=named):
        trace(net, False)


Heads = namedtuple("Heads", ["logits", "auxiliary"])


class Several(nn.Module):
    """Auxiliary heads, as torchvision's GoogLeNet has them in training."""

    def __init__(self, container) -> None:
        super().__init__()
        self.container = container
        self.a, self.b = nn.Linear(3, 5), nn.Linear(3, 5)

    def forward(self, x):
        x = x.mean((2, 3))
        return self.container(self.a(x), self.b(x).erf()) if self.training else self.a(x)


@pytest.mark.parametrize("container", [Heads, lambda *heads: heads, lambda *heads: list(heads)])
def test_logits_come_first_in_a_tuple(container) -> None:
    for mode in (False, True):
        assert [c.path for c in trace(Several(container), mode).calls] == ["", "a"]


class Options(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = conv()
        self.fc = nn.Linear(4, 3)

    def forward(self, x, mask=None, *, features: bool = False, scale: float = 1.0):
        x = self.c(x).mean((2, 3))
        if mask is not None:
            x = x * mask
        if scale != 1:
            x = x * scale
        return x if features else self.fc(x)


def test_optional_arguments_keep_their_defaults() -> None:
    assert [c.kind for c in trace(Options(), False).calls] == ["conv", "mean", "linear"]


@pytest.mark.parametrize(
    ("size", "expected"), [((8, 8), ["conv", "mean", "linear"]), ((8, 9), ["pad", "conv", "mean", "linear"])]
)
def test_a_branch_on_a_size_specialises_the_graph(size: tuple[int, int], expected: list[str]) -> None:
    net = Calls(lambda s, x: s.c(F.pad(x, (0, 1)) if x.shape[-1] % 2 else x), c=conv())
    graph = trace(net, False, image_shape=(3, *size))
    assert graph.specialised
    assert [c.kind for c in graph.calls if c.inputs] == expected
    assert not trace(Options(), False, image_shape=(3, *size)).specialised


# Side effects and modes


def test_tracing_changes_nothing() -> None:
    net = Calls(lambda s, x: s.n(s.c(x)), c=conv(), n=nn.BatchNorm2d(4)).train()
    net.n.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    attributes = set(vars(net))
    for mode in (False, True):
        trace(net, mode)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert set(vars(net)) == attributes


def test_tracing_leaves_torch_as_it_was() -> None:
    """While a forward is traced, torch's functions and methods are replaced; what Python notes of types stays, too."""
    namespaces = (torch, F, torch.linalg, torch.Tensor, torch.autocast)
    before = [dict(vars(namespace)) for namespace in namespaces]
    graph_of(lambda s, x: s.c(x)[:, torch.arange(4)], c=conv())
    for namespace, names in zip(namespaces, before, strict=True):
        assert vars(namespace).keys() == names.keys()
        assert all(vars(namespace)[name] is value for name, value in names.items())
    scalars = list(torch.tensor([2, 0]))
    assert torch.arange(6).view(2, 3)[:, scalars].tolist() == [[2, 0], [5, 3]]  # raises if a tensor is a sequence


class Counts(nn.Module):
    """As timm's norm-act layers: the forward itself counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = initialise(nn.BatchNorm2d(4))

    def forward(self, x):
        n = self.norm
        if self.training:
            n.num_batches_tracked.add_(1)
        return F.relu(F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, self.training, 0.1, n.eps))


def test_buffers_that_the_forward_changes_itself_are_not_changed_by_tracing() -> None:
    net = Calls(lambda s, x: s.n(s.c(x)), c=conv(), n=Counts())
    graph = trace(net, True)
    assert net.n.norm.num_batches_tracked == 0
    assert any(c.target == "add_" and c.kind == "constant" for c in graph.calls)


def test_flags_follow_their_module() -> None:
    net = Calls(lambda s, x: s.n(s.c(x)), c=conv(), n=Counts())
    evaluation, training = follow_modes(trace(net, False), trace(net, True))
    for graph in (evaluation, training):
        (norm,) = [c for c in graph.calls if c.kind == "batch_norm"]
        assert norm.options["training"].path == "n"
    fixed = Calls(lambda s, x: F.dropout(s.c(x), 0.5, True), c=conv())
    for graph in follow_modes(trace(fixed, False), trace(fixed, True)):
        assert [c.options["training"] for c in graph.calls if c.kind == "dropout"] == [True]
