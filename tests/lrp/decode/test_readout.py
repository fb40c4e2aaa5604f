"""Read-outs are gradient x activation summed over the channels, wherever these are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.lrp.decoding import pictures
from tests.lrp.ops.harness import close, randomise
from tests.oracles import nets
from tests.oracles.nets import Calls, conv
from tw_seg.errors import InputError
from tw_seg.lrp import HeatmapDecoder


def gradient_x_activation(net: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    """At a module's last output, (N, K, *output)."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output))
    logits = net(images.requires_grad_())
    handle.remove()
    maps = [torch.autograd.grad(k.sum(), seen[-1], retain_graph=True)[0] * seen[-1] for k in logits.T]
    return torch.stack(maps, 1).detach()


class ChannelsLast(nn.Module):
    """ConvNeXt's and Swin's layout: maps (N, H, W, C) between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 2, 2)
        self.wide = nn.Linear(5, 7)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.reduce = nn.Linear(28, 6)
        self.conv = nn.Conv2d(6, 4, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        x = self.drop(self.act(self.wide(x)))
        parts = [x[:, i::2, j::2, :] for i in (0, 1) for j in (0, 1)]  # Swin's patch merging
        x = self.reduce(torch.cat(parts, -1)).permute(0, 3, 1, 2)
        return self.head(self.flat(self.pool(F.relu(self.conv(x)))))


class Tokens(nn.Module):
    """ViT's layout: (N, prefix + patches, C)."""

    def __init__(self, prefix: int = 1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 5, 4, 4)
        self.prefix = nn.Parameter(torch.zeros(1, prefix, 5))
        self.inner = nn.Linear(5, 5)
        self.act = nn.ReLU()
        self.heads = nn.Linear(5, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], 1)
        x = x + self.act(self.inner(x))
        x = self.heads(x)
        return self.head((x[:, 0] if self.prefix.shape[1] else x[:, 1]) + F.relu(x).mean(1))


@pytest.mark.parametrize("place", ["stem", "wide", "act", "drop", "reduce", "conv", "pool", "flat"])
def test_channels_last(place: str) -> None:
    torch.manual_seed(0)
    net, images = randomise(ChannelsLast().double()).eval(), pictures(2, 3, 16, 24)
    expected = gradient_x_activation(net, getattr(net, place), images)
    if place == "flat":  # a map of one cell
        expected = expected[..., None, None]
    expected = expected.sum(-1 if place in ("wide", "act", "drop", "reduce") else 2)
    found = HeatmapDecoder(net, read_out=place)(images).heatmaps
    assert found.shape == expected.shape and expected.abs().max() > 1e-3
    close(found, expected)


@pytest.mark.parametrize("place", ["stem", "wide", "conv", "flat", "input"])
def test_projections_are_weighted_sums_over_the_channels(place: str) -> None:
    torch.manual_seed(0)
    net, images = randomise(ChannelsLast().double()).eval(), pictures(2, 3, 16, 24)
    decoder = HeatmapDecoder(net, read_out=place, projections=4).double()
    relevance = gradient_x_activation(net, net.get_submodule("" if place == "input" else place), images)
    if place == "input":
        maps = [torch.autograd.grad(k.sum(), images, retain_graph=True)[0] * images for k in net(images).T]
        relevance = torch.stack(maps, 1).detach()
    if place == "wide":
        relevance = relevance.movedim(-1, 2)
    if place == "flat":
        relevance = relevance[..., None, None]
    assert decoder.projections[0].shape == (4, relevance.shape[2])
    expected = torch.einsum("nkchw,mc->nkmhw", relevance, decoder.projections[0].detach())
    tape = decoder.record(images)
    found = decoder.project(tape)
    close(found.projections[0], expected)
    close(found.readouts[0], relevance.sum(2))
    close(decoder.decode(tape).heatmaps, relevance.sum(2))
    pairs = decoder.project_pairs(tape, torch.tensor([1, 0]), torch.tensor([2, 0]))
    close(pairs.projections[0], expected[[1, 0], [2, 0]][:, None])


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_projections_of_tokens(prefix: int) -> None:
    torch.manual_seed(0)
    net, images = randomise(Tokens(prefix).double()).eval(), pictures(2, 3, 12, 20)
    decoder = HeatmapDecoder(net, read_out=["act", "patches"], projections=2).double()
    relevance = gradient_x_activation(net, net.act, images)[:, :, prefix:].unflatten(2, (3, 5))
    expected = torch.einsum("nkhwc,mc->nkmhw", relevance, decoder.projections[0].detach())
    tape = decoder.record(images)
    found = decoder.project(tape, [2, 0], torch.tensor([1])).projections
    close(found[0], expected[1:, [2, 0]])
    assert found[1].shape == (1, 2, 2, 3, 5)
    assert decoder.project(tape, classes=[]).projections[1].shape == (2, 0, 2, 3, 5)
    assert decoder.project(tape, samples=torch.zeros(0, dtype=torch.int64)).projections[0].shape == (0, 3, 2, 3, 5)
    plain = HeatmapDecoder(net)
    with pytest.raises(InputError, match="has no projections to read"):
        plain.project(plain.record(images))


