"""What holds for every decode: exact values and gradients, no side effects, any way of running it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.lrp.decoding import assert_equal, loss_of, pictures
from tests.oracles import nets
from tests.oracles.gradients import HeldStatistics, agreement, gradients, input_x_gradient
from tests.oracles.nets import Calls, Tiny, conv
from tw_seg.errors import InputError, TraceError, UnsupportedOpError
from tw_seg.lrp import Decoded, HeatmapDecoder
from tw_seg.lrp.rules import Epsilon
from tw_seg.lrp.seeds import HEAD_RULES, SEEDS

# Exactness


def test_heatmap_is_input_x_gradient(standard) -> None:
    net, images = standard
    expected = input_x_gradient(net, images)
    found = HeatmapDecoder(net)(images).heatmaps.detach()
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-10


def test_any_size(quick) -> None:
    """With one trace."""
    net, _ = quick
    decoder = HeatmapDecoder(net)
    for size in ((32, 32), (33, 47), (64, 40), (45, 71)):
        images = pictures(1, 3, *size)
        expected = input_x_gradient(net, images, [1])
        found = decoder(images, [1]).heatmaps.detach()
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-10


def test_parameter_gradients_are_double_backpropagation(standard) -> None:
    net, images = standard
    parameters = list(net.parameters())
    found = gradients(loss_of(HeatmapDecoder(net)(images, [2, 0]).heatmaps), parameters)
    expected = gradients(loss_of(input_x_gradient(net, images, [2, 0], create_graph=True)), parameters)
    direction, length = agreement(found, expected)
    assert direction < 1e-9 and length < 1e-6


def test_parameter_gradients_in_training_mode(quick) -> None:
    """Batch statistics are held constant along the input, but depend on the weights."""
    net, images = quick
    net = copy.deepcopy(net).train()
    held = HeldStatistics(net)
    torch.manual_seed(4)
    reference = input_x_gradient(held, images, [2, 0], create_graph=True)
    torch.manual_seed(4)
    heatmaps = HeatmapDecoder(net)(images, [2, 0]).heatmaps
    assert float((heatmaps - reference).detach().abs().max() / reference.detach().abs().max()) < 1e-10
    found = gradients(loss_of(heatmaps), list(net.parameters()))
    expected = gradients(loss_of(reference), list(held.net.parameters()))
    direction, length = agreement(found, expected)
    assert direction < 1e-9 and length < 1e-6


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("composite", "kwargs"),
    [
        ("epsilon", {}),
        ("epsilon", {"epsilon": 0.1}),
        ("epsilon_flat", {}),
        ("epsilon_wsquare", {}),
        ("epsilon_box", {"low": -4.0, "high": 4.0}),
    ],
)
def test_finite_differences(composite: str, kwargs: dict[str, Any], training: bool) -> None:
    """Of the logits and heatmaps with respect to every parameter, and the images."""
    net = Tiny(classes=2)
    net.fc = nn.Linear(6, 2)
    nets.initialise(net).double().train(training)
    decoder = HeatmapDecoder(net, composite, composite_kwargs=kwargs)
    names, parameters = zip(*decoder.named_parameters(), strict=True)

    def function(images: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.func.functional_call(decoder, dict(zip(names, values, strict=True)), (images,))
        return out.logits, out.heatmaps

    images = pictures(2, 3, 9, 8).requires_grad_()
    assert torch.autograd.gradcheck(function, (images, *parameters), fast_mode=True)


# Subsets, chunks, batches


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_of_pairs(seed: str) -> None:
    images, samples, classes = pictures(), torch.tensor([1, 0, 1]), torch.tensor([0, 2, 2])
    decoder = HeatmapDecoder(nets.tiny(classes=5), "epsilon_plus", seed=seed)
    pairs = decoder.decode_pairs(decoder.record(images), samples, classes).heatmaps
    expected = decoder(images).heatmaps[samples, classes].unsqueeze(1)
    torch.testing.assert_close(pairs, expected, rtol=1e-10, atol=1e-14)


def test_no_pairs(decoder: HeatmapDecoder) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert decoder.decode_pairs(decoder.record(pictures()), none, none).heatmaps.shape == (0, 1, 17, 19)


@pytest.mark.parametrize(
    ("samples", "classes", "message"),
    [
        (torch.tensor([0, 1]), torch.tensor([0]), "same length, got 2 and 1"),
        (torch.tensor([0.0]), torch.tensor([0]), "samples of pairs must be an int64 tensor"),
        (torch.tensor([0]), [0], "classes of pairs must be an int64 tensor"),
        (torch.tensor([0]), torch.tensor([7]), r"classes \[7\] are outside 0..2"),
    ],
)
def test_pairs_that_do_not_fit(decoder: HeatmapDecoder, samples, classes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decoder.decode_pairs(decoder.record(pictures()), samples, classes)


def test_all_classes_at_once_are_one_by_one(quick) -> None:
    net, images = quick
    decoder = HeatmapDecoder(net)
    with torch.no_grad():
        everything = decoder(images)
        for k in range(3):
            torch.testing.assert_close(
                decoder(images, [k]).heatmaps, everything.heatmaps[:, [k]], rtol=1e-11, atol=1e-13
            )


@pytest.mark.parametrize("classes", [[2, 0], (1,), [1, 1], range(2), torch.tensor([2, 1])])
def test_classes_are_a_slice(decoder: HeatmapDecoder, classes) -> None:
    images = pictures()
    everything, some = decoder(images), decoder(images, classes)
    torch.testing.assert_close(some.heatmaps, everything.heatmaps[:, list(classes)], rtol=1e-12, atol=1e-14)
    assert torch.equal(some.logits, everything.logits)


@pytest.mark.parametrize("samples", [[2, 0], [1], [1, 1], [0, 1, 2]])
@pytest.mark.parametrize("training", [False, True])
def test_samples_are_a_slice(samples: list[int], training: bool) -> None:
    """Also in training mode: the statistics are those of the whole batch, the noise is that of each row."""
    images, results = pictures(), []
    for chosen in (None, torch.tensor(samples)):
        torch.manual_seed(1)
        decoder = HeatmapDecoder(nets.tiny(dropout=0.4), "epsilon", composite_kwargs={"epsilon": 0.1})
        results.append(decoder.train(training)(images, [2, 0], chosen))
    everything, some = results
    torch.testing.assert_close(some.heatmaps, everything.heatmaps[samples], rtol=1e-12, atol=1e-14)
    assert torch.equal(some.logits, everything.logits)


def test_samples_get_no_gradient_from_others(decoder: HeatmapDecoder) -> None:
    images = pictures().requires_grad_()
    decoder(images, samples=torch.tensor([1])).heatmaps.square().sum().backward()
    assert images.grad[1].any() and not images.grad[[0, 2]].any()


def test_samples_are_independent(decoder: HeatmapDecoder) -> None:
    images = pictures()
    together = decoder(images)
    for i in range(3):
        assert_equal(decoder(images[i : i + 1]), Decoded(*(t[i : i + 1] for t in together[:2]), ()))


@pytest.mark.parametrize(
    ("classes", "samples", "shape"),
    [([], None, (3, 0)), (None, [], (0, 3)), ([1], [], (0, 1)), ([], [0], (1, 0))],
)
def test_nothing_to_decode(classes, samples, shape: tuple[int, int]) -> None:
    decoder = HeatmapDecoder(nets.tiny(), read_out=["input", "conv2"])
    rows = None if samples is None else torch.tensor(samples, dtype=torch.int64)
    decoded = decoder(pictures(), classes, rows)
    assert [h.shape for h in decoded.readouts] == [(*shape, 17, 19), (*shape, 5, 5)]
    assert decoded.logits.shape == (3, 3)
    (decoded.logits.sum() + decoded.heatmaps.sum()).backward()


def test_an_empty_batch(decoder: HeatmapDecoder) -> None:
    assert decoder(pictures(0, 3, 17, 19)).heatmaps.shape == (0, 3, 17, 19)


# Side effects


@pytest.mark.parametrize("training", [False, True])
def test_no_side_effects(quick, training: bool) -> None:
    """State after a decode is the state after the classifier's own forward."""
    net, images = quick
    twin = copy.deepcopy(net).train(training)
    net = copy.deepcopy(net)
    decoder = HeatmapDecoder(net, schedule={"chunk_size": 2, "recompute": True}).train(training)
    attributes, given = set(vars(net)), images.clone()
    torch.manual_seed(1)
    expected, random = twin(images), torch.random.get_rng_state()
    torch.manual_seed(1)
    decoded = decoder(images)
    assert torch.equal(decoded.logits, expected)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))
    assert [m.training for m in net.modules()] == [m.training for m in twin.modules()]
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())
    assert torch.equal(images, given) and not images.requires_grad
    assert set(vars(net)) == attributes
    loss_of(decoded.heatmaps).backward()
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))


