"""Tied and own weights: whose they are, wherever a decoder goes, and that the decode reads them."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.lrp.decoding import assert_equal, loss_of, pictures
from tests.oracles import nets
from tests.oracles.gradients import gradients, input_x_gradient
from tests.oracles.nets import Calls, Tiny, conv
from tw_seg.errors import InputError
from tw_seg.lrp import HeatmapDecoder


def test_finite_differences_of_decoder_weights() -> None:
    decoder = HeatmapDecoder(nets.tiny(), tie_weights=False)
    names, weights = zip(*decoder.decoder_weights.items(), strict=True)
    images = pictures(2, 3, 9, 8)

    def function(*values: Tensor) -> Tensor:
        swapped = {f"decoder_weights.{n}": v for n, v in zip(names, values, strict=True)}
        return torch.func.functional_call(decoder, swapped, (images,)).heatmaps

    assert torch.autograd.gradcheck(function, weights)


def assert_tied(decoder: HeatmapDecoder) -> None:
    """Every parameter is the classifier's, and a change of one of them changes the decode."""
    own = {id(p) for p in decoder.classifier.parameters()}
    assert {id(p) for p in decoder.parameters()} == own
    images = pictures(1, 3, 17, 19).to(next(decoder.parameters()).dtype)
    before = decoder(images).heatmaps
    with torch.no_grad():
        decoder.classifier.conv2.weight.mul_(1.5)
    after = decoder(images).heatmaps
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, HeatmapDecoder(decoder.classifier)(images).heatmaps)


@pytest.fixture(params=["as made", "to", "float", "deepcopy", "state dict", "saved whole", "reassigned"])
def moved(request: pytest.FixtureRequest) -> Any:
    """A way in which a module travels."""

    def move(decoder: HeatmapDecoder) -> HeatmapDecoder:
        match request.param:
            case "to":
                return decoder.to("cpu", torch.float32)
            case "float":
                return decoder.float().double()
            case "deepcopy":
                return copy.deepcopy(decoder)
            case "state dict":
                other = HeatmapDecoder(Tiny().double(), tie_weights=decoder.tie_weights).eval()
                other.load_state_dict(decoder.state_dict())
                return other
            case "saved whole":
                file = io.BytesIO()
                torch.save(decoder, file)
                file.seek(0)
                return torch.load(file, weights_only=False)
            case "reassigned":
                decoder.load_state_dict(copy.deepcopy(decoder.state_dict()), assign=True)
                return decoder
        return decoder

    return move


def test_tied_parameters_are_the_classifiers(moved) -> None:
    net = nets.tiny()
    names = [name for name, _ in net.named_parameters()]
    decoder = moved(HeatmapDecoder(net))
    assert [name for name, _ in decoder.named_parameters()] == [f"classifier.{name}" for name in names]
    assert_tied(decoder)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_tying_survives_ddp(tie_weights: bool, tmp_path) -> None:
    """One process: DDP synchronises parameters at the start and hooks every gradient."""
    decoder, images = HeatmapDecoder(nets.tiny(), tie_weights=tie_weights), pictures()
    expected = gradients(decoder(images).heatmaps.square().sum(), list(decoder.parameters()))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(decoder, find_unused_parameters=True)
        assert wrapped.module is decoder
        assert {id(p) for p in wrapped.parameters()} == {id(p) for p in decoder.parameters()}
        decoder.zero_grad()
        wrapped(images).heatmaps.square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in decoder.parameters()]
    torch.testing.assert_close(found, expected)


def test_tied_state_dict_is_the_classifiers() -> None:
    net = nets.tiny()
    state = HeatmapDecoder(net).state_dict()
    assert list(state) == [f"classifier.{name}" for name in net.state_dict()]


def test_a_state_dict_of_data_parallel_loads() -> None:
    net = nets.tiny()
    wrapped = nn.DataParallel(HeatmapDecoder(net))
    other = HeatmapDecoder(Tiny().double())
    state = {k.removeprefix("module."): v for k, v in wrapped.state_dict().items()}
    other.load_state_dict(state)
    images = pictures()
    assert_equal(other.eval()(images), HeatmapDecoder(net)(images))


