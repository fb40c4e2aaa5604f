"""The tape computes what the classifier computes, to the bit, and changes no more state than it does."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.lrp.trace.test_build import Counts
from tests.oracles.gradients import input_x_gradient
from tests.oracles.nets import Calls, Tiny, conv, tiny
from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.trace.build import trace
from tw_seg.lrp.trace.modes import follow_modes


def tape_of(net: nn.Module, images: Tensor) -> Tape:
    graphs = follow_modes(trace(net, False), trace(net, True))
    return Tape(net, graphs[net.training], images)


def pictures(*size: int) -> Tensor:
    return torch.randn(*(size or (2, 3, 11, 9)), dtype=torch.float64)


def assert_same_run(net: nn.Module, images: Tensor) -> None:
    """Logits, buffers and random state as after the classifier's own forward."""
    twin = copy.deepcopy(net)
    torch.manual_seed(5)
    expected = twin(images.clone())
    state = torch.random.get_rng_state()
    torch.manual_seed(5)
    given = images.clone()
    found = tape_of(net, given).logits
    assert torch.equal(found, expected)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(given, images)
    for (name, buffer), other in zip(net.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, other), name
    assert [m.training for m in net.modules()] == [m.training for m in twin.modules()]


@pytest.mark.parametrize("training", [False, True])
def test_standard_nets(quick, training: bool) -> None:
    net, images = quick
    assert_same_run(copy.deepcopy(net).train(training), images)


@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout2d, F.dropout, F.dropout2d])
def test_dropout(layer, training: bool, p: float) -> None:
    if isinstance(layer, type):
        net = Calls(lambda s, x: s.d(F.relu(s.c(x))), c=conv(), d=layer(p))
    else:
        net = Calls(lambda s, x: layer(F.relu(s.c(x)), p, s.training), c=conv())
    assert_same_run(net.train(training), pictures())


def test_numbers_that_change_between_runs() -> None:
    net = Calls(lambda s, x: s.d(s.n(s.c(x))), c=conv(), n=nn.BatchNorm2d(4), d=nn.Dropout(0.2)).train()
    graph, images = trace(net, True), pictures()
    net.d.p, net.n.eps = 0.7, 0.5
    torch.manual_seed(5)
    expected = net(images)
    torch.manual_seed(5)
    tape = Tape(net, graph, images)
    assert torch.equal(tape.logits, expected)
    variance = tape.values["c"].var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(tape.saved["n"], ((variance + 0.5).rsqrt(), tape.values["c"].mean((0, 2, 3))))


def test_dropout_that_is_always_on() -> None:
    assert_same_run(Calls(lambda s, x: F.dropout(s.c(x), 0.5), c=conv()).eval(), pictures())


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4, eps=0.1, momentum=0.5),
        Counts(),
    ],
    ids=["no affine", "no statistics", "no momentum", "options", "functional"],
)
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm(norm: nn.Module, training: bool) -> None:
    net = Calls(lambda s, x: F.relu(s.n(s.c(x))), c=conv(), n=copy.deepcopy(norm)).train(training)
    for _ in range(2):
        assert_same_run(net, pictures())


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), Counts()], ids=["module", "functional"])
def test_parts_frozen_in_evaluation_mode(norm: nn.Module) -> None:
    """Flags are read where they stand: a net in training with frozen BatchNorm, or dropout on in a frozen net."""
    net = Calls(lambda s, x: s.d(s.n(s.c(x))), c=conv(), n=copy.deepcopy(norm), d=nn.Dropout(0.5)).train()
    before = {k: v.clone() for k, v in net.named_buffers() if "batches" not in k}
    net.n.eval()
    (net.n.norm if isinstance(norm, Counts) else net.n).eval()
    images = pictures()
    torch.manual_seed(5)
    expected = net(images)
    torch.manual_seed(5)
    assert torch.equal(tape_of(net, images).logits, expected)
    assert all(torch.equal(v, before[k]) for k, v in net.named_buffers() if "batches" not in k)
    net.eval()
    net.d.train()
    assert_same_run(net, images)


def reread(s, x):
    y = s.c(x)
    z = F.relu_(y)
    return y + z


def reread_method(s, x):
    y = s.c(x)
    y.add_(1.0).relu_()
    return y


def reread_operator(s, x):
    y = s.c(x)
    z = y
    z += x.mean(1, keepdim=True)
    return y


def reread_identity(s, x):
    y = s.c(x)
    z = F.relu(s.i(y), inplace=True)
    return y + z


def reread_module(s, x):
    y = s.c(x)
    s.r(y)
    return y + s.d(s.r(y))


def constant_in_place(s, x):
    k = s.p.clone()
    k.mul_(2)
    k += 1
    return s.c(x) + k


def view_of_a_constant_in_place(s, x):
    """As in Swin v2: a part of a copy is set to zero, and nobody reads that part by itself."""
    k = s.p.clone()
    k[:, 1:3].zero_()
    k.view(2, -1)[:, 5:9].fill_(2)
    k[:, :, 4] = 3.0
    k.view(-1)[::2].mul_(3)
    k[0, 0] = 1
    return s.c(x) + k