def test_logits_carry_the_classifier_gradient(decoder: HeatmapDecoder) -> None:
    images, parameters = pictures(), list(decoder.classifier.parameters())
    found = gradients(decoder(images).logits.square().sum(), parameters)
    expected = gradients(decoder.classifier(images).square().sum(), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


# Precision


@pytest.mark.parametrize("training", [False, True])
def test_float32_is_close_to_float64(quick, training: bool) -> None:
    net, images = quick
    decoder = HeatmapDecoder(copy.deepcopy(net)).train(training)
    for dropout in decoder.modules():
        if isinstance(dropout, nn.Dropout):
            dropout.p = 0.0  # its draw depends on the precision
    with torch.no_grad():
        exact = decoder(images).heatmaps
        single = decoder.float()(images.float()).heatmaps
    assert single.dtype == torch.float32
    assert float((single - exact).norm() / exact.norm()) < 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_autocast(quick, training: bool) -> None:
    net, images = quick
    decoder = HeatmapDecoder(copy.deepcopy(net).float(), schedule={"chunk_size": 2}).train(training)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded = decoder(images.float())
        loss = loss_of(decoded.heatmaps)
    loss.backward()
    assert decoded.heatmaps.isfinite().all() and decoded.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in decoder.parameters() if p.grad is not None)
    torch.manual_seed(1)
    exact = decoder(images.float()).heatmaps
    cosine = F.cosine_similarity(decoded.heatmaps.float().flatten(), exact.flatten(), dim=0)
    assert float(cosine.detach()) > (0.5 if training else 0.9)  # batch statistics of 8 values at 8 bits in training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype: torch.dtype) -> None:
    decoder = HeatmapDecoder(nets.tiny().to(dtype))
    decoded = decoder(pictures().to(dtype))
    assert decoded.heatmaps.isfinite().all() and decoded.heatmaps.dtype == torch.float32
    empty = decoder(pictures().to(dtype), samples=torch.tensor([], dtype=torch.int64))
    assert empty.heatmaps.dtype == torch.float32


