"""What a training step asks of the device: it never waits, keeps memory layouts, and bears half precision.

No GPU is needed: on fake tensors that claim to be on one, all that waits for it is an error (to read a value, to ask
how many elements are not zero), and copies from or to the host are seen. Torch's own backward pass cannot run there
without a GPU; on the device ``meta`` it can, where the same reads are errors but copies of Python numbers go unseen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.models.contract import ENCODER, randomise
from tests.oracles.gradients import agreement, input_x_gradient
from tw_seg.losses import SegmentationLoss
from tw_seg.models.segmenter import HeatmapSegmenter
from tw_seg.types import Batch, SegOutput

STEPS: list[dict[str, Any]] = [
    {},
    {"decoder_kwargs": {"tie_weights": False}},
    {"decoder_kwargs": {"schedule": {"recompute": True}}},
    {"decoder_kwargs": {"schedule": {"chunk_size": 3}}},
    {"decoder_kwargs": {"schedule": {"chunk_size": 1, "recompute": True}, "seed": "contrastive"}},
    {"background": "constant", "decoder_kwargs": {"composite": "epsilon_flat"}},
    {"compress": 0.5, "decoder_kwargs": {"composite": "epsilon_plus", "read_out": ["layer3", "input"]}},
    {"refine": 4, "background": "constant", "decoder_kwargs": {"read_out": ["layer3", "layer1"]}},
]
SCHEDULES: list[dict[str, Any]] = [{}, {"recompute": True}, {"gradient_threshold": 0.0}]
CLASSES = ENCODER["classes"]


class Seen(NamedTuple):
    """One call of a torch operation."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