def images_into_constant(s, x):
    k = s.p.clone()
    k += s.c(x)
    return k + x.mean(1, keepdim=True)


def images_in_place(s, x):
    x = F.relu_(x)
    return s.c(x)


def dead_in_place(s, x):
    y = s.c(x)
    y.mul_(2)
    return y


def aliased_in_place(s, x):
    z = y = s.c(x)
    z *= 2
    w = z
    w -= 1.0
    return y


def clamped_in_place(s, x):
    y = s.c(x).clamp_(-0.5, 0.5)
    y.sigmoid_().sub_(0.2).div_(2)
    y.masked_fill_(y < 0, 0.0)
    return y


IN_PLACE = [
    reread, reread_method, dead_in_place, aliased_in_place, clamped_in_place, reread_operator, reread_identity,
    reread_module, constant_in_place, view_of_a_constant_in_place, images_into_constant, images_in_place,
]  # fmt: skip


@pytest.mark.parametrize("function", IN_PLACE)
def test_in_place_calls_and_what_reads_them(function) -> None:
    net = Calls(
        function, c=conv(), r=nn.ReLU(inplace=True), i=nn.Identity(), d=nn.Dropout(0.5, inplace=True),
        p=nn.Parameter(torch.randn(2, 4, 11, 9)),
    )  # fmt: skip
    assert_same_run(net, pictures())