# Ways of running


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context) -> None:
    decoder, images = HeatmapDecoder(nets.tiny(), schedule={"chunk_size": 2, "recompute": True}), pictures()
    expected = decoder(images)
    with context():
        found = decoder(images)
    assert not found.heatmaps.requires_grad
    assert torch.equal(found.heatmaps.clone(), expected.heatmaps.detach())


def compiled_equals_eager(decoder: HeatmapDecoder, images: Tensor, backend: str, rtol: float) -> None:
    twin = copy.deepcopy(decoder)
    torch._dynamo.reset()
    compiled = torch.compile(decoder, fullgraph=True, backend=backend)
    samples = torch.tensor([1, 0])
    found, expected = (d(images, [2, 0], samples) for d in (compiled, twin))
    assert_equal(found, expected, rtol)
    parameters = list(decoder.parameters()), list(twin.parameters())
    both = [
        gradients(loss_of(d.heatmaps) + d.logits.sum(), p) for d, p in zip((found, expected), parameters, strict=True)
    ]
    direction, length = agreement(*both)
    assert direction < rtol and length < rtol
    assert all(torch.allclose(a, b, rtol=rtol) for a, b in zip(decoder.buffers(), twin.buffers(), strict=True))


def test_compile() -> None:  # in evaluation mode, at once, tied: tests/lrp/test_compile.py
    decoder = HeatmapDecoder(nets.tiny(), "epsilon_flat", schedule={"chunk_size": 1}, tie_weights=False).train()
    compiled_equals_eager(decoder, pictures(), "aot_eager", 1e-10)


