"""What holds for every decode: exact values and gradients, no side effects, any way of running it."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.oracles import nets
from tests.oracles.gradients import HeldStatistics, agreement, gradients, input_x_gradient
from tests.oracles.nets import Calls, Tiny, conv
from tw_seg.errors import InputError, TraceError, UnsupportedOpError
from tw_seg.lrp import Decoded, HeatmapDecoder
from tw_seg.lrp.rules import Epsilon
from tw_seg.lrp.seeds import HEAD_RULES, SEEDS
from tw_seg.lrp.trace.build import trace


def pictures(*size: int) -> Tensor:
    return torch.randn(*(size or (3, 3, 17, 19)), dtype=torch.float64)


def assert_equal(found: Decoded, expected: Decoded, rtol: float = 1e-12) -> None:
    atol = rtol * float(expected.heatmaps.detach().abs().max())
    torch.testing.assert_close(found.logits, expected.logits, rtol=rtol, atol=atol)
    torch.testing.assert_close(found.heatmaps, expected.heatmaps, rtol=rtol, atol=atol)


def loss_of(heatmaps: Tensor) -> Tensor:
    """A loss whose gradient differs from pixel to pixel and depends on the heatmaps."""
    pixels = torch.linspace(-1, 1, heatmaps.numel(), dtype=heatmaps.dtype).reshape(heatmaps.shape)
    return (heatmaps * pixels).sum() + heatmaps.square().sum() / heatmaps.detach().abs().max()


# Exactness


def test_heatmap_is_input_x_gradient(standard) -> None:
    net, images = standard
    expected = input_x_gradient(net, images)
    found = HeatmapDecoder(net)(images).heatmaps.detach()
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-10


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 40), (45, 71)])
def test_any_size(quick, size: tuple[int, int]) -> None:
    net, _ = quick
    images = pictures(1, 3, *size)
    expected = input_x_gradient(net, images, [1])
    found = HeatmapDecoder(net)(images, [1]).heatmaps.detach()
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


def test_finite_differences_of_own_weights() -> None:
    decoder = HeatmapDecoder(nets.tiny(), tie_weights=False)
    names, weights = zip(*decoder.decoder_weights.items(), strict=True)
    images = pictures(2, 3, 9, 8)

    def function(*values: Tensor) -> Tensor:
        swapped = {f"decoder_weights.{n}": v for n, v in zip(names, values, strict=True)}
        return torch.func.functional_call(decoder, swapped, (images,)).heatmaps

    assert torch.autograd.gradcheck(function, weights)


# Subsets, chunks, batches


WAYS = [
    {"chunk_size": 1},
    {"chunk_size": 2},
    {"chunk_size": 100},
    {"recompute": True},
    {"chunk_size": 1, "recompute": True},
    {"chunk_size": 2, "recompute": True},
    {"memory_budget": 1e-9},  # a pair at a time, all recomputed
    {"memory_budget": 1e-4},  # some are kept
    {"memory_budget": 1.0},
    {"skip": 0.0},
    {"skip": 0.0, "chunk_size": 1},
    {"skip": 0.0, "memory_budget": 1e-4},
]
"""Ways to decode that change memory and time, not results."""


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("tie_weights", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("composite", ["epsilon", "epsilon_flat", "epsilon_plus"])
def test_how_it_is_cut_changes_nothing(composite: str, tie_weights: bool, way: dict[str, Any]) -> None:
    """All samples and, as in training, only those with a mask; two read-outs; batch statistics with gradients."""
    for samples, training in ((None, False), (torch.tensor([2, 0]), True)):
        images, results = pictures(), []
        for arguments in ({"chunk_size": 5}, way):
            net = nets.tiny(classes=5)
            decoder = HeatmapDecoder(net, composite, tie_weights=tie_weights, read_out=["input", "relu"], **arguments)
            decoded = decoder.train(training)(images, None, samples)
            loss = loss_of(decoded.heatmaps) + loss_of(decoded.readouts[1]) + decoded.logits.sum()
            results.append((decoded, gradients(loss, list(decoder.parameters()))))
        (whole, expected), (part, found) = results
        assert_equal(part, whole)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("way", [{}, *WAYS], ids=str)
def test_pairs_are_a_slice(way: dict[str, Any]) -> None:
    """As many classes for each sample as it needs, in any order, also twice; parameter gradients are theirs alone."""
    images, samples, classes = pictures(), torch.tensor([2, 0, 2, 2, 0]), torch.tensor([4, 1, 0, 4, 3])
    net = nets.tiny(classes=5)
    every, decoder = HeatmapDecoder(net), HeatmapDecoder(net, **way)
    pairs = decoder.decode_pairs(decoder.record(images), samples, classes)
    expected = every(images).heatmaps[samples, classes].unsqueeze(1)
    torch.testing.assert_close(pairs.heatmaps, expected, rtol=1e-12, atol=1e-14)
    found, wanted = (gradients(loss_of(maps), list(net.parameters())) for maps in (pairs.heatmaps, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


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


def test_a_tape_of_another_decoder(decoder: HeatmapDecoder) -> None:
    with pytest.raises(InputError, match="another decoder"):
        decoder.decode(HeatmapDecoder(nets.tiny()).record(pictures()))


def test_recompute_in_training_mode_with_dropout() -> None:
    images = pictures()
    results = []
    for recompute in (False, True):
        net = nets.tiny(dropout=0.5).train()
        torch.manual_seed(2)
        decoded = HeatmapDecoder(net, chunk_size=1, recompute=recompute)(images)
        results.append([*gradients(loss_of(decoded.heatmaps), list(net.parameters())), *net.buffers()])
    torch.testing.assert_close(results[1], results[0])


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
    decoder = HeatmapDecoder(net, chunk_size=2, recompute=True).train(training)
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
    decoder = HeatmapDecoder(copy.deepcopy(net).float(), chunk_size=2).train(training)
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
    decoder, images = HeatmapDecoder(nets.tiny(), chunk_size=2, recompute=True), pictures()
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


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"chunk_size": 1}, {"tie_weights": False}], ids=str)
def test_compile(arguments: dict[str, Any], training: bool) -> None:
    decoder = HeatmapDecoder(nets.tiny(), "epsilon_flat", **arguments).train(training)
    compiled_equals_eager(decoder, pictures(), "aot_eager", 1e-10)


@pytest.mark.slow
def test_compile_a_standard_net() -> None:  # others, for shapes that vary: tests/lrp/test_compile.py
    compiled_equals_eager(HeatmapDecoder(nets.create("resnet18")), nets.images("resnet18"), "aot_eager", 1e-10)


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    compiled_equals_eager(HeatmapDecoder(nets.tiny()), pictures(), "inductor", 1e-8)


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_flat"])
def test_export_with_a_dynamic_batch(composite: str) -> None:
    if composite == "epsilon_flat" and torch.__version__ < (2, 12):
        pytest.skip("torch 2.11 cannot simplify the strides of a BatchNorm's output in a dynamic batch")
    decoder = HeatmapDecoder(nets.tiny(), composite, chunk_size=2)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(decoder, (pictures(),), dynamic_shapes={"images": {0: batch}})
    for n in (1, 3, 5):
        images = pictures(n, 3, 17, 19)
        assert_equal(program.module()(images), decoder(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "resnet10t"])
def test_export_standard_nets(name: str) -> None:
    decoder = HeatmapDecoder(nets.create(name))
    images = nets.images(name, 3)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(decoder, (images,), dynamic_shapes={"images": {0: batch}})
    assert_equal(program.module()(images[:1]), decoder(images[:1]))


# Tying


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


def test_own_weights_are_apart(moved) -> None:
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


def test_own_weights_have_no_biases_and_all_learn(quick) -> None:
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


def test_own_weights_are_those_that_the_decode_reads() -> None:
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


def test_own_weights_of_a_frozen_classifier_are_trained() -> None:
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


def test_own_weights_of_norms_and_scales() -> None:
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


# Read-outs


def test_several_read_outs_are_each_alone(quick) -> None:
    net, images = quick
    places = ["features.4", "input", "features"] if hasattr(net, "features") else ["layer3", "input", "layer1"]
    with torch.no_grad():
        decoded = HeatmapDecoder(net, read_out=places)(images)
        assert decoded.heatmaps is decoded.readouts[0] and len(decoded.readouts) == 3
        for place, found in zip(places, decoded.readouts, strict=True):
            alone = HeatmapDecoder(net, read_out=place)(images).heatmaps
            torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-14)


def test_read_outs_in_chunks() -> None:
    net, images = nets.tiny(), pictures()
    whole = HeatmapDecoder(net, read_out=["conv1", "input"])(images)
    part = HeatmapDecoder(net, read_out=["conv1", "input"], chunk_size=1, recompute=True)(images)
    torch.testing.assert_close(part.readouts, whole.readouts)


def test_a_pooled_read_out_is_a_map_of_one_cell(decoder: HeatmapDecoder) -> None:
    net, images = decoder.classifier, pictures()
    found = HeatmapDecoder(net, read_out="mean")(images).heatmaps
    assert found.shape == (3, 3, 1, 1)
    torch.testing.assert_close(found[..., 0, 0], net(images) - net.fc.bias)


@pytest.mark.parametrize(
    ("fraction", "place"), [(0, "input"), (0.0, "input"), (0.3, "conv1"), (0.5, "conv2"), (1, "conv3")]
)
def test_a_read_out_at_a_fraction_of_the_depth(fraction: float, place: str) -> None:
    net, images = nets.tiny(), pictures()
    found = HeatmapDecoder(net, read_out=fraction)(images).heatmaps
    assert torch.equal(found, HeatmapDecoder(net, read_out=place)(images).heatmaps)
    several = HeatmapDecoder(net, read_out=["pool", fraction])(images).readouts[1]
    torch.testing.assert_close(several, found, rtol=1e-12, atol=1e-14)


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


# Seeds


@pytest.mark.parametrize("seed", [name for name in SEEDS if name not in HEAD_RULES])
def test_a_decode_is_linear_in_the_seed(seed: str) -> None:
    """Heatmaps are those of the logits, in the proportions of the seed's coefficients."""
    net, images = nets.tiny(classes=4), pictures()
    logit = HeatmapDecoder(net)(images)
    rows = SEEDS[seed](logit.logits, [2, 0]).unflatten(0, (2, 3))
    expected = torch.einsum("knj,njhw->nkhw", rows, logit.heatmaps)
    for chunk_size in (None, 1):
        found = HeatmapDecoder(net, seed=seed, chunk_size=chunk_size)(images, [2, 0]).heatmaps
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


