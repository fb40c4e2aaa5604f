"""Forward hooks: those that change values are followed exactly, those that look get each decode's tensors once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from tw_seg.errors import TraceError
from tw_seg.lrp import HeatmapDecoder


def build() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    net = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).double().eval()
    block[1].running_mean.normal_()
    return net


def check(net: nn.Module, decoder: HeatmapDecoder | None = None) -> None:
    """Logits are the classifier's, heatmaps are input x gradient of it by autograd, hooks included."""
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64, requires_grad=True)
    logits = net(x)
    want = torch.stack([(torch.autograd.grad(net(x)[:, k].sum(), x)[0] * x).sum(1) for k in range(4)], 1)
    decoder = decoder or HeatmapDecoder(net, composite_kwargs={"epsilon": 0.0}).eval()
    decoded = decoder(x)
    assert torch.allclose(decoded.logits, logits, rtol=0, atol=1e-9 * logits.abs().max().item())
    assert torch.allclose(decoded.heatmaps, want, rtol=0, atol=1e-9 * want.abs().max().item())


def triple_input(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (3 * args[0],)


def triple_only_input(module: nn.Module, args: tuple[Tensor]) -> Tensor:
    return 3 * args[0]


def triple_input_with_kwargs(module: nn.Module, args: tuple[Tensor], kwargs: dict[str, Any]) -> Any:
    return (3 * args[0],), kwargs


def triple_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 3 * output


def triple_output_with_kwargs(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
    return 3 * output


def triple_in_place(module: nn.Module, args: Any, output: Tensor) -> None:
    output.mul_(3)


def add_input(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
    return output + args[0].mean()


PLACES = ["", "0", "0.0", "0.1", "0.2", "3"]
"""The classifier itself, a block, and layers with and without weights, one of which works in place."""

CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "pre-hook": lambda m: m.register_forward_pre_hook(triple_input),
    "pre-hook that returns one value": lambda m: m.register_forward_pre_hook(triple_only_input),
    "pre-hook with kwargs": lambda m: m.register_forward_pre_hook(triple_input_with_kwargs, with_kwargs=True),
    "hook": lambda m: m.register_forward_hook(triple_output),
    "hook with kwargs": lambda m: m.register_forward_hook(triple_output_with_kwargs, with_kwargs=True),
    "hook that is always called": lambda m: m.register_forward_hook(triple_output, always_call=True),
    "hook that works in place": lambda m: m.register_forward_hook(triple_in_place),
}


@pytest.mark.parametrize("add", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("place", PLACES)
def test_hooks_that_change_values_are_followed(place: str, add: Callable[[nn.Module], Any]) -> None:
    net = build()
    if add is CHANGES["hook that works in place"]:
        net[0][2] = nn.LeakyReLU()  # autograd, the reference, refuses to change what a ReLU returned
    own, images = net(images := torch.rand(2, 3, 9, 9, dtype=torch.float64)), images
    add(net.get_submodule(place))
    assert not torch.allclose(net(images), own)
    check(net)


def test_two_hooks_on_one_module_come_in_their_order() -> None:
    net = build()
    net[0].register_forward_hook(lambda m, args, y: y + 1)
    net[0].register_forward_hook(triple_output, prepend=True)
    check(net)


@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
def test_global_hooks_that_change_values(register: Callable[[Any], Any]) -> None:
    before = register is register_module_forward_pre_hook
    net = build()
    kinds = (nn.ReLU, nn.BatchNorm2d)  # not all: the decoder is a module as well

    def change(m: nn.Module, args: tuple[Tensor], *output: Tensor) -> Any:
        return 2 * (args[0] if before else output[0]) if isinstance(m, kinds) else None

    handle = register(change)
    try:
        check(net)
    finally:
        handle.remove()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("training", [False, True])
def test_hooks_that_look_get_what_a_plain_call_gives(place: str, training: bool) -> None:
    net, seen = build(), []
    module = net.get_submodule(place)
    module.register_forward_pre_hook(lambda m, args: seen.append(("pre", m, args[0].clone())))
    module.register_forward_pre_hook(lambda m, args, kw: seen.append(("pre", m, args[0].clone())), with_kwargs=True)
    module.register_forward_hook(lambda m, args, y: seen.append(("hook", m, y.clone())))
    module.register_forward_hook(lambda m, args, kw, y: seen.append(("kw", m, y.clone())), with_kwargs=True)
    decoder = HeatmapDecoder(net).train(training)
    assert all(type(value) is Tensor for _, _, value in seen)
    images = torch.rand(2, 3, 9, 9, dtype=torch.float64)
    seen.clear()
    decoder(images)
    decoded = list(seen)
    seen.clear()
    net(images)
    assert len(seen) == 4 and len(decoded) == 4
    for (kind, m, value), (other, same, found) in zip(seen, decoded, strict=True):
        assert kind == other and m is same
        torch.testing.assert_close(found, value, rtol=0, atol=1e-12)
    seen.clear()
    check(net, HeatmapDecoder(net, composite_kwargs={"epsilon": 0.0}).eval())


@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
def test_global_hooks_that_look(register: Callable[[Any], Any]) -> None:
    net, seen = build(), []
    handle = register(lambda m, args, *output: seen.append((type(m), [type(value) for value in (*args, *output)])))
    try:
        decoder, images = HeatmapDecoder(net), torch.rand(2, 3, 9, 9).double()
        assert all(kind is Tensor for _, kinds in seen for kind in kinds)
        seen.clear()
        decoder.eval()(images)
        # The decoder is a module as well, and its call is seen too.
        decoded = [entry for entry in seen if entry[0] is not HeatmapDecoder]
        seen.clear()
        net(images)
    finally:
        handle.remove()
    assert decoded == seen


def test_a_hook_of_a_branch_whose_output_nothing_reads() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.aside = build(), nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()).double()

        def forward(self, x: Tensor) -> Any:
            self.aside(x)
            return self.net(x)

    net, seen = Branches().eval(), []
    net.aside.register_forward_hook(lambda m, args, y: seen.append(tuple(y.shape)))
    decoder = HeatmapDecoder(net)
    seen.clear()
    decoder.eval()(torch.rand(1, 3, 9, 9).double())
    assert seen == [(1, 2, 9, 9)]


def test_gradients_of_what_a_hook_collected() -> None:
    net, seen = build(), []
    net[0].register_forward_hook(lambda m, args, y: seen.append(y))
    decoder, images = HeatmapDecoder(net).eval(), torch.rand(2, 3, 9, 9).double()
    grads = []
    for run in (lambda: decoder(images), lambda: net(images)):
        seen.clear()
        run()
        grads.append(torch.autograd.grad(seen[0].square().sum(), net[0][0].weight)[0])
    torch.testing.assert_close(*grads)


def test_layers_kept_whole_by_a_custom_rule() -> None:
    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if isinstance(x, Tensor) else x

    net, seen = nn.Sequential(Whole(), build()).eval(), []
    net[0].register_forward_hook(triple_output)
    net[0].register_forward_pre_hook(lambda m, args: seen.append(type(args[0])))
    decoder = HeatmapDecoder(net, custom_rules={Whole: lambda c, inputs, output, module: c}).eval()
    seen.clear()
    images = torch.rand(2, 3, 9, 9).double()
    assert torch.equal(decoder(images).logits, net(images))
    assert seen == [Tensor, Tensor]


def test_multi_head_attention_that_is_written_in_other_calls() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            tokens = x.flatten(2).transpose(1, 2)
            return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))

    net, seen = Attends().double().train(), []
    net.attention.register_forward_hook(lambda m, args, y: (3 * y[0], y[1]))
    net.attention.register_forward_pre_hook(lambda m, args, kw: seen.append(kw), with_kwargs=True)
    decoder, images = HeatmapDecoder(net).train(), torch.rand(2, 4, 5, 5).double()
    decoder(images)  # of images of 4 channels it is traced anew
    seen.clear()
    torch.testing.assert_close(decoder(images).logits, net(images), rtol=0, atol=1e-12)
    assert seen == [{"need_weights": False}] * 2


