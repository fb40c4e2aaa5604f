"""The checks of arguments that several parts of the package take: images, classes, samples, masks, batches and numbers.

Of images, classes and samples only types, shapes and values that lie on the host are looked at: to read a device's
values would wait for the device.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tw_seg.errors import InputError, TwSegError
from tw_seg.printable import make_printable
from tw_seg.types import IGNORE_INDEX, Batch, Normalization


def check_images(images: Tensor, in_channels: int | None = None, *, allow_empty: bool = True) -> None:
    """Check that ``images`` is a float batch (N, C, H, W).

    Args:
        images: What a caller gave.
        in_channels: The C that is expected; ``None`` for any.
        allow_empty: Whether an axis may have the length 0.

    Raises:
        InputError: Says what was found and what to do.
    """
    expected = f"(N, {'C' if in_channels is None else in_channels}, H, W)"
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a torch.Tensor of shape {expected}, got {_describe(images)}")
    if images.ndim != 4:
        hint = "add the batch axis with images[None]" if images.ndim == 3 else "stack images of one size"
        raise InputError(f"images must have the shape {expected}, got {tuple(images.shape)}: {hint}")
    if in_channels is not None and images.shape[1] != in_channels:
        raise InputError(
            f"images must have the shape {expected}, got {tuple(images.shape)}: channels come second (NCHW); "
            "their number is the model's argument in_channels"
        )
    if not allow_empty and 0 in images.shape:
        raise InputError(f"images must have the shape {expected}, none of them 0, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise InputError(
            f"images must be of a float type, got {_describe(images)}: convert and normalise them first, "
            "for instance (images.float() / 255 - mean) / std"
        )


_SHAPES = {3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}


def check_signals(images: Tensor, axes: int | None = None) -> None:
    """Check that ``images`` is a float batch of images, or of signals in one or three dimensions.

    Args:
        images: What a caller gave.
        axes: Number of axes that is expected; ``None`` for 3, 4 or 5.

    Raises:
        InputError: Says what was found and what to do.
    """
    shapes = _SHAPES if axes is None else {axes: _SHAPES[axes]}
    if isinstance(images, Tensor) and images.is_floating_point() and images.ndim in shapes:
        return
    raise InputError(
        f"images must be a floating-point tensor {' or '.join(shapes.values())}, got {_describe(images)}; integers are "
        "converted with .float() / 255, a single image becomes a batch with images[None]"
    )


def class_indices(
    classes: Sequence[int] | Tensor | None, num_classes: int, *, allow_empty: bool = True
) -> tuple[int, ...] | Tensor:
    """Validate a choice of classes; ``None`` means all of them, in order.

    Args:
        classes: Indices, in any order and with repetitions.
        num_classes: K, the number of classes to choose from.
        allow_empty: Whether no class at all is a choice.

    Returns:
        The indices. A tensor that may not be looked at, because it is on a device or being compiled, stays a
        tensor (int64): of its values nothing is known.

    Raises:
        InputError: For anything but integers, an index outside ``0..num_classes-1``, or no class if not allowed.

    Examples:
        >>> class_indices(None, 3), class_indices(torch.tensor([2, 0]), 3)
        ((0, 1, 2), (2, 0))
    """
    if classes is None:
        classes = range(num_classes)
    if isinstance(classes, Tensor):
        integer = not (classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool)
        if not integer or classes.ndim != 1:
            hint = "; a mask becomes indices with mask.nonzero().flatten()" if classes.dtype == torch.bool else ""
            raise InputError(f"classes must be a 1-D integer tensor, got {_describe(classes)}{hint}")
    if isinstance(classes, Tensor) and (classes.device.type != "cpu" or torch.compiler.is_compiling()):
        chosen: tuple[int, ...] | Tensor = classes.long()
    else:
        chosen = _integers(classes)
        wrong = [k for k in chosen if not 0 <= k < num_classes]
        if wrong:
            raise InputError(f"classes {wrong} are outside 0..{num_classes - 1}, the classes of this classifier")
    if not allow_empty and len(chosen) == 0:
        raise InputError("classes must name at least one class, got none; use None for all of them")
    return chosen


def class_tensor(classes: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Class indices as an int64 tensor on a device.

    A device counts a run of indices by itself, as all classes are: nothing is copied to it, so nothing waits for it.

    Args:
        classes: Valid indices, see `class_indices`.
        device: Where they are wanted.

    Examples:
        >>> class_tensor((1, 2, 3), torch.device("cpu"))
        tensor([1, 2, 3])
    """
    if isinstance(classes, Tensor):
        return classes.to(device, torch.int64)
    first = classes[0] if classes else 0
    if tuple(classes) == tuple(range(first, first + len(classes))):
        return torch.arange(first, first + len(classes), device=device)
    return torch.tensor(classes, dtype=torch.int64, device=device)


