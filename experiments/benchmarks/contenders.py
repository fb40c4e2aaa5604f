"""What a training step is for each contender: forward, heatmap loss, image-level loss, backward, AdamW.

All have the same losses (pixel-wise cross-entropy over labelled pixels, multi-label cross-entropy over all images),
the same optimizer and the same random batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.benchmarks.case import Case, Data, classifier_state, random_data, set_modes
from experiments.benchmarks.published import published_model
from tw_seg import IGNORE_INDEX, create_classifier, create_model

LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Contender:
    """A model and what is timed of it.

    Attributes:
        model: Holds every weight.
        run: One training step, or the heatmaps of a batch.
        heatmaps: Heatmaps of the labelled images in evaluation mode, shape (L, K, H, W), raw relevance; ``None``
            for a contender without.
        optimizer: Of a training step.
    """

    model: nn.Module
    run: Callable[[], object]
    heatmaps: Callable[[], Tensor] | None = None
    optimizer: torch.optim.Optimizer | None = None


Build = Callable[[Case, Path | None], Contender]


def autocast(case: Case) -> AbstractContextManager[Any]:
    """bf16 autocast where the case asks for it."""
    return torch.autocast(case.device, torch.bfloat16) if case.precision == "bf16" else nullcontext()


def place(model: nn.Module, case: Case) -> nn.Module:
    """The model on the device, in the case's memory format and modes."""
    model = model.to(case.device)
    if case.channels_last:
        model = model.to(memory_format=torch.channels_last)
    set_modes(model, case)
    return model


def compiled(function: Any, case: Case) -> Any:
    """The model or function, compiled where the case asks for it."""
    return torch.compile(function) if case.compile else function


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """AdamW whose state and whose gradients exist already, so that they count as the model's memory."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    return optimizer


def heatmap_loss(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy over labelled pixels."""
    return F.cross_entropy(mask_logits, masks, ignore_index=IGNORE_INDEX)


def image_loss(logits: Tensor, data: Data) -> Tensor:
    """Multi-label cross-entropy over all images."""
    return F.binary_cross_entropy_with_logits(logits, data.labels)


def stepper(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], case: Case) -> Callable[[], None]:
    """A training step of a loss. Gradients stay allocated: they belong to the model's memory."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        with autocast(case):
            value = loss()
        value.backward()
        optimizer.step()

    return step


def segmenter(case: Case, published: Path | None, *, name: str = "heatmap", **options: Any) -> Contender:
    """A model of this package: the heatmap segmenter, or the multi-task U-Net."""
    data = random_data(case)
    model: Any = create_model(name, encoder_name=case.encoder, classes=case.classes, **options)
    model.load_classifier_state(classifier_state(case))
    model = place(model, case)
    optimizer = adamw(model)
    forward = compiled(model, case)

    def loss() -> Tensor:
        output = forward(data.images, samples=data.labelled)
        return heatmap_loss(output.mask_logits, data.masks) + image_loss(output.logits, data)

    def heatmaps() -> Tensor:
        with torch.no_grad(), autocast(case):
            maps: Tensor = model.eval().decoder(data.images[data.labelled]).heatmaps
        set_modes(model, case)
        return maps

    return Contender(model, stepper(optimizer, loss, case), heatmaps if name == "heatmap" else None, optimizer)


def ours(
    case: Case,
    published: Path | None,
    *,
    tie_weights: bool = True,
    chunked: bool = False,
    within_budget: bool = False,
    **schedule: Any,
) -> Contender:
    """The heatmap segmenter: exact LRP-epsilon with epsilon 0, read at the input."""
    if chunked:
        schedule["chunk_size"] = case.chunk_size
    if within_budget:
        schedule["memory_budget"] = case.memory_budget
    options = {"composite": "epsilon", "composite_kwargs": {"epsilon": 0.0}, "schedule": schedule}
    return segmenter(case, published, decoder_kwargs={**options, "tie_weights": tie_weights})


def plain_classifier(case: Case) -> nn.Module:
    """The classifier with the weights of the case."""
    net = create_classifier(case.encoder, classes=case.classes)
    net.load_state_dict(classifier_state(case))
    return place(net, case)


def classifier(case: Case, published: Path | None) -> Contender:
    """The image-level loss alone: the unit of the roofline."""
    data = random_data(case)
    model = plain_classifier(case)
    forward = compiled(model, case)
    optimizer = adamw(model)
    return Contender(model, stepper(optimizer, lambda: image_loss(forward(data.images), data), case), None, optimizer)


def input_x_gradient(net: Callable[[Tensor], Tensor], images: Tensor, *, create_graph: bool) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and ``x * d logit_k / d x`` summed over channels (N, K, H, W), by autograd, class by class."""
    images = images.detach().requires_grad_()
    logits = net(images)
    maps = []
    for k in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), images, retain_graph=True, create_graph=create_graph)
        maps.append((images * gradient).sum(1))
    return logits, torch.stack(maps, 1)