def test_heatmaps_of_coefficients_are_gradients() -> None:
    """With epsilon 0 the coefficient at the images is the gradient, summed over channels."""
    net, images = nets.tiny(), pictures().requires_grad_()
    decoder = HeatmapDecoder(net, read_out=["input", "pool"])
    decoder.composite = replace(decoder.composite, heatmap="coefficient")
    found = decoder(images).readouts[0]
    gradients_ = [torch.autograd.grad(net(images)[:, k].sum(), images)[0].sum(1) for k in range(3)]
    torch.testing.assert_close(found, torch.stack(gradients_, 1), rtol=1e-12, atol=1e-13)
    assert decoder(images, samples=torch.tensor([], dtype=torch.int64)).heatmaps.shape == (0, 3, 17, 19)


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
    rules = {call.name: found.composite.rule(call) for call in found.graph(images).calls}
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
def test_own_rules(tie_weights: bool, chunk_size: int | None) -> None:
    """Of a module class and of a function; here they are gradients, so the heatmap is input x gradient."""
    net = Calls(lambda s, x: s.t(torch.log1p(F.relu(s.a(x)))), a=conv(), t=Top())
    images = pictures(3, 3, 11, 9)
    with pytest.raises(UnsupportedOpError, match="custom_rules"):
        HeatmapDecoder(net)
    rules = {Top: top_rule, torch.log1p: log_rule}
    decoder = HeatmapDecoder(net, custom_rules=rules, tie_weights=tie_weights, chunk_size=chunk_size)
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
def test_wrong_own_rules(rule, named: str) -> None:
    decoder = HeatmapDecoder(Calls(lambda s, x: torch.log1p(s.a(x).relu()), a=conv()), custom_rules={torch.log1p: rule})
    with pytest.raises(InputError, match=named):
        decoder(pictures())