def test_read_outs_are_ordered_towards_the_images() -> None:
    places = ["act", "input", "conv", "stem"]
    assert HeatmapDecoder(ChannelsLast(), read_out=places).towards_images == (2, 0, 3, 1)


@pytest.mark.parametrize("place", ["inner", "act", "heads"])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_tokens_are_the_grid_of_the_patches(place: str, prefix: int) -> None:
    """Class tokens and registers are left out of the map; their relevance stays in the account."""
    torch.manual_seed(0)
    net, images = randomise(Tokens(prefix).double()).eval(), pictures(2, 3, 12, 20)
    expected = gradient_x_activation(net, getattr(net, place), images).sum(-1)[:, :, prefix:].unflatten(2, (3, 5))
    found = HeatmapDecoder(net, read_out=place)(images, samples=torch.tensor([1]), classes=[2, 0]).heatmaps
    close(found, expected[1:, [2, 0]])


def test_tokens_at_a_sum_and_at_a_concatenation() -> None:
    torch.manual_seed(0)
    net, images = randomise(Tokens().double()).eval(), pictures(2, 3, 12, 20)
    decoder = HeatmapDecoder(net, read_out=["cat", "add"]).eval()
    coefficients = decoder.coefficients(images)
    for name, found in zip(("cat", "add"), decoder(images).readouts, strict=True):
        relevance = coefficients[1][name].unflatten(0, (3, 2)) * coefficients[0].values[name]
        close(found, relevance.sum(-1)[:, :, 1:].unflatten(2, (3, 5)).transpose(0, 1))


