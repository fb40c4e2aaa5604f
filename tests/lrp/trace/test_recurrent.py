"""Recurrent layers, step by step: torch's numbers, and relevance to what the gates let through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.lrp.ops.harness import Body, Case, check, randomise
from tests.oracles.gradients import input_x_gradient
from tw_seg.errors import TraceError
from tw_seg.lrp import HeatmapDecoder

FEATURES, PLACES, HIDDEN = 4, 3, 3


class Read(nn.Module):
    """A recurrent layer along the columns of an image; returns all that it returns, in one tensor."""

    def __init__(self, layer: nn.RNNBase, *, given: bool = False) -> None:
        super().__init__()
        self.layer = layer
        sizes = [getattr(layer, "proj_size", 0) or layer.hidden_size, layer.hidden_size][: 1 + (layer.mode == "LSTM")]
        number = layer.num_layers * (1 + layer.bidirectional)
        self.start = nn.ParameterList(nn.Parameter(torch.randn(number, 1, size)) for size in sizes if given)

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.mean(2).transpose(1, 2)  # (N, places, channels)
        start = [s.expand(-1, x.shape[0], -1).contiguous() for s in self.start]
        hx = None if not start else tuple(start) if len(start) == 2 else start[0]
        result, last = self.layer(sequence if self.layer.batch_first else sequence.transpose(0, 1), hx)
        result = result if self.layer.batch_first else result.transpose(0, 1)
        states = last if isinstance(last, tuple) else (last,)
        return torch.cat([result.flatten(1), *(s.transpose(0, 1).flatten(1) for s in states)], 1)


def assert_equals_torch(net: nn.Module, images: Tensor) -> None:
    decoder = HeatmapDecoder(net.eval(), image_size=images.shape[2:]).eval()
    torch.testing.assert_close(decoder(images, classes=[0]).logits, net(images), rtol=0, atol=1e-12)


KINDS = [nn.LSTM, nn.GRU, nn.RNN]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False, "batch_first": True},
    {"bidirectional": True, "num_layers": 2, "batch_first": True},
    {"num_layers": 3},
]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_torch(kind: type[nn.RNNBase], options: dict[str, Any], given: bool) -> None:
    net = Read(kind(3, HIDDEN, **options), given=given).double()
    images = torch.randn(4, 3, 2, PLACES, dtype=torch.float64)
    assert_equals_torch(net, images)


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(3, HIDDEN, proj_size=2, bidirectional=True, num_layers=2),
        nn.RNN(3, HIDDEN, nonlinearity="relu", batch_first=True),
        nn.GRU(3, HIDDEN, num_layers=2, dropout=0.5),
    ],
)
def test_options_of_one_kind_equal_torch(layer: nn.RNNBase) -> None:
    net = Read(layer).double()
    images = torch.randn(4, 3, 2, PLACES, dtype=torch.float64)
    assert_equals_torch(net, images)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_equal_torch(cell: type[nn.RNNCellBase]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell(3, HIDDEN)

        def forward(self, x: Tensor) -> Tensor:
            state = self.cell(x[..., 0].mean(2))
            state = self.cell(x[..., 1].mean(2), state)
            return torch.cat(state, 1) if isinstance(state, tuple) else state

    net, images = Net().double(), torch.randn(4, 3, 2, 2, dtype=torch.float64)
    assert_equals_torch(net, images)


def tanh(u: Tensor) -> Tensor:
    return u * (torch.tanh(u) / u).detach()


def gate(u: Tensor) -> Tensor:
    return torch.sigmoid(u).detach()


def read_lstm(layer: nn.LSTM, sequence: Tensor, ends: str) -> Tensor:
    """Its equations, gates and slopes held: torch's documentation of ``nn.LSTM``."""
    w, u, b, d = (getattr(layer, f"{n}{ends}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    n, results = layer.hidden_size, []
    h = cell = sequence.new_zeros(sequence.shape[0], n)
    for x in sequence.unbind(1):
        i, f, g, o = (x @ w[k * n : (k + 1) * n].T + b[k * n : (k + 1) * n] + h @ u[k * n : (k + 1) * n].T
                      + d[k * n : (k + 1) * n] for k in range(4))  # fmt: skip
        cell = gate(f) * cell + gate(i) * tanh(g)
        h = gate(o) * tanh(cell)
        results.append(h)
    return torch.stack(results, 1)


def read_gru(layer: nn.GRU, sequence: Tensor, ends: str) -> Tensor:
    w, u, b, d = (getattr(layer, f"{n}{ends}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    n, results = layer.hidden_size, []
    h = sequence.new_zeros(sequence.shape[0], n)
    for x in sequence.unbind(1):
        (xr, xz, xn), (hr, hz, hn) = F.linear(x, w, b).split(n, 1), F.linear(h, u, d).split(n, 1)
        value = tanh(xn + gate(xr + hr) * hn)
        h = (1 - gate(xz + hz)) * value + gate(xz + hz) * h
        results.append(h)
    return torch.stack(results, 1)


def read_rnn(layer: nn.RNN, sequence: Tensor, ends: str) -> Tensor:
    w, u, b, d = (getattr(layer, f"{n}{ends}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h, results = sequence.new_zeros(sequence.shape[0], layer.hidden_size), []
    for x in sequence.unbind(1):
        h = tanh(F.linear(x, w, b) + F.linear(h, u, d))
        results.append(h)
    return torch.stack(results, 1)


def places(s: Any, x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(s.a(x), (1, PLACES)).squeeze(2).transpose(1, 2)


READ = {nn.LSTM: read_lstm, nn.GRU: read_gru, nn.RNN: read_rnn}


@pytest.mark.parametrize("kind", KINDS)
def test_relevance_passes_gates(kind: type[nn.RNNBase]) -> None:
    body: Body = lambda s, x: s.layer(places(s, x))[0]  # noqa: E731
    surrogate: Body = lambda s, x: READ[kind](s.layer, places(s, x), "_l0")  # noqa: E731
    check(Case(body, surrogate, modules=lambda: {"layer": kind(FEATURES, HIDDEN, batch_first=True)}))


@pytest.mark.parametrize("kind", KINDS)
def test_relevance_of_last_states_in_both_directions_and_two_layers(kind: type[nn.RNNBase]) -> None:
    def surrogate(s: Any, x: Tensor) -> Tensor:
        sequence, states = places(s, x), []
        for layer in range(2):
            ahead = READ[kind](s.layer, sequence, f"_l{layer}")
            back = READ[kind](s.layer, sequence.flip(1), f"_l{layer}_reverse").flip(1)
            states += [ahead[:, -1], back[:, 0]]
            sequence = torch.cat([ahead, back], -1)
        return torch.stack(states, 1)

    def body(s: Any, x: Tensor) -> Tensor:
        last = s.layer(places(s, x).transpose(0, 1))[1]
        return (last[0] if isinstance(last, tuple) else last).transpose(0, 1)

    modules = {"num_layers": 2, "bidirectional": True}
    check(Case(body, surrogate, modules=lambda: {"layer": kind(FEATURES, HIDDEN, **modules)}))


def test_images_of_another_size_are_traced_again() -> None:
    net = nn.Sequential(Columns(), nn.Linear(HIDDEN, 2)).double().eval()
    decoder = HeatmapDecoder(net, image_size=(4, 6)).eval()
    for width in (6, 3):
        images = torch.randn(2, 3, 4, width, dtype=torch.float64)
        torch.testing.assert_close(decoder(images).logits, net(images), rtol=0, atol=1e-12)


class Columns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(3, HIDDEN, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mean(2).transpose(1, 2))[0][:, -1]


def test_a_linear_recurrence_is_input_x_gradient() -> None:
    net = nn.Sequential(Read(nn.RNN(3, HIDDEN, nonlinearity="relu", batch_first=True)), nn.Linear(12, 2))
    net, images = randomise(net.double()).eval(), torch.randn(2, 3, 2, PLACES, dtype=torch.float64)
    decoder = HeatmapDecoder(net, composite_kwargs={"epsilon": 0.0}, image_size=(2, PLACES)).eval()
    torch.testing.assert_close(decoder(images).heatmaps, input_x_gradient(net, images), rtol=0, atol=1e-12)


def test_a_single_sequence_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.GRU(3, HIDDEN)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.mean((2, 3)))[0]

    with pytest.raises(TraceError, match="GRU needs a batch of sequences of 3 axes, got a single sequence"):
        HeatmapDecoder(Net())
