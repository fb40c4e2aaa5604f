"""The few types that travel between the packages: one sample, one batch, one model output."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

IGNORE_INDEX = 255
"""Mask value of a pixel that no loss and no metric looks at."""

BACKGROUND = 0
"""Class index of the background in masks, logits and image-level labels."""


class Normalization(NamedTuple):
    """How values of images in [0, 1] become a model's input: minus the mean, divided by the standard deviation.

    Attributes:
        mean: Per channel.
        std: Per channel.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""To mean 0 and variance 1 over ImageNet: what most weights expect."""

SYMMETRIC = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""To [-1, 1]."""


class Sample(NamedTuple):
    """One item of a data set, before augmentation.

    Attributes:
        image: uint8, or float32 from 0 to 1, shape (H, W, C); mostly RGB, C = 3.
        mask: Integer label image, uint8, shape (H, W), values ``0..K-1`` and 255, and with ``regions`` also
            ``K..K+R-1``; ``None`` if unlabelled.
        labels: Image-level multi-hot labels, float32, shape (K,); NaN where nobody knows, and 1 for the background.
        name: Stable identifier, unique in its data set.
        regions: Sets of classes, bool, shape (R, K): a pixel of value ``K + r`` belongs to one of the classes in row
            ``r``, as one inside a box does; ``None``: there are no such pixels. Only losses know these values, for all
            else they are 255.
    """

    image: np.ndarray
    mask: np.ndarray | None
    labels: np.ndarray
    name: str
    regions: np.ndarray | None = None


class Window(NamedTuple):
    """Which part of its picture an image of a batch shows, and where it lies in that image.

    Attributes:
        top: First row of the part, in pixels of the picture.
        left: First column.
        height: Rows of the part.
        width: Columns of the part.
        fit: Height and width that the part has in the image, from the upper left corner on; the rest is padding.
        last: Whether no further window of the picture comes.
    """

    top: int
    left: int
    height: int
    width: int
    fit: tuple[int, int]
    last: bool


class Failure(NamedTuple):
    """A picture that could not be read.

    Attributes:
        name: Its name.
        message: What is wrong with it.
    """

    name: str
    message: str


class Batch(NamedTuple):
    """A collated batch: every image has image-level labels, ``L <= N`` of them have a mask.

    Attributes:
        images: Normalised images, float, shape (N, C, H, W).
        labels: Image-level multi-hot labels, float, shape (N, K); NaN where nobody knows.
        labelled: Rows of ``images`` that have a mask, int64, shape (L,).
        masks: Masks at the resolution of ``images``, int64, shape (L, H, W), with values as in `Sample`.
        native_masks: The L masks at their native resolution, int64, each (h, w); for metrics.
        names: The N sample names.
        sizes: The native sizes (h, w) of the N images, for predicted masks; empty where nobody predicts.
        annotated: Which classes were annotated in each mask, bool, shape (L, K); ``None``: all. Other classes are
            background in that mask, see `tw_seg.losses.annotated`.
        regions: The sets of classes of pixels of value ``K + r`` in each mask, bool, shape (L, R, K), see `Sample`;
            rows without any class fill up to the same R. ``None``: no mask has such pixels.
        windows: Of pictures to predict: the part of its picture that each of the N images shows; empty: all of it,
            stretched.
        thumbnails: Of pictures to predict, if asked for: the picture in small, uint8, (h, w, C), beside its last
            window; ``None`` beside the others.
        failures: Pictures that could not be read and of which no image is here.
    """

    images: Tensor
    labels: Tensor
    labelled: Tensor
    masks: Tensor
    native_masks: tuple[Tensor, ...]
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...] = ()
    annotated: Tensor | None = None
    regions: Tensor | None = None
    windows: tuple[Window, ...] = ()
    thumbnails: tuple[np.ndarray | None, ...] = ()
    failures: tuple[Failure, ...] = ()


class SegOutput(NamedTuple):
    """What every model returns, whatever is inside.

    Attributes:
        logits: Image-level class scores, shape (N, K).
        mask_logits: Pixel scores, shape (S, K', H, W), for the S decoded samples and K' decoded classes.
        aux: Further pixel scores of the same shape for deep supervision (one per read-out depth); often empty.
    """

    logits: Tensor
    mask_logits: Tensor
    aux: tuple[Tensor, ...] = ()