@pytest.mark.slow
def test_compile_a_standard_net() -> None:  # others, for shapes that vary: tests/lrp/test_compile.py
    compiled_equals_eager(HeatmapDecoder(nets.create("resnet18")), nets.images("resnet18"), "aot_eager", 1e-10)


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    compiled_equals_eager(HeatmapDecoder(nets.tiny()), pictures(), "inductor", 1e-8)


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_flat"])
def test_export_with_a_dynamic_batch(composite: str) -> None:
    decoder = HeatmapDecoder(nets.tiny(), composite, schedule={"chunk_size": 2})
    batch = {0: torch.export.Dim("batch", min=1, max=64)} if nets.DYNAMIC_BATCH else None
    program = torch.export.export(decoder, (pictures(),), dynamic_shapes={"images": batch})
    for n in (1, 3, 5) if nets.DYNAMIC_BATCH else (3,):
        images = pictures(n, 3, 17, 19)
        assert_equal(program.module()(images), decoder(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_export_standard_nets(name: str) -> None:
    decoder = HeatmapDecoder(nets.create(name))
    images = nets.images(name, 3)
    batch = {0: torch.export.Dim("batch", min=1, max=64)} if nets.DYNAMIC_BATCH else None
    program = torch.export.export(decoder, (images,), dynamic_shapes={"images": batch})
    some = images[:1] if nets.DYNAMIC_BATCH else images
    assert_equal(program.module()(some), decoder(some))


# Seeds


@pytest.mark.parametrize("seed", [name for name in SEEDS if name not in HEAD_RULES])
def test_a_decode_is_linear_in_the_seed(seed: str) -> None:
    """Heatmaps are those of the logits, in the proportions of the seed's coefficients."""
    net, images = nets.tiny(classes=4), pictures()
    logit = HeatmapDecoder(net)(images)
    rows = SEEDS[seed](logit.logits, [2, 0]).unflatten(0, (2, 3))
    expected = torch.einsum("knj,njhw->nkhw", rows, logit.heatmaps)
    for chunk_size in (None, 1):
        found = HeatmapDecoder(net, seed=seed, schedule={"chunk_size": chunk_size})(images, [2, 0]).heatmaps
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12 * float(expected.detach().abs().max()))
    some = HeatmapDecoder(net, seed=seed)(images, [2, 0], torch.tensor([2, 1])).heatmaps
    torch.testing.assert_close(some, expected[[2, 1]], rtol=1e-11, atol=1e-12 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus"])
def test_clrp2_is_a_rule_of_the_head(composite: str) -> None:
    """What speaks for a class less what speaks against it, each normalised; the rest is the composite's."""
    net, images = Calls(lambda s, x: F.relu(s.a(x)), a=conv()), pictures(2, 3, 11, 9)
    activation = F.relu(net.a(images))
    a, weight, bias = activation.mean((2, 3)), net.fc.weight, net.fc.bias
    plus = (a @ weight.clamp(min=0).T + bias.clamp(min=0) + 1e-6).unsqueeze(2)
    minus = (a @ weight.clamp(max=0).T + bias.clamp(max=0) - 1e-6).unsqueeze(2)
    c = net(images).unsqueeze(2) * (weight.clamp(min=0) / plus - weight.clamp(max=0) / minus)
    expected = torch.einsum("nkc,nchw->nkhw", c, activation) / 99
    found = HeatmapDecoder(net, composite, seed="clrp2", read_out="a")(images).heatmaps
    tolerance = 1e-12 if composite == "epsilon" else 1e-4  # the average pool has a stabiliser of 1e-6
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs().max()))