# Forwards that branch on sizes


def padded(s, x: Tensor) -> Tensor:
    """Pads odd widths and pools large heights: another graph for each."""
    if x.shape[-1] % 2:
        x = F.pad(x, (0, 1))
    x = F.relu(s.a(x))
    return s.pool(x) if x.shape[-2] > 12 else x


def branching(**modules: Any) -> Calls:
    return Calls(padded, a=conv(), pool=nn.MaxPool2d(2), **modules)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_a_forward_that_branches_on_sizes(tie_weights: bool) -> None:
    net = branching()
    decoder = HeatmapDecoder(net, image_size=(11, 8), tie_weights=tie_weights)
    for height, width in [(11, 8), (11, 9), (17, 8), (17, 9), (11, 8), (17, 9)]:
        images = pictures(2, 3, height, width)
        decoded = decoder(images)
        assert torch.equal(decoded.logits, net(images))
        torch.testing.assert_close(decoded.heatmaps, input_x_gradient(net, images), rtol=1e-12, atol=1e-14)
        pools = [call.name for call in decoder.graph(images).calls if call.kind == "max_pool"]
        assert pools == ["pool"] * (height == 17)


def test_each_size_is_traced_once(monkeypatch) -> None:
    traced: list[tuple[int, ...]] = []

    def counted(classifier: nn.Module, training: bool, *, image_shape: tuple[int, int, int], **options: Any) -> Any:
        traced.append(image_shape)
        return trace(classifier, training, image_shape=image_shape, **options)

    monkeypatch.setattr("tw_seg.lrp.decode.plan.trace", counted)
    decoder = HeatmapDecoder(branching(), image_size=(11, 8))
    for width in (8, 9, 8, 9, 7, 9):
        decoder(pictures(2, 3, 11, width))
        decoder.train(not decoder.training)
    assert traced == [(3, 11, 8)] * 2 + [(3, 11, 9)] * 2 + [(3, 11, 7)] * 2  # both modes
    traced.clear()
    decoder = HeatmapDecoder(nets.tiny())
    for width in (17, 18):
        decoder(pictures(2, 3, 17, width))
    assert traced == [(3, 224, 224)] * 2


