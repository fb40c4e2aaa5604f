"""A few training steps on corrected pictures: with the loss of the run, and what was not marked stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import label as find_parts
from torch import Tensor

from tw_seg.arguments import check_counts, check_numbers
from tw_seg.errors import InputError
from tw_seg.losses.pixels import cross_entropy
from tw_seg.losses.segmentation import SegmentationLoss
from tw_seg.models.base import SegModel
from tw_seg.training.optim import group_parameters
from tw_seg.types import BACKGROUND, IGNORE_INDEX, Batch

MOST_STEPS = 200
"""No more steps are taken at once."""


@dataclass(frozen=True)
class Learning:
    """How a model learns from corrections.

    Attributes:
        lr: Learning rate of AdamW, the same at every step.
        keep: Weight of the loss that keeps the model's own mask where nothing was marked.
        batch_size: Pictures in a step; if there are more, they take turns.

    Raises:
        InputError: A number is out of its range.
    """

    lr: float
    keep: float = 1.0
    batch_size: int = 4

    def __post_init__(self) -> None:
        check_numbers(lr=self.lr, keep=self.keep)
        check_counts(1, batch_size=self.batch_size)


def learn_corrections(
    model: SegModel, loss: SegmentationLoss, images: Tensor, marks: Tensor, *, steps: int, learning: Learning
) -> Iterator[float]:
    """Train a model in place, a step each time that the next value is asked for, until all marks are right.

    The fewer steps, the less it forgets of what it learned elsewhere. It stays in evaluation mode: statistics of
    BatchNorm and dropout are as they are when it predicts.

    Args:
        model: The model.
        loss: The loss that it was trained with.
        images: The corrected pictures as the model takes them, (N, C, H, W).
        marks: What was marked, int64 (N, H, W): class ids, 255 elsewhere.
        steps: Steps to take at most.
        learning: How.

    Yields:
        The loss of each step.

    Raises:
        InputError: Nothing is marked, the model has nothing to train, or a loss is not finite.
    """
    check_counts(1, steps=steps)
    if steps > MOST_STEPS:
        raise InputError(f"steps must be at most {MOST_STEPS}, got {steps}")
    if (marks == IGNORE_INDEX).all():
        raise InputError("nothing is marked yet: draw on the picture where the model is wrong, then let it learn")
    groups = group_parameters(model, lr=learning.lr, weight_decay=0.0, decoder_lr_factor=1.0, scale_lr_factor=1.0)
    if not groups:
        raise InputError("this model has nothing to train: it computes its masks from a classifier that stays as it is")
    model.eval()
    kept = find_kept(model, images, marks)
    optimizer = torch.optim.AdamW(groups)
    wrong = torch.ones(len(images), dtype=torch.bool, device=images.device)
    for step in range(steps):
        rows = (torch.arange(learning.batch_size) + step * learning.batch_size) % len(images)
        rows = rows.unique().to(images.device)
        batch = make_batch(images[rows], marks[rows], model.num_classes)
        optimizer.zero_grad()
        output = model(batch.images)
        differs = (output.mask_logits.argmax(1) != batch.masks) & (batch.masks != IGNORE_INDEX)
        wrong[rows] = differs.any(2).any(1)
        if not bool(wrong.any()):
            return
        heatmaps = model.find_heatmaps(output, batch.labelled) if loss.guidance else None
        value, _ = loss(output, batch, heatmaps=heatmaps)
        value = value + learning.keep * cross_entropy(output.mask_logits, kept[rows])
        if not bool(value.isfinite()):
            raise InputError("the loss is no longer a finite number: begin again with the checkpoint, with fewer steps")
        value.backward()
        optimizer.step()
        yield float(value.detach())


def make_batch(images: Tensor, marks: Tensor, num_classes: int) -> Batch:
    """A batch of pictures that are known where they were marked.

    A class that was marked is in its picture; of the others nobody knows.
    """
    labels = torch.full((len(images), num_classes), torch.nan, device=images.device)
    labels[:, BACKGROUND] = 1
    for row, mask in enumerate(marks):
        labels[row, mask[mask != IGNORE_INDEX].unique()] = 1
    rows = torch.arange(len(images), device=images.device)
    return Batch(images, labels, rows, marks, (), tuple(map(str, range(len(images)))))


@torch.no_grad()
def find_kept(model: SegModel, images: Tensor, marks: Tensor) -> Tensor:
    """What of the model's own masks is to stay: not the pixels that were marked, nor a part that a mark contradicts.

    A part are the connected pixels of one class. Where a mark says that something else is in a part of an object, the
    part is open; of the background, which is mostly one part, nothing but the marked pixels is.

    Args:
        model: The model, in evaluation mode.
        images: Shape (N, C, H, W).
        marks: Shape (N, H, W), 255 where nothing is marked.

    Returns:
        int64, shape (N, H, W): class ids, 255 where anything may be.
    """
    kept = torch.cat([model(image[None]).mask_logits.argmax(1) for image in images])
    contradicted = (marks != IGNORE_INDEX) & (marks != kept) & (kept != BACKGROUND)
    for mask, wrong in zip(kept, contradicted, strict=True):
        for class_id in mask[wrong].unique():
            parts, _ = find_parts((mask == class_id).cpu().numpy())
            touched = np.unique(parts[(wrong & (mask == class_id)).cpu().numpy()])
            mask[torch.from_numpy(np.isin(parts, touched)).to(mask.device)] = IGNORE_INDEX
    return kept.masked_fill(marks != IGNORE_INDEX, IGNORE_INDEX)