def test_decoder_weights_are_apart(moved) -> None:
    net, images = nets.tiny(), pictures()
    decoder = moved(HeatmapDecoder(net, tie_weights=False)).double()
    assert_equal(decoder(images), HeatmapDecoder(net)(images), 1e-5)  # equal at the start, but for float32
    shared = {id(p) for p in decoder.classifier.parameters()}
    assert not shared & {id(p) for p in decoder.decoder_weights.values()}
    before = decoder(images)
    with torch.no_grad():
        for weight in decoder.decoder_weights.values():
            weight.mul_(1.1)
    after = decoder(images)
    assert torch.equal(after.logits, before.logits)
    assert not torch.allclose(after.heatmaps, before.heatmaps)
    decoder.reset_decoder_weights()
    assert_equal(decoder(images), before)


def test_decoder_weights_have_no_biases_and_all_learn(quick) -> None:
    net, images = quick
    net = copy.deepcopy(net).train()
    decoder = HeatmapDecoder(net, tie_weights=False)
    named = {n.replace("/", "."): w for n, w in decoder.decoder_weights.items()}
    weights = {n: p for n, p in net.named_parameters() if n.endswith("weight")}
    assert named.keys() == weights.keys()
    assert all(w.shape == weights[n].shape and torch.equal(w, weights[n]) for n, w in named.items())
    loss_of(decoder(images).heatmaps).backward()
    assert all(w.grad is not None and w.grad.any() for w in named.values())


def test_gradients_of_own_and_tied_weights_add_up() -> None:
    """The gradient of a tied weight is its part in the decode plus its part in the forward run."""
    images = pictures()
    tied, untied = nets.tiny(), nets.tiny()
    loss_of(HeatmapDecoder(tied)(images).heatmaps).backward()
    decoder = HeatmapDecoder(untied, tie_weights=False)
    loss_of(decoder(images).heatmaps).backward()
    for name, parameter in untied.named_parameters():
        own = decoder.decoder_weights[name.replace(".", "/")].grad if name.endswith("weight") else 0
        forward = 0 if parameter.grad is None else parameter.grad
        expected = dict(tied.named_parameters())[name].grad
        if expected is not None:
            torch.testing.assert_close(own + forward, expected, rtol=1e-10, atol=1e-13)


def test_decoder_weights_are_those_that_the_decode_reads() -> None:
    decoder = HeatmapDecoder(nets.tiny(), tie_weights=False, read_out="bn2")
    assert list(decoder.decoder_weights) == ["conv3/weight", "fc/weight"]
    fused = HeatmapDecoder(nets.tiny(), tie_weights=False, read_out="conv2")
    assert list(fused.decoder_weights) == ["bn2/weight", "conv3/weight", "fc/weight"]
    loss_of(fused(pictures()).heatmaps).backward()
    assert all(w.grad is not None for w in fused.decoder_weights.values())


def test_own_copy_of_a_shared_weight_is_shared() -> None:
    net = Calls(lambda s, x: s.b(F.relu(s.a(s.stem(x)))), stem=conv(), a=conv(4, 4), b=conv(4, 4))
    net.b.weight = net.a.weight
    decoder = HeatmapDecoder(net, tie_weights=False)
    assert decoder.decoder_weights["a/weight"] is decoder.decoder_weights["b/weight"]
    assert len(list(decoder.decoder_weights.parameters())) == 3


def test_decoder_weights_of_a_frozen_classifier_are_trained() -> None:
    decoder = HeatmapDecoder(nets.tiny().requires_grad_(False), tie_weights=False)
    assert all(w.requires_grad for w in decoder.decoder_weights.values())


def test_functional_weights() -> None:
    net = Calls(lambda s, x: F.relu(F.conv2d(x, s.w, padding=1)), w=nn.Parameter(torch.randn(4, 3, 3, 3)))
    images = pictures()
    torch.testing.assert_close(HeatmapDecoder(net)(images).heatmaps, input_x_gradient(net, images))
    decoder = HeatmapDecoder(net, tie_weights=False)
    assert set(decoder.decoder_weights) == {"w", "fc/weight"}
    decoder(images).heatmaps.sum().backward()
    assert decoder.decoder_weights["w"].grad is not None