class Calls(TorchDispatchMode):
    """Records calls of torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Seen] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.seen.append(Seen(str(function), args, kwargs, result))
        return result

    def across(self) -> list[str]:
        """Names of calls with tensors both of the host and of a device: copies, and numbers that are sent along."""
        devices = [
            (call.name, {x.is_cpu for x in tree_leaves(call[1:]) if isinstance(x, Tensor)}) for call in self.seen
        ]
        return [name for name, found in devices if len(found) == 2]


def place(model: nn.Module, device: str) -> nn.Module:
    """The model with empty parameters and buffers on a device that this machine need not have."""
    for module in model.modules():
        for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            empty = torch.empty(value.shape, dtype=value.dtype, device=device)
            setattr(module, name, nn.Parameter(empty) if isinstance(value, nn.Parameter) else empty)
    return model


def batch_on(device: str) -> Batch:
    labels, masks = torch.empty(4, CLASSES, device=device), torch.empty(2, 33, 47, dtype=torch.int64, device=device)
    rows = torch.empty(2, dtype=torch.int64, device=device)
    return Batch(torch.empty(4, 3, 33, 47, device=device), labels, rows, masks, (), ())


def forward(model: nn.Module, batch: Batch, classes: Any = None) -> tuple[Tensor, SegOutput]:
    output = model(batch.images, classes, samples=batch.labelled)
    return SegmentationLoss()(output, batch)[0], output


# Waiting for the device


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.where(x > 0),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
    ],
)
@pytest.mark.parametrize("device", ["cuda", "meta"])
def test_waiting_is_an_error_here(wait: Any, device: str) -> None:
    """What the tests below rely on."""
    refused = (DataDependentOutputException, DynamicOutputShapeException, NotImplementedError, RuntimeError)
    with FakeTensorMode() if device == "cuda" else nullcontext(), pytest.raises(refused):
        wait(torch.empty(3, device=device))


@pytest.mark.parametrize(
    "send",
    [
        lambda x: torch.tensor([2, 0], device=x.device),
        lambda x: torch.as_tensor((2, 0), device=x.device),
        lambda x: torch.tensor(1.0, device=x.device),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x.new_tensor([1.0]),
        lambda x: x[[0, 2]],
        lambda x: x.cpu(),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU torch.tensor copies before a mode sees it")
def test_copies_are_seen_here(send: Any) -> None:
    with FakeTensorMode(), Calls() as calls:
        send(torch.empty(3, device="cuda"))
    assert calls.across()


@pytest.mark.parametrize("options", [*STEPS, {"decoder_kwargs": {"schedule": {"gradient_threshold": 0.0}}}], ids=str)
def test_the_forward_pass_neither_waits_nor_copies(options: dict[str, Any]) -> None:
    """A model that trains in two phases looks at the gradients once, in the backward pass."""
    model = HeatmapSegmenter(**{**ENCODER, **options}).train()
    with FakeTensorMode(), Calls() as calls:
        loss, output = forward(place(model, "cuda"), batch_on("cuda"))
    assert loss.device.type == "cuda" and output.mask_logits.shape == (2, CLASSES, 33, 47)
    assert len(calls.seen) > 100 and not calls.across()


@pytest.mark.parametrize(
    ("classes", "background"),
    [
        (torch.tensor([2, 0, 3]), "class"),
        (torch.tensor([2, 0, 3]), "constant"),
        ([1], "class"),
        ((1, 2, 3), "constant"),
    ],
    ids=str,
)
def test_chosen_classes_on_the_device_are_not_waited_for(classes: Any, background: str) -> None:
    """Of classes given as numbers, a run is counted on the device."""
    model = HeatmapSegmenter(**ENCODER, background=background, decoder_kwargs={"schedule": {"chunk_size": 1}}).train()
    with FakeTensorMode(), Calls() as calls:
        chosen = torch.empty(3, dtype=torch.int64, device="cuda") if isinstance(classes, Tensor) else classes
        batch = batch_on("cuda")
        output = place(model, "cuda")(batch.images, chosen, samples=batch.labelled)
    assert output.mask_logits.shape[1] == len(classes) and not calls.across()


@pytest.mark.parametrize("options", STEPS, ids=str)
def test_the_backward_pass_does_not_wait(options: dict[str, Any]) -> None:
    model = place(HeatmapSegmenter(**{**ENCODER, **options}).train(), "meta")
    with Calls() as calls:
        forward(model, batch_on("meta"))[0].backward()
    assert not calls.across()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("options", STEPS, ids=str)
def test_a_step_on_a_gpu_does_not_wait(options: dict[str, Any]) -> None:
    model = randomise(HeatmapSegmenter(**{**ENCODER, **options})).train().cuda()
    example = batch()
    example = example._replace(**{k: v.cuda() for k, v in example._asdict().items() if isinstance(v, Tensor)})
    forward(model, example)[0].backward()  # libraries start up
    try:
        torch.cuda.set_sync_debug_mode("error")
        forward(model, example)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Half precision


def batch(samples: int = 4, dtype: torch.dtype = torch.float32) -> Batch:
    """Random images of smooth colours, half of them labelled, a fifth of the pixels ignored."""
    coarse = torch.randn(samples, 3, 5, 6, dtype=dtype)
    images = nn.functional.interpolate(coarse, (40, 48), mode="bilinear") + 0.1 * torch.randn(samples, 3, 40, 48)
    rows = torch.arange(1, samples, 2)
    masks = torch.randint(CLASSES, (len(rows), 40, 48))
    masks[torch.rand(masks.shape) < 0.2] = 255
    return Batch(images.to(dtype), torch.rand(samples, CLASSES).round().to(dtype), rows, masks, (), ())


def parameter_gradients(model: nn.Module, example: Batch, autocast: torch.dtype | None = None) -> list[Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        loss, output = forward(model, example)
    loss.backward()
    assert loss.isfinite() and output.mask_logits.isfinite().all()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def segmenter(name: str, **options: Any) -> HeatmapSegmenter:
    if name == "small":
        return randomise(HeatmapSegmenter(**{**ENCODER, **options}))
    return randomise(HeatmapSegmenter(name, classes=CLASSES, **options))


class DoubleBackpropagation(nn.Module):
    """The same mask logits by ``torch.autograd``; in evaluation mode, with the epsilon rule at 0."""

    def __init__(self, model: HeatmapSegmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, classes: None, samples: Tensor) -> SegOutput:
        net, (h, w) = self.model.classifier, images.shape[2:]
        maps = input_x_gradient(net, images, create_graph=True)[samples]
        return SegOutput(net(images), self.model.log_scale.exp() * h * w * maps + self.model.offset[:, None, None])


def cost_of_bfloat16(model: nn.Module, example: Batch) -> tuple[float, float]:
    exact = parameter_gradients(copy.deepcopy(model), example)
    return agreement(parameter_gradients(copy.deepcopy(model), example, torch.bfloat16), exact)


@pytest.mark.parametrize("name", ["small", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_bfloat16_costs_no_more_than_in_double_backpropagation(name: str) -> None:
    """What is lost is lost in the random classifier's own activations, whose gates differ: nothing in the decode."""
    model, example = segmenter(name).eval(), batch()
    found, expected = (cost_of_bfloat16(m, example) for m in (model, DoubleBackpropagation(model)))
    assert found[0] < 1.2 * expected[0] + 1e-3 and found[1] < 1.2 * expected[1] + 5e-3


