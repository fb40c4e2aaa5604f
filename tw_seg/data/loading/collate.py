"""From tensors of single samples to a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import default_collate

from tw_seg.data.loading.items import Item
from tw_seg.types import Batch, Failure


def collate(items: Sequence[Item]) -> Batch:
    """Stack items; without any mask, ``masks`` has shape (0, H, W)."""
    images: Tensor = default_collate([item.image for item in items])  # a worker's result begins in shared memory
    labelled = [row for row, item in enumerate(items) if item.mask is not None]
    masks = [item.mask for item in items if item.mask is not None]
    annotated = [item.annotated for item in items if item.annotated is not None]
    return Batch(
        images=images,
        labels=torch.stack([item.labels for item in items]),
        labelled=torch.tensor(labelled, dtype=torch.int64),
        masks=default_collate(masks) if masks else torch.empty((0, *images.shape[-2:]), dtype=torch.int64),
        native_masks=_pack_masks([item.native_mask for item in items if item.native_mask is not None]),
        names=tuple(item.name for item in items),
        sizes=tuple(item.size for item in items),
        annotated=torch.stack(annotated) if annotated else None,
        regions=_stack_regions([item.regions for item in items if item.mask is not None], len(items[0].labels)),
    )


def _stack_regions(regions: Sequence[Tensor | None], num_classes: int) -> Tensor | None:
    """The regions of each mask, bool (L, R, K), with empty rows where a mask has fewer; ``None`` if none has any."""
    count = max((0 if one is None else len(one) for one in regions), default=0)
    if not count:
        return None
    stacked = torch.zeros((len(regions), count, num_classes), dtype=torch.bool)
    for row, one in enumerate(regions):
        if one is not None:
            stacked[row, : len(one)] = one
    return stacked


def collate_windows(items: Sequence[Item | Failure]) -> Batch:
    """Stack windows of pictures to predict; of pictures that failed there is no image, and a batch may have none."""
    failures = tuple(item for item in items if isinstance(item, Failure))
    windows = [item for item in items if isinstance(item, Item)]
    if not windows:
        images, labels, masks = (
            torch.empty((0, 0, 0, 0)),
            torch.empty((0, 0)),
            torch.empty((0, 0, 0), dtype=torch.int64),
        )
        return Batch(images, labels, torch.empty(0, dtype=torch.int64), masks, (), (), failures=failures)
    return collate(windows)._replace(
        windows=tuple(item.window for item in windows if item.window is not None),
        thumbnails=tuple(item.thumbnail for item in windows),
        failures=failures,
    )


def _pack_masks(masks: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The masks as parts of one tensor: a worker sends each tensor's memory as a file descriptor of its own."""
    if not masks:
        return ()
    parts = torch.cat([mask.flatten() for mask in masks]).split([mask.numel() for mask in masks])
    return tuple(part.view(mask.shape) for part, mask in zip(parts, masks, strict=True))
