"""From a classifier to its calls: what is accepted, and what is refused and how."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracles.nets import Calls, conv, initialise
from tw_seg.errors import TraceError, UnsupportedOpError
from tw_seg.lrp.core.graph import Graph
from tw_seg.lrp.trace.build import refuse_unsupported, trace


def graph_of(function, **modules) -> Graph:
    return trace(Calls(function, **modules), False)


def refuse_all(net: nn.Module) -> None:
    """Refuse what has no rule on the way to the images."""
    graph = trace(net, False)
    refuse_unsupported(net, [(graph, graph.downstream((graph.input,)))])


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


# What is refused


def test_every_unsupported_call_is_listed_before_computing(monkeypatch) -> None:
    def function(s, x):
        x = torch.erf(s.p(s.c(x)))
        return torch.cumsum(s.s(x), 1) ** x

    ran: list[int] = []
    net = Calls(function, c=conv(), p=nn.CrossMapLRN2d(2), s=nn.Sequential(nn.RReLU(), nn.AlphaDropout()))
    monkeypatch.setattr(nn.Conv2d, "forward", lambda conv, x: ran.append(1))
    with pytest.raises(UnsupportedOpError) as caught:
        refuse_all(net)
    message = str(caught.value)
    assert "6 call(s)" in message and not ran
    for line in ("p: CrossMapLRN2d", "(root): erf", "s.0: RReLU", "s.1: AlphaDropout", "(root): cumsum", "(root): pow"):
        assert line in message
    assert "custom_rules" in message


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda s, x: nn.functional.conv2d(x, x[:, :, :3, :3]), "weights that depend on the images"),
        (lambda s, x: s.c(x) + x.mean(), "mean over every axis"),
        (lambda s, x: s.c(x) + x.sum(), "sum over every axis"),
        (lambda s, x: torch.add(s.c(x), 1, out=x), "add"),
        (lambda s, x: 1 / (s.c(x) + 9), "truediv of a constant by a value that depends on the images"),
        (lambda s, x: s.c(x) ** s.c(x), "pow with an exponent that depends on the images"),
        (lambda s, x: torch.addcmul(s.c(x), s.c(x), s.c(x)), "addcmul of three values"),
        (lambda s, x: torch.cat(s.c(x).chunk(2, 1)), "cat of a list that is not written out"),
        (lambda s, x: torch.cat(s.c(x).split(1, 1)[1:], 1), "several parts at once"),
    ],
)
def test_calls_that_only_look_supported(function, named: str) -> None:
    net = Calls(function, c=conv(), r=conv(padding_mode="reflect"))
    with pytest.raises(UnsupportedOpError, match=named):
        refuse_all(net)


def test_what_relevance_does_not_reach_needs_no_rule() -> None:
    graph = graph_of(lambda s, x: s.c(x) * torch.erf(s.c(x)).detach(), c=conv())
    assert "unsupported" in {c.kind for c in graph.calls}


def test_a_rule_of_ones_own_comes_first() -> None:
    net = Calls(lambda s, x: s.p(torch.erf(F.relu(s.c(x)))).exp(), c=conv(), p=nn.LPPool2d(2, 2))
    rules = {nn.LPPool2d: print, torch.erf: repr, F.relu: id, "exp": len}  # not called here
    found = {c.name: c.options["rule"] for c in trace(net, False, custom_rules=rules).calls if c.kind == "custom"}
    assert found == {"relu": id, "erf": repr, "p": print, "exp": len}


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
        refuse_all(net)


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


@pytest.mark.parametrize(
    ("end", "named"),
    [
        (lambda s, x: s.c(x).mean((2, 3)).detach(), r"only through detach at \(root\)"),
        (lambda s, x: s.c(x.detach()).mean((2, 3)), r"only through detach at \(root\)"),
        (lambda s, x: F.one_hot(s.c(x).mean((2, 3)).argmax(1), 4), r"only through argmax at"),
        (lambda s, x: torch.zeros(x.shape[0], 4), "only through shape at"),
        (lambda s, x: torch.zeros(2, 4), "do not depend on its images: return"),
        (lambda s, x: s.c.bias.unsqueeze(0), "do not depend on its images: return"),
    ],
)
def test_logits_that_do_not_depend_on_the_images(end: Any, named: str) -> None:
    net = Calls(lambda s, x: x, c=conv())
    net.forward = lambda x: end(net, x)  # type: ignore[method-assign]
    with pytest.raises(TraceError, match=f"the logits of Calls .*{named}"):
        trace(net, False)


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


class Two(nn.Module):
    """Features or an auxiliary head, and logits."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order, self.conv, self.head, self.auxiliary = order, conv(), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        features = self.conv(x).relu().mean((2, 3))
        logits = self.head(features)
        values = {"features": features, "logits": logits, "soft": logits.softmax(1), "aux": self.auxiliary(features)}
        return tuple(values[name] for name in self.order.split())


@pytest.mark.parametrize("order", ["logits", "logits features", "logits aux", "logits soft", "logits aux features"])
def test_the_first_of_several_outputs_is_the_logits(order: str) -> None:
    assert trace(Two(order), False).output == "head"


@pytest.mark.parametrize("order", ["features logits", "features aux", "features features soft"])
def test_features_are_not_taken_for_logits(order: str) -> None:
    with pytest.raises(TraceError, match="these look like features"):
        trace(Two(order), False)