def test_a_read_out_that_is_not_there_at_every_size() -> None:
    decoder = HeatmapDecoder(branching(), image_size=(17, 8), read_out="pool")
    assert decoder(pictures(2, 3, 17, 8)).heatmaps.shape == (2, 3, 8, 4)
    with pytest.raises(InputError, match="read_out 'pool' is neither"):
        decoder(pictures(2, 3, 11, 8))


def test_own_weights_that_are_used_at_some_sizes_only() -> None:
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


def test_compile_a_forward_that_branches_on_sizes() -> None:
    """It cannot be traced while it is compiled; after one run at that size it need not be."""
    decoder, images = HeatmapDecoder(branching(), image_size=(11, 8)), pictures(2, 3, 11, 9)
    torch._dynamo.reset()
    compiled = torch.compile(decoder, fullgraph=True, backend="eager")
    message = r"was not traced for images \(3, 11, 9\) yet: run the decoder once"
    with pytest.raises(Exception, match=message):  # torch wraps the InputError
        compiled(images)
    expected = decoder(images)
    torch._dynamo.reset()
    assert_equal(torch.compile(decoder, fullgraph=True, backend="eager")(images), expected)


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
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"composite": "nothing"}, "unknown composite"),
        ({"composite_kwargs": {"epsilon": -1}}, "epsilon"),
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
    ],
)
def test_wrong_samples(decoder: HeatmapDecoder, samples, named: str) -> None:
    with pytest.raises(InputError, match=f"samples.*{named}"):
        decoder(pictures(), samples=samples)


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
    with pytest.raises(UnsupportedOpError, match="0: Softsign"):
        HeatmapDecoder(nn.Sequential(nn.Softsign(), nn.Flatten()))
    with pytest.raises(InputError, match=r"logits of shape \(N, K\), it returned \(2, 4, 9, 9\)"):
        HeatmapDecoder(Dense())(torch.randn(2, 3, 9, 9))


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
