"""One setting in which contenders are compared, and the data and the classifier that they share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tw_seg import IGNORE_INDEX, create_classifier

Precision = Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True)
class Case:
    """What is measured, and at which size.

    Attributes:
        name: What tables call it.
        encoder: Name of the classifier.
        classes: Number of classes K.
        size: Side of the square images in pixels.
        batch: Images of a step N.
        labelled: How many of them have a mask; those are decoded.
        part: A training step, or heatmaps of all classes for the whole batch at inference.
        batch_norm: Whether BatchNorm uses the batch's statistics in a training step, or its running ones.
        chunk_size: Classes that the recomputing contenders decode at once.
        memory_budget: GiB that a decode may take of the contender that keeps within it.
        device: ``"cpu"`` or ``"cuda"``.
        precision: fp32 proper, fp32 with TF32 products, or bf16 autocast.
        channels_last: Memory format of images and weights.
        compile: Whether the models are given to ``torch.compile``.
    """

    name: str
    encoder: str
    classes: int
    size: int
    batch: int
    labelled: int
    part: Literal["training", "inference"] = "training"
    batch_norm: Literal["train", "eval"] = "train"
    chunk_size: int = 4
    memory_budget: float = 0.36
    device: str = "cpu"
    precision: Precision = "fp32"
    channels_last: bool = False
    compile: bool = False

    @property
    def share(self) -> float:
        """Labelled share of the batch."""
        return self.labelled / self.batch

    @property
    def roofline(self) -> float:
        """Cost of an exact heatmap step in steps of the plain classifier, at best."""
        return 1 + self.classes * self.share

    def describe(self) -> str:
        """The setting in one line."""
        parts = [
            self.encoder,
            f"K = {self.classes}",
            f"{self.batch} x {self.size} x {self.size} px",
            f"{self.labelled} labelled" if self.part == "training" else "inference",
            self.device,
            self.precision,
        ]
        if self.part == "training" and self.batch_norm == "eval":
            parts.append("BatchNorm frozen")
        parts += ["channels_last"] * self.channels_last + ["torch.compile"] * self.compile
        return ", ".join(parts)


class Data(NamedTuple):
    """A batch of random images on the device.

    Attributes:
        images: Shape (N, 3, H, W).
        labels: Image-level multi-hot labels, shape (N, K).
        labelled: Rows with a mask, int64, shape (L,).
        masks: Their masks, int64, shape (L, H, W).
        all_masks: Masks of all images, all pixels ignored where there is none, shape (N, H, W).
    """

    images: Tensor
    labels: Tensor
    labelled: Tensor
    masks: Tensor
    all_masks: Tensor


def random_data(case: Case) -> Data:
    """The same random batch for every contender of a case."""
    generator = torch.Generator().manual_seed(0)
    pixels = (case.size, case.size)
    images = torch.randn(case.batch, 3, *pixels, generator=generator)
    labels = torch.randint(0, 2, (case.batch, case.classes), generator=generator).float()
    masks = torch.randint(0, case.classes, (case.labelled, *pixels), generator=generator)
    all_masks = torch.full((case.batch, *pixels), IGNORE_INDEX)
    all_masks[: case.labelled] = masks
    images = images.to(case.device)
    if case.channels_last:
        images = images.to(memory_format=torch.channels_last)
    rows = torch.arange(case.labelled, device=case.device)
    return Data(images, labels.to(case.device), rows, masks.to(case.device), all_masks.to(case.device))


def classifier_state(case: Case) -> dict[str, Tensor]:
    """Weights that every contender of a case starts from: random, with BatchNorm statistics of random images.

    With a new model's statistics (mean 0, variance 1) the activations of a deep network grow from block to block.
    """
    torch.manual_seed(0)
    net = create_classifier(case.encoder, classes=case.classes).train()
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    if norms:
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            net(torch.randn(2, 3, 64, 64))
    return net.state_dict()


def set_modes(model: nn.Module, case: Case) -> None:
    """Training mode for a training step, with the case's BatchNorm; evaluation mode otherwise."""
    model.train(case.part == "training")
    if case.batch_norm == "eval":
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