def check_class_names(names: Sequence[str], *, name: str, error: type[TwSegError] = InputError) -> None:
    """Refuse names with control characters, which tables, logs and terminals would obey.

    Args:
        names: The class names.
        name: Where they come from, for the message.
        error: The class of the error.

    Raises:
        TwSegError: Names the first.
    """
    for class_name in map(str, names):
        if make_printable(class_name) != class_name:
            raise error(
                f"{name}: the class name '{make_printable(class_name)[:100]}' holds control characters; names are text "
                "of one line"
            )


def check_class_count(count: int, *, name: str = "class_names", error: type[TwSegError] = InputError) -> None:
    """Check that a class list has 2 to 255 names, as many as masks of 8 bits can tell from ignored pixels.

    Args:
        count: How many it has, the background included.
        name: What the list is, for the message.
        error: What to raise.

    Raises:
        TwSegError: Of the type ``error``.

    Examples:
        >>> check_class_count(1)
        Traceback (most recent call last):
        ...
        tw_seg.errors.InputError: class_names: expected 2 to 255 classes, background included, found 1
    """
    if not 2 <= count <= IGNORE_INDEX:
        raise error(f"{name}: expected 2 to {IGNORE_INDEX} classes, background included, found {count}")


def check_samples(samples: Tensor | None, count: int, *, device: torch.device | None = None) -> Tensor | None:
    """Check a choice of rows: ``None`` (all) or an int64 tensor (S,), S may be 0.

    Args:
        samples: What a caller gave.
        count: Number N of images, of which they are rows.
        device: Where the rows are wanted; ``None`` leaves them where they are.

    Returns:
        The same rows, on that device. Of rows that are on a device already, or being compiled, nothing is known.

    Raises:
        InputError: ``samples`` is no int64 vector, or names a row that is not there.

    Examples:
        >>> check_samples(torch.tensor([1, 2]), 2)
        Traceback (most recent call last):
        ...
        tw_seg.errors.InputError: samples must be row indices >= 0 and < 2, the number of images, found 2
    """
    if samples is None:
        return None
    if not isinstance(samples, Tensor) or samples.dtype != torch.int64 or samples.ndim != 1:
        mask = isinstance(samples, Tensor) and samples.dtype == torch.bool
        hint = "use mask.nonzero().flatten()" if mask else "use torch.tensor([...], dtype=torch.int64)"
        raise InputError(
            f"samples must be None or an int64 tensor (S,) of row indices, got {_describe(samples)}: {hint}"
        )
    _check_rows(samples, count)
    return samples if device is None else samples.to(device)


def _check_rows(samples: Tensor, count: int) -> None:
    if samples.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = [row for row in samples.tolist() if not 0 <= row < count]
    if wrong:
        shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise InputError(f"samples must be row indices >= 0 and < {count}, the number of images, found {shown}")


