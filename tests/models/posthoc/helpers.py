"""A training-free model with statistics of its own, labelled batches and maps made by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.models.contract import ENCODER, randomise
from tw_seg.models.posthoc.base import PostHoc
from tw_seg.types import Batch

OPEN: dict[str, Any] = {**ENCODER, "gate": 0.0}


def labelled_batch(images: Tensor, masks: Tensor, labelled: list[int]) -> Batch:
    labels = torch.ones(len(images), 4)
    rows = torch.tensor(labelled, dtype=torch.int64)
    return Batch(images, labels, rows, masks, tuple(masks), ("",) * len(images))


def warm(model_class: type[PostHoc], **overrides: Any) -> Any:
    torch.manual_seed(0)
    return randomise(model_class(**{**OPEN, **overrides}))


def maps_by_hand(attribution: Tensor, size: tuple[int, int]) -> Tensor:
    maps = F.interpolate(attribution, size=size, mode="bilinear", align_corners=False).clamp(min=0)
    return maps / maps.amax((2, 3), keepdim=True).clamp(min=1e-30)  # a map may be negative everywhere