def test_weights_that_hooks_of_torch_compute() -> None:
    class Convolves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight)

    with pytest.warns(FutureWarning, match="weight_norm"):
        own, layer = (torch.nn.utils.weight_norm(m) for m in (Convolves(), nn.Conv2d(3, 3, 1)))
    net = nn.Sequential(own, layer, build()).double().eval()
    decoder = HeatmapDecoder(net, composite_kwargs={"epsilon": 0.0}).eval()
    check(net, decoder)
    with torch.no_grad():
        own.weight_g.mul_(2)
        layer.weight_v.add_(1)
    check(net, decoder)
    images = torch.rand(2, 3, 9, 9).double()
    grads = [torch.autograd.grad(run().square().sum(), (own.weight_g, layer.weight_g))
             for run in (lambda: decoder(images).logits, lambda: net(images))]  # fmt: skip
    torch.testing.assert_close(*grads)


def test_hooks_that_come_and_go_later() -> None:
    net, seen = build(), []
    decoder = HeatmapDecoder(net, composite_kwargs={"epsilon": 0.0}).eval()
    handles = [net[0].register_forward_hook(triple_output), net[3].register_forward_pre_hook(triple_input)]
    check(net, decoder)
    handles.pop().remove()
    check(net, decoder)
    handles.pop().remove()
    net[0].register_forward_hook(lambda m, args, y: seen.append(type(y)))
    check(net, decoder)
    assert set(seen) == {Tensor}