class Reduced(nn.Module):
    """PVT's layer: attention of a single head to a smaller map."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 5, 4, 4)
        self.query = nn.Linear(5, 5)
        self.reduce = nn.Conv2d(5, 5, 2, 2)
        self.value = nn.Linear(5, 5)
        self.last = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x)
        n, c, h, w = y.shape
        y = y.flatten(2).transpose(1, 2)
        q = self.query(y).reshape(n, -1, 1, c).permute(0, 2, 1, 3)
        small = self.reduce(y.transpose(1, 2).reshape(n, c, h, w)).flatten(2).transpose(1, 2)
        v = self.value(small).reshape(n, -1, 1, c).permute(0, 2, 1, 3)
        y = y + ((q @ v.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(n, -1, c)
        return self.head(self.last(y).mean(1))


def test_the_grid_that_fits_best() -> None:
    torch.manual_seed(0)
    net, images = randomise(Reduced().double()).eval(), pictures(2, 3, 12, 20)
    expected = gradient_x_activation(net, net.last, images).sum(-1).unflatten(2, (3, 5))
    decoder = HeatmapDecoder(net, read_out=["last", "value"])
    close(decoder(images).heatmaps, expected)
    assert decoder(images).readouts[1].shape == (2, 3, 1, 2)


CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def plain(dims: int) -> nn.Sequential:
    torch.manual_seed(0)
    conv = CONV[dims]
    layers = [conv(3, 4, 3, 2, 1), nn.ReLU(), conv(4, 5, 3, 1, 1), nn.ReLU(), conv(5, 4, 3, 1, 1), nn.ReLU()]
    layers += [conv(4, 4, 1), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)]
    return randomise(nn.Sequential(*layers).double()).eval()  # type: ignore[return-value]


# 4 convolutions: 0.0 the images, f the convolution number ceil(4 f), 1.0 the last one.
@pytest.mark.parametrize(
    ("fraction", "place"), [(0.01, 0), (0.25, 0), (0.26, 2), (0.5, 2), (0.75, 4), (1.0, 6), (1, 6)]
)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_fraction_of_the_depth(dims: int, fraction: float, place: int) -> None:
    net, images = plain(dims), pictures(2, 3, *(6, 8, 5)[:dims])
    expected = gradient_x_activation(net, net[place], images).sum(2)
    close(HeatmapDecoder(net, read_out=fraction)(images).heatmaps, expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_fraction_0_is_the_input(dims: int) -> None:
    net, images = plain(dims), pictures(2, 3, *(6, 8, 5)[:dims])
    decoder = HeatmapDecoder(net, read_out=[0.0, 0.5])
    found = decoder(images)
    assert found.heatmaps.shape == (2, 3, *images.shape[2:])
    torch.testing.assert_close(found.heatmaps, HeatmapDecoder(net)(images).heatmaps)
    assert found.readouts[1].ndim == images.ndim


@pytest.mark.parametrize("place", [-0.1, 1.5, "nowhere"])
def test_no_such_place(place: str | float) -> None:
    with pytest.raises(InputError, match="neither 'input', a module, a call nor a fraction"):
        HeatmapDecoder(plain(2), read_out=place)


@pytest.mark.parametrize("build", [ChannelsLast, Tokens])
@pytest.mark.parametrize("place", ["act", "head", "input"])
def test_nothing_to_decode(build: type[nn.Module], place: str) -> None:
    net, images = build().double().eval(), pictures(2, 3, 16, 24)
    decoder = HeatmapDecoder(net, read_out=place)
    size = decoder(images).heatmaps.shape[2:]
    assert decoder(images, classes=[]).heatmaps.shape == (2, 0, *size)
    assert decoder(images, samples=torch.zeros(0, dtype=torch.int64)).heatmaps.shape == (0, 3, *size)


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.inner = nn.Linear(4, 4)
        self.other = nn.Linear(16, 8)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        y = self.stem(x).permute(0, 2, 3, 1).reshape(n, 4, 2, 4, 2, 4).transpose(2, 3).reshape(-1, 4, 4)
        y = self.inner(y).reshape(n, 16, 4, 4).mean(2)
        return self.head(self.other(y.transpose(1, 2)).mean(2))


@pytest.mark.parametrize(
    ("place", "message"), [("inner", "windows, or heads of attention"), ("other", "fit no grid of patches")]
)
def test_what_is_no_map(place: str, message: str) -> None:
    net = Windows().double().eval()
    assert HeatmapDecoder(net, read_out="stem")(pictures(2, 3, 8, 8)).heatmaps.shape == (2, 3, 8, 8)
    with pytest.raises(InputError, match=message):
        HeatmapDecoder(net, read_out=place)(pictures(2, 3, 8, 8))


def test_half_precision_is_summed_in_single() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(64, 3)).bfloat16().eval()
    assert HeatmapDecoder(net)(torch.randn(2, 3, 4, 4).bfloat16()).heatmaps.dtype == torch.float32


def test_several_read_outs_are_each_alone(quick) -> None:
    net, images = quick
    places = ["features.4", "input", "features"] if hasattr(net, "features") else ["layer3", "input", "layer1"]
    with torch.no_grad():
        decoded = HeatmapDecoder(net, read_out=places)(images)
        assert decoded.heatmaps is decoded.readouts[0] and len(decoded.readouts) == 3
        for place, found in zip(places, decoded.readouts, strict=True):
            alone = HeatmapDecoder(net, read_out=place)(images).heatmaps
            torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-14)


def test_a_pooled_read_out_is_a_map_of_one_cell(decoder: HeatmapDecoder) -> None:
    net, images = decoder.classifier, pictures()
    found = HeatmapDecoder(net, read_out="mean")(images).heatmaps
    assert found.shape == (3, 3, 1, 1)
    torch.testing.assert_close(found[..., 0, 0], net(images) - net.fc.bias)


def test_images_used_twice_and_the_input_rule() -> None:
    """A first layer with the input's rule beside a path that has none: both heatmaps add up."""
    net = Calls(lambda s, x: torch.cat([s.a(x), F.max_pool2d(x, 3, 1, 1)], 1), channels=7, a=conv())
    images = pictures()
    both = HeatmapDecoder(net, "epsilon_flat")(images).heatmaps
    plain = HeatmapDecoder(net)(images).heatmaps
    assert not torch.allclose(both, plain)
    net.a.weight.data.zero_()
    net.a.bias.data.zero_()
    torch.testing.assert_close(
        HeatmapDecoder(net, "epsilon_flat")(images).heatmaps, HeatmapDecoder(net)(images).heatmaps
    )


def test_heatmaps_of_coefficients_are_gradients() -> None:
    """With epsilon 0 the coefficient at the images is the gradient, summed over channels."""
    net, images = nets.tiny(), pictures().requires_grad_()
    kwargs = {"overrides": [{"rule": "pass"}]}  # what is left of the preset are heatmaps of coefficients
    decoder = HeatmapDecoder(net, "deconvnet", composite_kwargs=kwargs, read_out=["input", "pool"])
    found = decoder(images).readouts[0]
    gradients_ = [torch.autograd.grad(net(images)[:, k].sum(), images)[0].sum(1) for k in range(3)]
    torch.testing.assert_close(found, torch.stack(gradients_, 1), rtol=1e-12, atol=1e-13)
    assert decoder(images, samples=torch.tensor([], dtype=torch.int64)).heatmaps.shape == (0, 3, 17, 19)


def test_a_read_out_that_is_no_map() -> None:
    net = Calls(lambda s, x: F.relu(s.a(x).flatten(1, 2)).unsqueeze(3), channels=44, a=conv())
    with pytest.raises(InputError, match="the 9 tokens of 'flatten' fit no grid"):
        HeatmapDecoder(net, read_out="flatten")(pictures(2, 3, 11, 9))


def test_a_flattened_read_out_is_the_map() -> None:
    """A map whose pixels were laid out in a row is that map."""
    net = Calls(lambda s, x: F.relu(s.a(x).flatten(2)).unsqueeze(3), a=conv())
    images = pictures(2, 3, 11, 9)
    found = HeatmapDecoder(net, read_out=["flatten", "a"])(images).readouts
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)