def double_backpropagation(case: Case, published: Path | None) -> Contender:
    """Input x gradient with a graph, and its loss: what one writes without this package.

    Autograd gives the gradient of the whole batch, also for images without a mask. In a case with the batch's
    statistics it goes through them too, which a heatmap holds constant: the heatmaps are compared in evaluation mode.
    """
    data = random_data(case)
    model = plain_classifier(case)
    forward = compiled(model, case)
    optimizer = adamw(model)

    def loss() -> Tensor:
        logits, maps = input_x_gradient(forward, data.images, create_graph=True)
        mask_logits = maps[data.labelled] * maps[0, 0].numel()
        return heatmap_loss(mask_logits, data.masks) + image_loss(logits, data)

    def heatmaps() -> Tensor:
        with autocast(case):
            maps = input_x_gradient(model.eval(), data.images[data.labelled], create_graph=False)[1]
        set_modes(model, case)
        return maps.detach()

    return Contender(model, stepper(optimizer, loss, case), heatmaps, optimizer)


def published_step(case: Case, published: Path | None, *, per_class: bool) -> Contender:
    """The published code, driven as its training loop does: all images are decoded, raw heatmaps are mask logits.

    ``per_class`` is its ``--iterative_gradients``, with which all commands of its README run: heatmaps without a
    graph first, then one decode and one backward pass for each class.
    """
    data = random_data(case)
    model: Any = place(published_model(published, case, classifier_state(case)), case)
    optimizer = adamw(model)

    def loss(logits: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        return heatmap_loss(maps, data.all_masks), image_loss(logits, data)

    def all_at_once() -> Tensor:
        logits, maps = model(data.images)
        return sum(loss(logits, maps), start=logits.new_zeros(()))

    def class_by_class() -> None:
        optimizer.zero_grad(set_to_none=False)
        with autocast(case):
            logits = model(data.images, only_classification=True)
            detached = model.forward_decoder_detached(logits)
        for k in range(case.classes):
            with autocast(case):
                maps = detached.clone()
                maps[:, k] = model.forward_individual_class(logits, k)
                on_pixels, on_images = loss(logits, maps)
            if on_pixels != 0:
                on_pixels.backward(retain_graph=True)
        on_images.backward()
        optimizer.step()

    def heatmaps() -> Tensor:
        with torch.no_grad(), autocast(case):
            maps: Tensor = model.eval()(data.images[data.labelled])[1]
        set_modes(model, case)
        return maps

    run = class_by_class if per_class else stepper(optimizer, all_at_once, case)
    return Contender(model, run, heatmaps, optimizer)


TRAINING: Mapping[str, Build] = {
    "ours": ours,
    "ours, untied": partial(ours, tie_weights=False),
    "ours, memory budget": partial(ours, within_budget=True),
    "ours, recompute": partial(ours, chunked=True, recompute=True),
    "ours, two-phase": partial(ours, chunked=True, gradient_threshold=0.0),
    "published, per class": partial(published_step, per_class=True),
    "published, all at once": partial(published_step, per_class=False),
    "double backpropagation": double_backpropagation,
    "classifier": classifier,
    "multi-task U-Net": partial(segmenter, name="multitask_unet"),
}
"""Contenders of a training step by name; each is built in a process of its own."""