def test_clrp2_of_a_classifier_that_is_its_head() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    images = pictures(2, 3, 2, 2)
    contrastive, plain = (HeatmapDecoder(net, seed=seed)(images).heatmaps for seed in ("clrp2", "logit"))
    assert contrastive.abs().max() > 0 and not torch.allclose(contrastive, plain)


# Assignments of rules


@pytest.mark.parametrize("composite", ["deconvnet", "guided_backprop"])
def test_composites_of_modified_gradients(composite: str) -> None:
    """The gradient with the sign of the coefficient in place of, or beside, that of the activation in every ReLU."""

    class Modified(torch.autograd.Function):
        @staticmethod
        def forward(context, u: Tensor) -> Tensor:
            context.save_for_backward(u)
            return F.relu(u)

        @staticmethod
        def backward(context, c: Tensor) -> Tensor:  # type: ignore[override]
            (u,) = context.saved_tensors
            return F.relu(c) if composite == "deconvnet" else F.relu(c) * (u > 0)

    net = Calls(lambda s, x: F.relu(s.b(F.relu(s.a(x)))), a=conv(), b=conv(4, 4))
    other = Calls(lambda s, x: Modified.apply(s.b(Modified.apply(s.a(x)))), a=net.a, b=net.b)
    other.fc = net.fc
    nets.initialise(net)
    images = pictures(2, 3, 11, 9).requires_grad_()
    expected = [torch.autograd.grad(other(images)[:, k].sum(), images)[0].sum(1) for k in range(3)]
    found = HeatmapDecoder(net, composite)(images).heatmaps
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "override",
    [
        {"rule": "gamma", "name": "layer4.*"},
        {"rule": "gamma", "kinds": ["conv_transpose"]},
        {"rule": "gamma", "name": "fc", "depth": [0.0, 0.5]},
    ],
)
def test_an_override_that_matches_nothing(override: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="these overrides match no call of the classifier.*Gamma"):
        HeatmapDecoder(nets.tiny(), composite_kwargs={"overrides": [override]})


def test_an_override_is_the_rule_of_the_calls_that_it_names() -> None:
    net, images = nets.tiny(), pictures()
    override = {"rule": "epsilon", "epsilon": 0.3, "name": "conv*"}
    found = HeatmapDecoder(net, composite_kwargs={"overrides": [override]})
    rules = found.prepare(found.record(images)).rules
    assert [name for name, rule in rules.items() if rule == Epsilon(0.3)] == ["conv1", "conv2", "conv3"]
    everywhere = HeatmapDecoder(net, composite_kwargs={"epsilon": 0.3})(images).heatmaps
    nowhere = HeatmapDecoder(net)(images).heatmaps
    assert not torch.allclose(found(images).heatmaps, nowhere)
    assert not torch.allclose(found(images).heatmaps, everywhere)


