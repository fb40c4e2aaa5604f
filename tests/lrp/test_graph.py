"""Tracing: what is accepted, what is refused and how, and how calls are named."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.oracles.nets import Calls, conv, initialise
from tw_seg.errors import TraceError, UnsupportedOpError
from tw_seg.lrp.graph import FUNCTIONS, MODULES, follow_modes, trace
from tw_seg.lrp.propagate import ADJOINT


def graph_of(function, **modules):
    return trace(Calls(function, **modules), False)


def kinds(function, **modules) -> list[str]:
    return [c.kind for c in graph_of(function, **modules).calls if c.kind != "constant"]


def test_every_kind_has_an_adjoint() -> None:
    named = {*MODULES.values(), *(kind for kind, _ in FUNCTIONS.values())}
    assert named == ADJOINT.keys()


def test_a_module_used_twice_is_two_calls() -> None:
    graph = graph_of(lambda s, x: s.c(F.relu(s.c(s.a(x)))), a=conv(), c=conv(4, 4))
    assert [c.path for c in graph.calls if c.kind == "conv"] == ["a", "c", "c"]
    assert len({c.name for c in graph.calls}) == len(graph.calls)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = conv(3, 3)

    def forward(self, x):
        return F.relu(self.c(x)) + x


def test_a_path_names_the_last_call_of_a_module_used_twice() -> None:
    graph = graph_of(lambda s, x: s.b(s.b(x)), channels=3, b=Block())
    last = [c.name for c in graph.calls if c.kind == "add"][-1]
    assert graph.readout("b") == last
    assert graph.readout("b.c") == [c.name for c in graph.calls if c.kind == "conv"][-1]
    assert graph.readout("input") == graph.input
    assert graph.readout("relu") == "relu"  # a call that is no module, by its own name
    with pytest.raises(KeyError):
        graph.readout("nowhere")


def test_a_path_comes_before_a_call_of_the_same_name() -> None:
    graph = graph_of(lambda s, x: s.relu(s.c(s.relu(s.a(x)))), a=conv(), c=conv(4, 4), relu=nn.ReLU())
    assert graph.readout("relu") == "relu_1"


def test_downstream() -> None:
    graph = graph_of(lambda s, x: s.a(x) + s.b(x), a=conv(), b=conv())
    assert graph.downstream(("a",)) == {"a", "add", "mean", "fc"}


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


def test_dead_calls_are_left_out() -> None:
    graph = graph_of(lambda s, x: (s.c(x), torch.sigmoid(x))[0], c=conv())
    assert [c.kind for c in graph.calls] == ["conv", "mean", "linear"]


def test_every_unsupported_call_is_listed_before_computing() -> None:
    def function(s, x):
        x = torch.sigmoid(s.p(s.c(x)))
        return torch.einsum("nchw->nchw", s.s(x)) * 2

    ran: list[int] = []
    net = Calls(function, c=conv(), p=nn.PReLU(), s=nn.Sequential(nn.Softplus(), nn.GELU()))
    net.c.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(UnsupportedOpError) as caught:
        trace(net, False)
    message = str(caught.value)
    assert "6 call(s)" in message and not ran
    for line in ("p: PReLU", "(root): sigmoid", "s.0: Softplus", "s.1: GELU", "(root): einsum", "(root): mul"):
        assert line in message


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda s, x: nn.functional.conv2d(x, x[:, :, :3, :3]), "weights that depend on the images"),
        (lambda s, x: s.c(x) + x.mean(), "mean over every axis"),
        (lambda s, x: torch.add(s.c(x), 1, out=x), "add"),
        (lambda s, x: s.r(x), "padding_mode='reflect'"),
    ],
)
def test_calls_that_only_look_supported(function, named: str) -> None:
    net = Calls(function, c=conv(), r=conv(padding_mode="reflect"))
    with pytest.raises(UnsupportedOpError, match=named):
        trace(net, False)


def dead_in_place(s, x):
    y = s.c(x)
    y.mul_(2)
    return y


def operator_in_place(s, x):
    z = y = s.c(x)
    z *= 2
    return y


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


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (dead_in_place, "mul_"),
        (operator_in_place, "imul"),
        (view_in_place, "reads 'c' after a change in place"),
        (dropout_in_place, "reads 'c' after a change in place"),
        (buffer_in_place, "changes 'buffer' by the images"),
    ],
)
def test_changes_in_place_that_a_run_out_of_place_would_miss(function, named: str) -> None:
    net = Calls(function, c=conv())
    net.register_buffer("buffer", torch.zeros(1, 3, 1, 1))
    with pytest.raises(UnsupportedOpError, match=named):
        trace(net, False)


class Branches(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


class Pair(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), x


class NoInput(nn.Module):
    def forward(self):
        return torch.zeros(1)


@pytest.mark.parametrize(
    ("net", "named"),
    [
        (Branches(), "cannot trace Branches"),
        (TwoInputs(), r"one argument \(images\), it takes \['x', 'y'\]"),
        (Pair(), "must return one tensor of logits"),
        (NoInput(), "must take one argument"),
    ],
)
def test_what_does_not_trace(net, named: str) -> None:
    with pytest.raises(TraceError, match=named):
        trace(net, False)


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


def test_weights_have_names() -> None:
    def function(s, x):
        standardised = s.c.weight - s.c.weight.mean()
        return F.conv2d(s.c(x), s.w) + F.conv2d(x, standardised, padding=1)

    graph = graph_of(function, c=conv(), w=nn.Parameter(torch.randn(4, 4, 1, 1)))
    assert [c.weight for c in graph.calls if c.kind == "conv"] == ["c.weight", "w", None]


def test_kinds_of_functional_calls() -> None:
    def function(s, x):
        x = s.c(x)
        x = torch.relu(x).clone().contiguous()
        x = F.max_pool2d(F.leaky_relu(x, 0.2), 2)
        x = F.dropout2d(F.relu6(x), 0.1, s.training)
        return torch.cat((x, x.relu()), axis=1)

    assert kinds(function, channels=8, c=conv())[:9] == [
        "conv", "relu", "identity", "identity", "leaky_relu", "max_pool2d", "relu6", "dropout2d", "relu",
    ]  # fmt: skip