def check_pairs(samples: Tensor, classes: Tensor, *, count: int, num_classes: int) -> None:
    """Check (sample, class) pairs: two int64 tensors of the same length; their values where the host knows them.

    Args:
        samples: Row of each pair's image, (P,).
        classes: Its class, (P,).
        count: Number N of images.
        num_classes: K, the number of classes to choose from.

    Raises:
        InputError: For anything else, a row that is not there, or a class outside ``0..num_classes-1``.
    """
    for name, value in (("samples", samples), ("classes", classes)):
        if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.ndim != 1:
            raise InputError(f"{name} of pairs must be an int64 tensor (P,), got {_describe(value)}")
    if samples.shape != classes.shape:
        raise InputError(
            f"samples and classes of pairs must have the same length, got {len(samples)} and {len(classes)}: "
            "one entry of each for a pair"
        )
    _check_rows(samples, count)
    class_indices(classes, num_classes)


def check_mask_ids(
    masks: Tensor | np.ndarray, num_classes: int, *, name: str = "masks", error: type[TwSegError] = InputError
) -> None:
    """Check that masks hold class ids and 255 (ignored) only. On a device this waits for the device.

    Args:
        masks: Integers of any shape.
        num_classes: K, the number of classes, the background included.
        name: What the masks are, for the message.
        error: What to raise.

    Raises:
        TwSegError: Of the type ``error``; names the other ids.

    Examples:
        >>> check_mask_ids(torch.tensor([[0, 2, 255]]), 2)
        Traceback (most recent call last):
        ...
        tw_seg.errors.InputError: masks must hold class ids 0..1 or 255 (ignored), found 2: ...
    """
    wrong = (masks < 0) | ((masks >= num_classes) & (masks != IGNORE_INDEX))
    if bool(wrong.any()):
        ids = sorted({int(value) for value in masks[wrong].tolist()})
        shown = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
        raise error(
            f"{name} must hold class ids 0..{num_classes - 1} or {IGNORE_INDEX} (ignored), found {shown}: give "
            f"the data set's class list all its names, or map these ids to {IGNORE_INDEX}"
        )


def check_batch(batch: Batch, num_classes: int) -> None:
    """Check the types and shapes of a training batch, and that its images are finite.

    Args:
        batch: The batch.
        num_classes: K, the number of classes that it should have labels for.

    Raises:
        InputError: For anything else; it names the samples whose values are not finite.
    """
    if not isinstance(batch, Batch):
        raise InputError(
            f"a batch must be a tw_seg.types.Batch, got {type(batch).__name__}: use tw_seg.data.loading.collate"
        )
    images, labels = batch.images, batch.labels
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"batch.images must be a float tensor (N, C, H, W), got {images.dtype} {tuple(images.shape)}: "
            "normalise images before they are collated"
        )
    if labels.shape != (len(images), num_classes):
        raise InputError(
            f"batch.labels must have the shape (N, K) = ({len(images)}, {num_classes}), got "
            f"{tuple(labels.shape)}: the data set and the task must know the same classes"
        )
    if labels.is_cpu and not bool((labels.isnan() | ((labels >= 0) & (labels <= 1))).all()):
        raise InputError(
            "batch.labels must be 0, 1 or between, or NaN where nobody knows, found "
            f"{labels[(labels < 0) | (labels > 1)][0].item()}: correct the labels of the data set"
        )
    if batch.masks.shape[1:] != images.shape[2:] or len(batch.masks) != len(batch.labelled):
        raise InputError(
            f"batch.masks must have the shape (L, H, W) = {(len(batch.labelled), *images.shape[2:])}, got "
            f"{tuple(batch.masks.shape)}: transform an image and its mask together"
        )
    if batch.regions is not None:
        found = batch.regions
        if found.dtype != torch.bool or found.ndim != 3 or found.shape[::2] != (len(batch.masks), num_classes):
            raise InputError(
                f"batch.regions must be bool of shape (L, R, K) = ({len(batch.masks)}, R, {num_classes}), got "
                f"{_describe(found)}: a set of classes in each row, for each mask"
            )
    if images.is_cpu and not bool(images.sum().isfinite()):  # one cheap pass; the second only to say where
        bad = [name for name, image in zip(batch.names, images, strict=True) if not image.isfinite().all()]
        if bad:
            raise InputError(
                f"images must be finite, found NaN or infinity in {', '.join(bad[:5])} ({len(bad)} of "
                f"{len(images)} in the batch): check these files and the normalisation"
            )


