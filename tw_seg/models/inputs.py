"""The one check of a model's arguments. Shapes and types only: nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tw_seg.errors import InputError


def check_images(images: Tensor, in_channels: int) -> None:
    """Check that ``images`` is a non-empty float batch (N, C, H, W) with ``C == in_channels``.

    Raises:
        InputError: Says what was found and what to do.
    """
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a torch.Tensor (N, {in_channels}, H, W), got {type(images).__name__}.")
    if images.ndim != 4 or images.shape[1] != in_channels or 0 in images.shape:
        hint = "add the batch axis with images[None]" if images.ndim == 3 else "channels come second (NCHW)"
        raise InputError(
            f"images must have the shape (N, {in_channels}, H, W), none of them 0, got "
            f"{tuple(images.shape)}: {hint}; the number of channels is the model's argument in_channels."
        )
    if not images.is_floating_point():
        raise InputError(
            f"images must be of a float type, got {images.dtype}: convert and normalise them first, "
            "for instance (images.float() / 255 - mean) / std."
        )


def check_classes(classes: Sequence[int] | None, num_classes: int) -> list[int]:
    """The class indices to decode: all of them for ``None``, otherwise the given ones in their order.

    Raises:
        InputError: An index is outside ``0..num_classes-1`` or none is given.
    """
    if classes is None:
        return list(range(num_classes))
    indices = [int(index) for index in classes]
    if not indices or min(indices) < 0 or max(indices) >= num_classes:
        raise InputError(f"classes must be indices in 0..{num_classes - 1}, at least one, got {indices}.")
    return indices


def check_samples(samples: Tensor | None, images: Tensor) -> Tensor | None:
    """Check the rows to decode: ``None`` (all) or an int64 tensor (S,), S may be 0.

    The values are not read (that would wait for the device); indexing itself rejects rows that do not exist.

    Raises:
        InputError: ``samples`` is no int64 vector.
    """
    if samples is None:
        return None
    if not isinstance(samples, Tensor) or samples.dtype != torch.int64 or samples.ndim != 1:
        found = f"{samples.dtype} {tuple(samples.shape)}" if isinstance(samples, Tensor) else repr(samples)
        raise InputError(f"samples must be None or an int64 tensor (S,) of row indices, got {found}.")
    return samples.to(images.device)
