"""One pass of a trained model over images without masks: the evidence for masking them, and their features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tw_seg.active.choose import Choice, choose_images
from tw_seg.active.evidence import Evidence, measure_evidence
from tw_seg.arguments import check_counts
from tw_seg.data.dataset import SegmentationData
from tw_seg.data.rows import Rows
from tw_seg.errors import DataError, InputError
from tw_seg.models.embedding import embed_images
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.task import SegmentationTask
from tw_seg.types import BACKGROUND, Failure

COUNT = 20
"""How many images are chosen where nobody says."""


@dataclass(frozen=True)
class Survey:
    """What a model says of images.

    Attributes:
        names: The names of those that could be read.
        evidence: What their masks may teach.
        features: Their features, (N, F).
        failures: Images that could not be read.
    """

    names: tuple[str, ...]
    evidence: Evidence
    features: np.ndarray
    failures: tuple[Failure, ...]


def survey_images(task: SegmentationTask, data: SegmentationDataModule, images: SegmentationData) -> Survey:
    """Look at images with a model, on the device that it is on.

    Args:
        task: The trained task, in evaluation mode.
        data: Its data module, which says how images are prepared.
        images: The images; their labels may be NaN.

    Raises:
        InputError: If the model makes no masks.
        DataError: If no image can be read.
    """
    if not task.model.makes_masks:
        raise InputError(f"a {task.hparams['model']} makes no masks, so nothing tells which would help: fit a model")
    data.show_pictures(images, data.make_view("resize"))
    device = next(task.parameters()).device
    parts, features, names, failures = [], [], [], []
    with torch.no_grad():
        for batch in data.predict_dataloader():
            failures += batch.failures
            if not batch.names:
                continue
            pixels = batch.images.to(device)
            output = task(pixels)
            parts.append(measure_evidence(output, batch.labels.to(device)))
            features.append(embed_images(task.model, pixels, output).float().cpu().numpy())
            names += batch.names
    if not names:
        first = f", first {failures[0].reason}" if failures else ""
        raise DataError(f"none of {len(images)} images can be read{first}")
    return Survey(tuple(names), Evidence.join(parts), np.concatenate(features), tuple(failures))


def choose_next(
    task: SegmentationTask,
    data: SegmentationDataModule,
    count: int | None = None,
    *,
    pictures: SegmentationData | None = None,
) -> tuple[list[Choice], Survey]:
    """Choose the images to mask next: training images outside the label budget, or new pictures.

    Args:
        task: The trained task, in evaluation mode.
        data: Its data module.
        count: How many images to choose; ``None``: `COUNT`, or all if there are fewer.
        pictures: New pictures; ``None``: the training images whose mask was not used.

    Returns:
        The choices, the most useful first, and what was said of all candidates.

    Raises:
        InputError: If there are fewer candidates, or the model makes no masks.
        BudgetError: If the run's label budget does not fit its data.
        DataError: If no image can be read.
    """
    if count is not None:
        check_counts(1, count=count)
    train, inside, outside = data.divide_by_budget()
    survey = survey_images(task, data, Rows(train, outside.tolist()) if pictures is None else pictures)
    count = min(COUNT, len(survey.evidence)) if count is None else count
    masks = np.nan_to_num(train.labels[inside][:, BACKGROUND + 1 :]).clip(min=0).sum(axis=0)
    features = survey_images(task, data, Rows(train, inside.tolist())).features if len(inside) else None
    choices = choose_images(survey.evidence, survey.features, count, masked_features=features, masks=masks)
    return choices, survey