def test_a_hook_that_changes_its_mind() -> None:
    net, factors = build(), []
    net[0].register_forward_hook(lambda m, args, y: factors[0] * y if factors else None)
    decoder, images = HeatmapDecoder(net).eval(), torch.rand(1, 3, 9, 9).double()
    assert torch.equal(decoder(images).logits, net(images))
    factors.append(2)
    with pytest.raises(TraceError, match="hook <lambda> of a Sequential changed what the module gets or returns"):
        decoder(images)
    check(net)  # made anew


def test_hooks_of_a_classifier_that_has_no_values_yet() -> None:
    with torch.device("meta"):
        net = build()
    net[0].register_forward_hook(triple_output)
    net[0][0].register_forward_hook(triple_in_place)
    decoder = HeatmapDecoder(net, composite_kwargs={"epsilon": 0.0}).eval().to_empty(device="cpu")
    for tensor in (*decoder.parameters(), *decoder.buffers()):
        tensor.data.fill_(1)
    check(net, decoder)


def test_hooks_of_the_classifier_stay_as_they_were() -> None:
    net = build()
    net[0].register_forward_hook(triple_output)
    net[0][0].register_forward_pre_hook(lambda m, args: None)
    hooks = [dict(m._forward_hooks) | dict(m._forward_pre_hooks) for m in net.modules()]
    decoder = HeatmapDecoder(net)
    assert [dict(m._forward_hooks) | dict(m._forward_pre_hooks) for m in net.modules()] == hooks
    check(net, copy.deepcopy(HeatmapDecoder(net, composite_kwargs={"epsilon": 0.0}).eval()))
    assert decoder.classifier is net


@pytest.mark.parametrize("place", ["", "0", "0.0"])
def test_backward_hooks_are_warned_of(place: str) -> None:
    net = build()
    handle = net.get_submodule(place).register_full_backward_hook(lambda m, into, out: None)
    with pytest.warns(UserWarning, match=f"backward hooks, on {place or 'the classifier itself'}: a decoder runs"):
        HeatmapDecoder(net)
    handle.remove()
    HeatmapDecoder(net)