def check_normalization(found: Normalization, expected: Normalization | None, source: str) -> None:
    """Check that images are normalised as some weights expect.

    Args:
        found: How they are.
        expected: What is known of the weights; ``None``, nothing, passes, and so does another number of channels, to
            which a stem is adapted.
        source: The weights, for the message.

    Raises:
        InputError: Both are known and differ.
    """
    if expected is None or len(expected.mean) != len(found.mean):
        return
    if any(tuple(a) != tuple(b) for a, b in zip(found, expected, strict=True)):
        wanted, given = (f"mean {list(one.mean)} and std {list(one.std)}" for one in (expected, found))
        raise InputError(
            f"{source} expects images with data.mean and data.std as {wanted}, got {given}: leave both out, or give "
            "these"
        )


def is_number(value: object) -> bool:
    """Whether a value is a number. True and False are none."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def check_numbers(**values: float) -> None:
    """Check that each argument is a finite number >= 0.

    Raises:
        InputError: Names the first that is none.

    Examples:
        >>> check_numbers(lr=0.1, weight_decay=0)
    """
    for name, value in values.items():
        if not is_number(value) or not 0 <= value < math.inf:
            raise InputError(f"{name} must be a finite number >= 0, got {value!r}")


def check_shares(**values: float) -> None:
    """Check that each argument is a number above 0 and at most 1.

    Raises:
        InputError: Names the first that is none.

    Examples:
        >>> check_shares(min_dice=0.9)
    """
    for name, value in values.items():
        if not is_number(value) or not 0 < value <= 1:
            raise InputError(f"{name} must be in (0, 1], got {value!r}")


def check_counts(minimum: int, **values: int | None) -> None:
    """Check that each argument is a whole number and not below ``minimum``; ``None`` passes.

    Raises:
        InputError: Names the first that is none.
    """
    for name, value in values.items():
        if value is None:
            continue
        if not is_number(value) or isinstance(value, float) or value < minimum:
            raise InputError(f"{name} must be a whole number >= {minimum}, got {value!r}")


def fill_in_options(name: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are given as a mapping, with the defaults of those that are left out.

    Args:
        name: What messages call the mapping.
        given: The options.
        defaults: Every option.

    Raises:
        InputError: ``given`` is no mapping, or knows an option that ``defaults`` does not.

    Examples:
        >>> fill_in_options("noise", {"seed": 3}, {"seed": 0, "level": 0.1})
        {'seed': 3, 'level': 0.1}
    """
    if not isinstance(given, Mapping):
        raise InputError(f"{name} must be a mapping such as {dict(defaults)}, got {given!r}")
    if unknown := sorted(set(given) - set(defaults)):
        raise InputError(f"{name} knows {', '.join(defaults)}, not {', '.join(unknown)}")
    return {**defaults, **given}


def image_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width in pixels, of a pair or of one number for both.

    Raises:
        InputError: For anything else, or a number below 1.

    Examples:
        >>> image_size(64), image_size((64, 96))
        ((64, 64), (64, 96))
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise InputError(f"size must be a number of pixels or (height, width), got {size!r}")
    return pair[0], pair[1]


def _integers(values: Any) -> tuple[int, ...]:
    if isinstance(values, Tensor):
        values = values.tolist()
    try:
        values = tuple(values)
        # True is an int to Python, but a list of them is meant as a mask.
        if not any(isinstance(value, bool) for value in values):
            return tuple(operator.index(value) for value in values)
    except TypeError:
        pass
    raise InputError(f"classes must be integers, a 1-D integer tensor or None for all, got {values!r}")


def _describe(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
