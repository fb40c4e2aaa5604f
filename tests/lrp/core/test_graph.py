"""Calls by place and by what depends on them, and nested arguments."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from torch import nn

from tests.oracles.nets import Calls, conv
from tw_seg.lrp.core.graph import Call, Graph, Ref, map_leaves, refs
from tw_seg.lrp.ops import OPS
from tw_seg.lrp.trace.build import trace


def graph_of(function, **modules) -> Graph:
    return trace(Calls(function, **modules), False)


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


def test_a_constant_is_no_place() -> None:
    """A size, or a value of parameters alone, carries no relevance."""
    graph = graph_of(lambda s, x: s.a(x) + s.b.weight.mean((1, 2, 3)).view(1, 4, 1, 1), a=conv(), b=conv())
    assert {"view", "mean"} <= {c.name for c in graph.calls if c.kind == "constant"}
    for place in ("view", "mean", "b"):
        with pytest.raises(KeyError):
            graph.readout(place)


@pytest.mark.parametrize(
    ("fraction", "place"),
    [
        (0, "input"),
        (0.0, "input"),
        (0.2, "a"),
        (1 / 3, "a"),
        (0.34, "c"),
        (2 / 3, "c"),
        (0.7, "t"),
        (1, "t"),
        (1.0, "t"),
    ],
)
def test_a_fraction_counts_convolutions(fraction: float, place: str) -> None:
    """Convolution number ``ceil(f * n)`` of n, transposed ones included."""
    graph = graph_of(lambda s, x: s.t(s.c(F.relu(s.a(x)))), a=conv(), c=conv(4, 4), t=nn.ConvTranspose2d(4, 4, 2))
    assert graph.readout(fraction) == (graph.input if place == "input" else place)


@pytest.mark.parametrize("number", range(1, 50))
def test_every_multiple_of_one_over_n_is_a_convolution(number: int) -> None:
    """``k / n * n`` is not always k in floating point."""
    calls = [Call(f"c{k}", "", OPS["conv"], "call_module", "c", (), {}, ("x",)) for k in range(1, number + 1)]
    graph = Graph(tuple(calls), "x", calls[-1].name)
    assert [graph.readout(k / number) for k in range(1, number + 1)] == [call.name for call in calls]


@pytest.mark.parametrize("fraction", [-0.1, 1.1, 2, float("nan")])
def test_no_such_fraction(fraction: float) -> None:
    with pytest.raises(KeyError):
        graph_of(lambda s, x: s.a(x), a=conv()).readout(fraction)


def test_downstream() -> None:
    graph = graph_of(lambda s, x: s.a(x) + s.b(x), a=conv(), b=conv())
    assert graph.downstream(("a",)) == {"a", "add", "mean", "fc"}


def test_nested_arguments() -> None:
    value = ({"a": [Ref("x"), 1]}, slice(Ref("y"), None, Ref("x")), (Ref("z"),), "text")
    assert refs(value) == ["x", "y", "x", "z"]
    found = map_leaves(value, lambda leaf: leaf.name if isinstance(leaf, Ref) else leaf)
    assert found == ({"a": ["x", 1]}, slice("y", None, "x"), ("z",), "text")