class Top(nn.Module):
    """The mean of the two largest values of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).topk(2).values.mean(2, keepdim=True).unsqueeze(3)


def top_rule(c: Tensor, inputs: tuple[Tensor, ...], output: Tensor, module: nn.Module | None) -> Tensor:
    (x,) = inputs
    assert isinstance(module, Top) and c.shape == output.shape and len(x) == len(c)
    winners = x.flatten(2).topk(2).indices
    return torch.zeros_like(x.flatten(2)).scatter(2, winners, c.flatten(2).expand(winners.shape) / 2).reshape(x.shape)


def log_rule(c: Tensor, inputs: tuple[Tensor, ...], output: Tensor, module: nn.Module | None) -> Tensor:
    assert module is None
    return c / (1 + inputs[0])  # the gradient


@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_custom_rules(tie_weights: bool, chunk_size: int | None) -> None:
    """Of a module class and of a function; here they are gradients, so the heatmap is input x gradient."""
    net = Calls(lambda s, x: s.t(torch.log1p(F.relu(s.a(x)))), a=conv(), t=Top())
    images = pictures(3, 3, 11, 9)
    with pytest.raises(UnsupportedOpError, match="custom_rules"):
        HeatmapDecoder(net)
    rules = {Top: top_rule, torch.log1p: log_rule}
    decoder = HeatmapDecoder(net, custom_rules=rules, tie_weights=tie_weights, schedule={"chunk_size": chunk_size})
    expected = input_x_gradient(net, images)
    torch.testing.assert_close(decoder(images).heatmaps, expected, rtol=1e-12, atol=1e-14)
    some = decoder(images, [2, 0], torch.tensor([2, 1])).heatmaps
    torch.testing.assert_close(some, expected[[2, 1]][:, [2, 0]], rtol=1e-12, atol=1e-14)


def test_an_own_rule_comes_before_the_packages() -> None:
    net, images = Calls(lambda s, x: F.relu(s.a(x)), a=conv()), pictures(2, 3, 11, 9)
    straight = HeatmapDecoder(net, custom_rules={F.relu: lambda c, inputs, output, module: c})(images).heatmaps
    linear = Calls(lambda s, x: s.a(x), a=net.a)
    linear.fc = net.fc
    nets.initialise(net)
    straight = HeatmapDecoder(net, custom_rules={F.relu: lambda c, inputs, output, module: c})(images).heatmaps
    torch.testing.assert_close(straight, input_x_gradient(linear, images), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (lambda c, inputs, output, module: (c, c), "returned 2 coefficients for 1 inputs"),
        (lambda c, inputs, output, module: c[:, :1], "returned a coefficient of shape"),
    ],
)
def test_wrong_custom_rules(rule, named: str) -> None:
    decoder = HeatmapDecoder(Calls(lambda s, x: torch.log1p(s.a(x).relu()), a=conv()), custom_rules={torch.log1p: rule})
    with pytest.raises(InputError, match=named):
        decoder(pictures())


# Errors


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"read_out": "nowhere"}, "read_out 'nowhere' is neither 'input'.*conv1.*fc"),
        ({"read_out": 1.5}, "read_out 1.5 is neither 'input'.* nor a fraction from 0 to 1"),
        ({"read_out": [0.0, "input"]}, "only once"),
        ({"seed": "nothing"}, "unknown seed"),
        ({"read_out": []}, "at least one place"),
        ({"read_out": ["input", "input"]}, "only once"),
        ({"read_out": ["conv2", "bn1", "conv2"]}, "only once"),
        ({"schedule": {"skip": 0.0}}, "schedule must hold no other names"),
        ({"composite": "nothing"}, "unknown composite"),
        ({"composite_kwargs": {"epsilon": -1}}, "epsilon"),
        *(
            ({"image_size": size}, "image_size must be .height, width. in pixels")
            for size in (64, [64], "64", [64, 0], [64, True], [6.4, 64])
        ),
        *(({"read_out": place}, "read_out must be 'input', the name") for place in (None, True, [None], {"input": 1})),
        ({"composite_kwargs": [1]}, r"composite_kwargs must be a mapping or None, got \[1\]"),
        ({"custom_rules": 3}, "custom_rules must be a mapping or None, got 3"),
        ({"seed": ["logit"]}, r"seed must be one name, got \['logit'\]"),
        ({"composite": ["a"]}, r"composite must be one name, got \['a'\]"),
        ({"tie_weights": "false"}, "tie_weights must be true or false, got 'false'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        HeatmapDecoder(nets.tiny(), **arguments)


@pytest.mark.parametrize(
    ("images", "named"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "torch.int64"),
        (torch.zeros(3, 8, 8), r"\(N, C, H, W\), got .*\(3, 8, 8\).*images\[None\]"),
        (torch.zeros(1, 3, 2, 8, 8), r"\(1, 3, 2, 8, 8\)"),
        ("image", "got str"),
    ],
)
def test_wrong_images(decoder: HeatmapDecoder, images, named: str) -> None:
    for run in (decoder, decoder.coefficients):
        with pytest.raises(InputError, match=named):
            run(images)


@pytest.mark.parametrize(
    ("samples", "named"),
    [
        (torch.tensor([0.0]), "torch.float32"),
        (torch.tensor([True, False, True]), "torch.bool"),
        (torch.tensor([[0]]), r"\(1, 1\)"),
        ([0, 1], "got list"),
        (torch.tensor([0, len(pictures())]), f"< {len(pictures())}, the number of images, found {len(pictures())}$"),
        (torch.tensor([-1]), "found -1$"),
    ],
)
def test_wrong_samples(decoder: HeatmapDecoder, samples, named: str) -> None:
    tape = decoder.record(pictures())
    for run in (lambda: decoder(pictures(), samples=samples), lambda: decoder.decode(tape, samples=samples)):
        with pytest.raises(InputError, match=f"samples.*{named}"):
            run()


@pytest.mark.parametrize("classes", [[3], [-1], torch.tensor([5]), torch.tensor([0.0])])
def test_wrong_classes(decoder: HeatmapDecoder, classes) -> None:
    with pytest.raises(InputError, match="classes"):
        decoder(pictures(), classes)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(x)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": x.mean((2, 3))}


def test_wrong_classifiers() -> None:
    with pytest.raises(TraceError, match="must return logits, or a tuple that begins with them"):
        HeatmapDecoder(Named())
    with pytest.raises(TraceError, match="Branching cannot be traced"):
        HeatmapDecoder(Branching())
    with pytest.raises(UnsupportedOpError, match="0: RReLU"):
        HeatmapDecoder(nn.Sequential(nn.RReLU(), nn.Flatten()))
    with pytest.raises(InputError, match=r"logits of shape \(N, K\), it returned \(2, 4, 16, 16\)"):
        HeatmapDecoder(Dense())


class Pair(nn.Module):
    """Logits and something else, such as features."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.tiny()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), x