class Mixer(nn.Module):
    """Weights that are no convolution's: norms, layer scales, a quotient, a product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.layer = nn.LayerNorm(4)
        self.rms = nn.RMSNorm(4)
        self.group, self.instance = nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)
        self.prelu = nn.PReLU(4)
        self.gamma = nn.Parameter(torch.rand(4))
        self.temperature = nn.Parameter(torch.rand(4, 1, 1) + 1)
        self.mixing = nn.Parameter(torch.randn(4, 4))
        self.heads = nn.Parameter(torch.randn(4, 5))
        self.fc = nn.Linear(5, 3)
        nets.initialise(self)
        for module in (self.layer, self.rms, self.group, self.instance):
            nn.init.uniform_(module.weight, 0.5, 1.5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(self.group(self.stem(x)))
        x = self.prelu(x) / self.temperature
        x = x.permute(0, 2, 3, 1)
        x = x + self.layer(x) * self.gamma
        x = torch.matmul(self.rms(x), self.mixing)
        x = torch.einsum("nhwc,cd->nhwd", x, self.heads)
        return self.fc(x.mean((1, 2)))


OWN = ("stem.weight", "layer.weight", "rms.weight", "group.weight", "instance.weight", "prelu.weight", "fc.weight",
       "gamma", "temperature", "mixing", "heads")  # fmt: skip


def test_decoder_weights_of_norms_and_scales() -> None:
    net, images = Mixer(), pictures(2, 3, 8, 9)
    decoder = HeatmapDecoder(net, tie_weights=False)
    assert sorted(name.replace("/", ".") for name in decoder.decoder_weights) == sorted(OWN)
    numbers = {name: p.numel() for name, p in net.named_parameters()}
    assert sum(p.numel() for p in decoder.parameters()) == sum(numbers.values()) + sum(numbers[n] for n in OWN)
    torch.testing.assert_close(decoder(images).heatmaps, HeatmapDecoder(net)(images).heatmaps)


@pytest.mark.parametrize("name", OWN)
def test_each_own_weight_is_the_one_that_is_used(name: str) -> None:
    """The decode reads the decoder's copy, and no weight of the classifier but in the values of the forward run."""
    net, images = Mixer(), pictures(2, 3, 8, 9)
    decoder = HeatmapDecoder(net, tie_weights=False)
    own = decoder.decoder_weights[name.replace(".", "/")]
    before = decoder(images)
    with torch.no_grad():
        own.mul_(torch.rand_like(own) + 0.5)
    changed = decoder(images)
    assert torch.equal(changed.logits, before.logits) and not torch.allclose(changed.heatmaps, before.heatmaps)
    changed.heatmaps.square().sum().backward()
    assert own.grad is not None and own.grad.any()
    twin = copy.deepcopy(decoder)  # the same change to the classifier, and then to the copies
    with torch.no_grad():
        decoder.classifier.get_parameter(name).copy_(own)
        for key, other in twin.decoder_weights.items():
            if key != "temperature":  # it divides
                other.zero_()
    decoder.reset_decoder_weights()
    assert torch.equal(own, decoder.classifier.get_parameter(name))
    torch.testing.assert_close(decoder(images).heatmaps, HeatmapDecoder(net)(images).heatmaps)
    assert not twin(images).heatmaps.any()


def test_own_copy_of_a_layer_scale() -> None:
    """A change of the classifier's factor changes what follows it in the forward run, not the factor of the decode."""
    net = Calls(lambda s, x: s.a(x) * s.gamma, a=conv(), gamma=nn.Parameter(torch.rand(4, 1, 1) + 0.5))
    images = pictures(2, 3, 8, 9)
    decoder = HeatmapDecoder(net, tie_weights=False)
    assert set(decoder.decoder_weights) == {"a/weight", "gamma", "fc/weight"}
    before = decoder(images).heatmaps
    with torch.no_grad():
        net.gamma.mul_(3)
    torch.testing.assert_close(decoder(images).heatmaps, before)  # nothing after the factor depends on values
    decoder.reset_decoder_weights()
    torch.testing.assert_close(decoder(images).heatmaps, 3 * before)
    torch.testing.assert_close(decoder(images).heatmaps, HeatmapDecoder(net)(images).heatmaps)