@pytest.mark.parametrize(
    ("schedule", "tie_weights", "training"),
    [
        *((schedule, True, False) for schedule in SCHEDULES),
        *((schedule, False, True) for schedule in SCHEDULES),
        (SCHEDULES[0], True, True),
    ],
    ids=str,
)
def test_bfloat16_gradients(tie_weights: bool, schedule: dict[str, Any], training: bool) -> None:
    """Batch statistics of few random images lose more: the classifier alone as much."""
    bound = 0.06 if training else 0.02
    kwargs = {"tie_weights": tie_weights, "schedule": schedule}
    model, example = segmenter("small", decoder_kwargs=kwargs).train(training), batch()
    twin = copy.deepcopy(model)
    found, expected = parameter_gradients(model, example, torch.bfloat16), parameter_gradients(twin, example)
    assert all(g.isfinite().all() and g.dtype == torch.float32 for g in found)
    direction, length = agreement(found, expected)
    assert direction < bound and length < 0.05


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_gradient_scaler(schedule: dict[str, Any]) -> None:
    """A scaled step is the plain one; one whose gradients overflow is left out."""
    model, example = segmenter("small", decoder_kwargs={"schedule": schedule}), batch()
    plain, before = copy.deepcopy(model), [p.detach().clone() for p in model.parameters()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for one in (model, plain):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.01)
        loss = forward(one, example)[0]
        if one is plain:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    moved = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    expected = [p.detach() - b for p, b in zip(plain.parameters(), before, strict=True)]
    direction, length = agreement(moved, expected)
    assert direction < 1e-6 and length < 1e-3

    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    after = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.zero_grad()
    scaler.scale(1e3 * forward(model, example)[0]).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 1e38
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), after, strict=True))


# Memory layout


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def convolution_weights(model: nn.Module) -> Iterator[Tensor]:
    return (p for p in model.parameters() if p.ndim == 4)


@pytest.mark.parametrize(
    ("name", "options", "dtype"),
    [
        ("small", {}, torch.float64),
        ("small", {}, torch.float32),
        ("small", {"decoder_kwargs": {"tie_weights": False}}, torch.float64),
        ("small", {"decoder_kwargs": {"schedule": {"gradient_threshold": 0.0}}}, torch.float64),
        ("small", {"decoder_kwargs": {"schedule": {"chunk_size": 1}}}, torch.float64),
        pytest.param("resnet18", {}, torch.float64, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_channels_last_is_the_same(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    rtol = 1e-10 if dtype == torch.float64 else 1e-4
    model, example = segmenter(name, **options).to(dtype), batch(dtype=dtype)
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    last = example._replace(images=example.images.contiguous(memory_format=torch.channels_last))
    with torch.no_grad():
        found, expected = twin(last.images, [2, 0]).mask_logits, model(example.images, [2, 0]).mask_logits
    assert _far(found, expected) < rtol
    direction, length = agreement(parameter_gradients(twin, last), parameter_gradients(model, example))
    assert direction < rtol and length < rtol
    assert all(is_channels_last(w) for w in convolution_weights(twin))
    assert all(w.is_contiguous() for w in convolution_weights(model))


def _far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("options", "samples", "layout"),
    [
        ({}, None, torch.contiguous_format),
        ({}, torch.tensor([2, 0]), torch.contiguous_format),
        ({}, None, torch.channels_last),
        ({"decoder_kwargs": {"composite": "epsilon_plus"}}, torch.tensor([2, 0]), torch.channels_last),
        ({"decoder_kwargs": {"schedule": {"chunk_size": 1}}}, torch.tensor([2, 0]), torch.contiguous_format),
    ],
    ids=str,
)
def test_coefficients_reach_convolutions_channels_last(
    options: dict[str, Any], samples: Tensor | None, layout: torch.memory_format
) -> None:
    """Which is how a CPU convolves fastest in single precision."""
    model = segmenter("small", **options).eval().to(memory_format=layout)
    images = batch().images.contiguous(memory_format=layout)
    with torch.no_grad(), Calls() as calls:
        model(images, [2, 0], samples)
    coefficients = [c.args[0] for c in calls.seen if c.name.startswith("aten.convolution.") and c.args[6]]
    assert len(coefficients) >= 5
    assert all(is_channels_last(c) for c in coefficients)