def test_logits_come_first_in_a_tuple() -> None:
    images, net = pictures(), Pair()
    assert_equal(HeatmapDecoder(net)(images), HeatmapDecoder(net.net)(images))


class Ending(nn.Module):
    """A classifier with something behind its logits."""

    def __init__(self, end: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.end = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), end

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.end(self.head(torch.relu(self.conv(images)).mean((2, 3))))


@pytest.mark.parametrize(
    ("end", "name"),
    [
        (nn.Sigmoid(), r"sigmoid at end \('end'\)"),
        (nn.Softmax(dim=1), r"softmax at end"),
        (nn.Sequential(nn.Hardsigmoid(), nn.Flatten()), r"hardsigmoid at end\.0"),
        (torch.sigmoid, r"sigmoid at \(root\)"),
        (lambda logits: logits.softmax(1).view(-1, 2), r"softmax at \(root\)"),
        (nn.LogSigmoid(), r"logsigmoid at end"),
        (lambda logits: 1 - logits.sigmoid(), r"sigmoid at \(root\)"),
        (lambda logits: 10 * logits.softmax(1) - 5, r"softmax at \(root\)"),
        (lambda logits: logits.sigmoid().clamp(1e-6, 1 - 1e-6), r"sigmoid at \(root\)"),
        (lambda logits: (logits.sigmoid() + logits.softmax(1)) / 2, r"s\w+ at \(root\)"),
    ],
)
def test_a_classifier_that_ends_in_probabilities_is_warned_of(end, name):
    with pytest.warns(UserWarning, match=f"the classifier ends in {name}.*expect logits.*Identity"):
        HeatmapDecoder(Ending(end))


@pytest.mark.parametrize(
    "end",
    [nn.Identity(), nn.Tanh(), lambda logits: logits * logits.sigmoid(), lambda logits: logits + logits.sigmoid()],
)
def test_other_endings(end):
    HeatmapDecoder(Ending(end))
