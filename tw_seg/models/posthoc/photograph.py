"""Objects of a photograph, with nothing trained: the ImageNet classes that the bundled classifier sees, and where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from timm.data import ImageNetInfo
from torch import Tensor

from tw_seg.data.loading.transforms import EvalTransform
from tw_seg.errors import InputError
from tw_seg.models.bundled import BUNDLED_ENCODER, read_bundled_weights
from tw_seg.models.posthoc.lrp import LRPMask
from tw_seg.models.posthoc.regions import EVEN
from tw_seg.models.weights import find_head
from tw_seg.resize import resize_logits, resize_maps
from tw_seg.types import BACKGROUND, SYMMETRIC

SIDE = 288
"""The longer side of what the classifier sees, in pixels; the shorter one follows, in steps of `STEP`."""

STEP = 32
"""Pixels to one place of the last feature map."""


class FoundObject(NamedTuple):
    """One object, or several of a kind.

    Attributes:
        indices: The ImageNet classes that were seen there, the likeliest first.
        names: Theirs.
        probabilities: Likewise, among all 1000 classes.
        heatmap: Where the likeliest one was seen, float32 (H, W) in [0, 1], at the photograph's size.
        mask: Its pixels, bool (H, W).
    """

    indices: tuple[int, ...]
    names: tuple[str, ...]
    probabilities: tuple[float, ...]
    heatmap: np.ndarray
    mask: np.ndarray

    def describe(self) -> str:
        """Names and probabilities in words, such as ``tabby 41 %, tiger cat 39 %``."""
        pairs = zip(self.names, self.probabilities, strict=True)
        return ", ".join(f"{name} {100 * value:.0f} %" for name, value in pairs)


class ObjectFinder:
    """Finds objects by relevance: ``epsilon_plus`` of four depths, averaged, smoothed, cut at a share of the maximum.

    Classes seen at the same place, such as three breeds of cats, are one object with several names.

    Args:
        least: Probability from which on a class is looked at; the likeliest one always is.
        most: Number of classes that are looked at.
        same: Overlap (intersection over union) from which on two classes are one object.

    Raises:
        InputError: The package of the weights is missing (extra ``weights``).
    """

    def __init__(self, *, least: float = 0.1, most: int = 5, same: float = 0.5) -> None:
        self.least, self.most, self.same = least, most, same
        state = dict(read_bundled_weights(BUNDLED_ENCODER))
        with torch.random.fork_rng(devices=[]):  # its random weights are overwritten
            self.model = LRPMask(
                BUNDLED_ENCODER,
                classes=1001,
                gate=0.0,
                decoder_kwargs={
                    "composite": "epsilon_plus",
                    "read_out": ["blocks.2", "blocks.3", "blocks.4", "blocks.5"],
                },
                smooth=4.5,
                threshold_rule="share",
                threshold_value=0.2,
                min_region=100,
                max_hole=100,
            )
        head = find_head(self.model.classifier, self.model.num_classes)
        for name in (f"{head}.weight", f"{head}.bias"):  # ImageNet has no background: a class that says nothing
            state[name] = torch.cat([torch.zeros_like(state[name][:1]), state[name]])
        self.model.load_classifier_state(state)
        info = ImageNetInfo()
        self._names = [info.index_to_description(k) for k in range(1000)]

    def find_objects(self, photo: np.ndarray) -> list[FoundObject]:
        """The objects of a photograph, the likeliest first.

        Args:
            photo: RGB, uint8, shape (H, W, 3).

        Raises:
            InputError: It is no such array.
        """
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3 or 0 in photo.shape:
            raise InputError(f"a photograph must be RGB, uint8, of shape (H, W, 3), got {photo.dtype} {photo.shape}")
        images = EvalTransform(choose_size(photo.shape[:2]), **SYMMETRIC._asdict())(photo, None)[0][None]
        probabilities = self.classify(images)
        seen = [int(k) for k in probabilities.argsort(descending=True)[: self.most]]
        seen = [k for k in seen if k == seen[0] or probabilities[k] >= self.least]
        return self.locate_classes(images, seen, probabilities, photo.shape[:2])

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """Probabilities of the ImageNet classes, (1000,), for one image (1, 3, H, W)."""
        probabilities: Tensor = self.model.classifier(images)[0, BACKGROUND + 1 :].softmax(0)
        return probabilities

    def locate_classes(
        self, images: Tensor, indices: Sequence[int], probabilities: Tensor, size: Sequence[int]
    ) -> list[FoundObject]:
        """Masks of classes that are seen in one image.

        Args:
            images: The image, (1, 3, H, W), in [-1, 1].
            indices: ImageNet classes, the likeliest first.
            probabilities: Of all 1000.
            size: Height and width of the masks.
        """
        targets = [1 + k for k in indices]
        maps = self.model.make_maps(images, targets)
        scores = self.model.cut(maps.clone(), targets)
        regions = scores[0] > EVEN
        joined: dict[int, list[int]] = {}  # the row of each object's likeliest class -> all its classes
        for row, index in enumerate(indices):
            twin = next((k for k in joined if _overlap(regions[row], regions[k]) >= self.same), row)
            joined.setdefault(twin, []).append(index)
        kept = list(joined)
        even = torch.full_like(scores[:, :1], EVEN)
        mask = resize_logits(torch.cat([even, scores[:, kept]], 1), size).argmax(1)[0].numpy()
        heatmaps = resize_maps(maps[:, kept], size)[0].numpy()
        found = [
            FoundObject(
                tuple(classes),
                tuple(self._names[k].partition(",")[0] for k in classes),
                tuple(probabilities[classes].tolist()),
                heatmaps[place],
                mask == 1 + place,
            )
            for place, classes in enumerate(joined.values())
        ]
        return [one for one in found if one.mask.any()]


def choose_size(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width that the classifier sees of a photograph.

    Examples:
        >>> choose_size((400, 600))
        (192, 288)
    """
    height, width = (max(STEP, round(side * SIDE / max(shape) / STEP) * STEP) for side in shape)
    return height, width


def _overlap(one: Tensor, other: Tensor) -> float:
    """Intersection over union of two regions."""
    return float((one & other).sum() / (one | other).sum().clamp_min(1))