SHAPES = {
    "view": lambda s, x: s.a(x) * s.gamma.view(1, -1, 1, 1),
    "reshape": lambda s, x: s.a(x).mul(s.gamma.reshape(-1, 1, 1)),
    "unsqueeze": lambda s, x: s.gamma.unsqueeze(1).unsqueeze(1) * s.a(x),
    "index": lambda s, x: s.a(x) * s.gamma[:, None, None],
    "in place": lambda s, x: s.a(x).mul_(s.gamma.view(1, -1, 1, 1)),
    "quotient": lambda s, x: s.a(x) / s.gamma[None, :, None, None],
    "transpose": lambda s, x: (s.a(x).permute(0, 2, 3, 1) @ s.square.t()).permute(0, 3, 1, 2),
    "cast": lambda s, x: s.a(x) * s.gamma.to(x.dtype).view(4, 1, 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_own_copy_of_a_factor_in_another_shape(name: str) -> None:
    net = Calls(SHAPES[name], a=conv(), gamma=nn.Parameter(torch.rand(4) + 0.5), square=nn.Parameter(torch.randn(4, 4)))
    used = "square" if name == "transpose" else "gamma"
    images = pictures(2, 3, 8, 9)
    decoder = HeatmapDecoder(net, tie_weights=False)
    assert set(decoder.decoder_weights) == {"a/weight", used, "fc/weight"}
    before = decoder(images).heatmaps
    torch.testing.assert_close(before, HeatmapDecoder(net)(images).heatmaps)
    with torch.no_grad():
        net.get_parameter(used).mul_(3)
    torch.testing.assert_close(decoder(images).heatmaps, before)
    decoder.reset_decoder_weights()
    torch.testing.assert_close(decoder(images).heatmaps, HeatmapDecoder(net)(images).heatmaps)
    assert not torch.allclose(decoder(images).heatmaps, before)


def test_a_constant_factor_is_not_copied() -> None:
    """Only parameters are: a number, a buffer and a value computed from parameters stay what they are."""
    net = Calls(lambda s, x: s.a(x) * 2 * s.buffer * s.gamma.exp().view(4, 1, 1), a=conv())
    net.register_buffer("buffer", torch.rand(4, 1, 1).double())
    net.gamma = nn.Parameter(torch.rand(4).double())
    decoder, images = HeatmapDecoder(net, tie_weights=False), pictures(2, 3, 8, 9)
    assert set(decoder.decoder_weights) == {"a/weight", "fc/weight"}
    torch.testing.assert_close(decoder(images).heatmaps, HeatmapDecoder(net)(images).heatmaps)


def standardised(s, x):
    weight = (s.c.weight - s.c.weight.mean()) / s.c.weight.std()
    return F.relu(F.conv2d(x, weight, s.c.bias, padding=1))


def test_computed_weights() -> None:
    """Weight standardisation: tied, the gradient goes through it; own copies of such weights are refused."""
    net, images = Calls(standardised, c=conv()), pictures()
    parameters = list(net.parameters())
    found = gradients(loss_of(HeatmapDecoder(net)(images).heatmaps), parameters)
    expected = gradients(loss_of(input_x_gradient(net, images, create_graph=True)), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    with pytest.raises(InputError, match="'conv2d' in .root. is computed in its forward"):
        HeatmapDecoder(net, tie_weights=False)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_parametrized_weights(tie_weights: bool) -> None:
    net = Calls(lambda s, x: F.relu(s.n(s.c(x))), c=conv(), n=nn.BatchNorm2d(4))
    parametrizations.weight_norm(net.c)
    decoder, images = HeatmapDecoder(net, tie_weights=tie_weights), pictures()
    torch.testing.assert_close(decoder(images).heatmaps, input_x_gradient(net, images))
    if tie_weights:
        parameters = list(net.parameters())
        found = gradients(loss_of(decoder(images).heatmaps), parameters)
        expected = gradients(loss_of(input_x_gradient(net, images, create_graph=True)), parameters)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    else:
        assert set(decoder.decoder_weights) == {"c/weight", "n/weight", "fc/weight"}
        decoder.reset_decoder_weights()


def test_decoder_weights_that_are_used_at_some_sizes_only() -> None:
    """A decoder cannot get new parameters after it was made: it says so, each time, and still decodes the others."""
    net = Calls(lambda s, x: s.b(s.a(x)) if x.shape[-1] % 2 else s.a(x), a=conv(), b=conv(4, 4))
    even, odd = pictures(2, 3, 11, 8), pictures(2, 3, 11, 9)
    decoder = HeatmapDecoder(net, image_size=(11, 8), tie_weights=False)
    assert set(decoder.decoder_weights) == {"a/weight", "fc/weight"}
    for _ in range(2):
        with pytest.raises(InputError, match=r"for images \(3, 11, 9\) the classifier's forward uses b.weight"):
            decoder(odd)
    torch.testing.assert_close(decoder(even).heatmaps, input_x_gradient(net, even), rtol=1e-12, atol=1e-14)
    larger = HeatmapDecoder(net, image_size=(11, 9), tie_weights=False)
    for images in (odd, even):
        torch.testing.assert_close(larger(images).heatmaps, input_x_gradient(net, images), rtol=1e-12, atol=1e-14)