class Shapes(nn.Module):
    """Reshaping by sizes that are read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.c = conv()
        self.fc = nn.Linear(4 * 99, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        n, (h, w) = x.size(0), x.shape[2:]
        x = self.c(x).view(n, 4, h * w)
        x = F.relu(x.reshape(n, x.size(1), -1), inplace=True)
        return self.fc(torch.flatten(x.unsqueeze(1).squeeze(1), 1))


def test_reshaping() -> None:
    assert_same_run(Shapes(), pictures())


@pytest.mark.parametrize(
    "images",
    [
        pictures(2, 3, 12, 10).to(memory_format=torch.channels_last),
        pictures(2, 11, 9, 3).transpose(1, 3),
        pictures(4, 3, 12, 20)[::2, :, ::1, ::2],
        pictures(1, 3, 1, 1),
    ],
    ids=["channels_last", "transposed", "strided", "one pixel"],
)
def test_layouts(images: Tensor) -> None:
    assert_same_run(tiny(dropout=0.3), images)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("parametrization", ["weight_norm", "spectral_norm", "orthogonal"])
def test_shared_weights_and_parametrizations(parametrization: str, training: bool) -> None:
    """spectral_norm goes one step on whenever its weight is looked at in training mode."""
    net = Calls(lambda s, x: s.b(s.c(F.relu(s.b(s.c(s.a(x)))))), a=conv(), c=conv(4, 4), b=nn.BatchNorm2d(4))
    getattr(parametrizations, parametrization)(net.c)
    images = pictures()
    assert_same_run(net.double().train(training), images)
    twin = copy.deepcopy(net)
    twin(images)
    HeatmapDecoder(net, schedule={"recompute": True})(images).heatmaps.sum().backward()
    for (name, buffer), other in zip(net.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, other), name


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda s, x: torch.cat((s.c(x), s.c(x))), r"cat .* over axes \(0,\) mixes the images"),
        (lambda s, x: s.c(x) + x.mean((0, 1), keepdim=True), r"mean .* over axes \(0, 1\) mixes the images"),
        (lambda s, x: s.c(x) + s.c(x).sum(0, keepdim=True), r"sum .* over axes \(0,\) mixes the images"),
        (lambda s, x: s.c(x).permute(1, 0, 2, 3).reshape(8, 11, 9)[:, None] + 0 * x[:1, :1], "joins the batch axis 1"),
        (lambda s, x: s.c(x)[:1], "mixes the images"),
        (lambda s, x: s.c(x).view(3, 8, 11, 3), r"reshape .* turns 2 images into \(3, 8, 11, 3\)"),
        (lambda s, x: s.c(x).view(1, 8, 11, 9), r"reshape .* turns 2 images into \(1, 8, 11, 9\)"),
        (lambda s, x: s.c(x).roll(1, 0), "mixes the images"),
        (lambda s, x: s.c(x).flip(0), "mixes the images"),
    ],
)
def test_the_batch_is_not_mixed(function, named: str) -> None:
    net, images = Calls(function, c=conv()), pictures()
    with pytest.raises(UnsupportedOpError, match=named):
        HeatmapDecoder(net)(images)


AXES = {
    "first": (lambda s, x: s.c(x), {"c": 0}),
    "moved": (
        lambda s, x: s.c(x).permute(1, 2, 0, 3).relu().transpose(0, 2).transpose(1, 2), {"permute": 2, "relu": 2},
    ),
    "behind a new axis": (lambda s, x: s.c(x).unsqueeze(0).relu().squeeze(0), {"unsqueeze": 1, "squeeze": 0}),
    "qkv": (
        lambda s, x: sum(s.c(x).unflatten(1, (2, 2)).permute(1, 0, 2, 3, 4).unbind(0)).repeat(1, 2, 1, 1),
        {"permute": 1, "unbind": 0, "getitem": 0, "repeat": 0},
    ),
    "several rows for each image": (
        lambda s, x: s.c(x).view(-1, 2, 11, 9).relu().view(-1, 4, 11, 9), {"view": 0, "relu": 0, "view_1": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AXES)
def test_where_the_batch_is(name: str) -> None:
    function, expected = AXES[name]
    net, images = Calls(function, c=conv()), pictures()
    tape = tape_of(net, images)
    assert {call: tape.axes[call] for call in expected} == expected
    assert tape.axes.keys() == {tape.graph.input, *(c.name for c in tape.graph.calls if c.inputs)}
    expected_maps = input_x_gradient(net, images)
    torch.testing.assert_close(HeatmapDecoder(net)(images).heatmaps, expected_maps, rtol=1e-12, atol=1e-13)


def test_only_what_the_decode_needs_is_saved() -> None:
    net = Tiny(dropout=0.3).train()
    tape = tape_of(net.double(), pictures())
    kinds = {c.name: c.kind for c in tape.graph.calls}
    assert sorted(kinds[name] for name in tape.saved) == [
        "batch_norm",
        "batch_norm",
        "dropout",
        "max_pool",
        "relu",
        "relu",
    ]
    tape = tape_of(net.eval(), pictures())
    assert "dropout" not in {kinds.get(name) for name in tape.saved}


def test_statistics_of_half_precision_are_float32() -> None:
    net = Calls(lambda s, x: s.n(s.c(x)), c=conv(), n=nn.BatchNorm2d(4)).float().train()
    images = pictures(4, 3, 32, 32).float()
    full = tape_of(net, images).saved["n"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = tape_of(net, images).saved["n"]
    assert [statistic.dtype for statistic in half] == [torch.float32] * 2
    torch.testing.assert_close(half[0], full[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(half[1], full[1], rtol=0, atol=2**-8)


def test_random_state_of_a_decode_is_that_of_the_forward() -> None:
    net = tiny(dropout=0.5).train()
    decoder = HeatmapDecoder(net, schedule={"chunk_size": 1, "recompute": True})
    torch.manual_seed(2)
    expected = copy.deepcopy(net)(pictures(2, 3, 11, 9))
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    found = decoder(pictures(2, 3, 11, 9))
    found.heatmaps.sum().backward()
    assert torch.equal(found.logits, expected)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_activations_go_when_nothing_needs_them() -> None:
    """What is left of them is a shape, and a look at their elements is an error."""
    decoder, images = HeatmapDecoder(tiny(dropout=0.5).train()), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    tape, (whole, _) = decoder.record(images), decoder.coefficients(images)
    relevant = [call.name for call in tape.graph.calls if call.inputs]
    assert [name for name in relevant if not tape.values[name].is_meta] == [tape.graph.output]
    assert [tape.values[name].shape for name in relevant] == [whole.values[name].shape for name in relevant]
    with pytest.raises((NotImplementedError, RuntimeError)):
        tape.values[relevant[0]].sum().item()


def test_activations_that_a_rule_looks_at_are_kept() -> None:
    decoder = HeatmapDecoder(tiny(), "epsilon_plus")
    tape = decoder.record(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    linear = [call for call in tape.graph.calls if call.kind in ("conv", "linear")]
    for call in linear:
        read = {*call.inputs, call.norm or call.name}
        assert not any(tape.values[name].is_meta for name in read)


def test_read_outs_are_kept() -> None:
    decoder = HeatmapDecoder(tiny(), read_out="conv2")
    tape = decoder.record(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert not tape.values[tape.graph.readout("conv2")].is_meta
    before = [call.name for call in tape.graph.calls if call.kind == "relu"][0]
    assert before not in tape.saved  # nothing is decoded that far


def test_memory_of_a_tape_without_a_graph() -> None:
    """One byte for each element behind a ReLU and the winners of the pool, in place of every activation."""
    decoder = HeatmapDecoder(tiny()).eval()
    with torch.no_grad():
        tape = decoder.record(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    held = [v for v in (*tape.values.values(), *tape.saved.values()) if isinstance(v, torch.Tensor) and not v.is_meta]
    sizes = sorted(v.numel() * v.element_size() for v in held)
    relu, pool = 2 * 4 * 8 * 8, 2 * 4 * 4 * 4
    assert sizes == sorted([tape.images.numel() * 8, tape.logits.numel() * 8, relu, pool, pool * 8])


def test_with_a_graph_gates_are_computed_from_what_autograd_keeps() -> None:
    decoder, kept = HeatmapDecoder(tiny()), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        tape = decoder.record(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    gates = [tape.saved[call.name] for call in tape.graph.calls if call.kind == "relu"]
    of_autograd = {x.untyped_storage().data_ptr() for x in kept}
    assert gates and all(gate.untyped_storage().data_ptr() in of_autograd for gate in gates)
