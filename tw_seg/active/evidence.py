"""What a model's output says of the use of a mask: doubt of each class, and where the two answers of a model differ."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

from tw_seg.types import BACKGROUND, SegOutput

_SHARE = 0.01  # of the pixels of an image: an object that is smaller is not seen in its mask


@dataclass(frozen=True)
class Evidence:
    """Numbers of N images and the K - 1 object classes, each from 0 to 1.

    Attributes:
        presence: The probability that an image shows a class: its label where that is known, else the classifier's.
        doubt: One minus the IoU that the model itself expects of its mask of a class.
        disagreement: How much the mask and the image as a whole differ on whether a class is there: the Jensen-Shannon
            divergence of two probabilities, in bits.
        label_uncertainty: Entropy of the classifier's probability in bits; 0 where the label is known.
    """

    presence: np.ndarray
    doubt: np.ndarray
    disagreement: np.ndarray
    label_uncertainty: np.ndarray

    def __len__(self) -> int:
        return len(self.presence)

    @classmethod
    def join(cls, parts: list[Self]) -> Self:
        """The evidence of the images of all parts, in order."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def add_up(self) -> np.ndarray:
        """What a mask may teach about each class: doubt where a class is, disagreement and uncertainty; (N, K - 1)."""
        return self.presence * self.doubt + self.disagreement + self.label_uncertainty


def measure_evidence(output: SegOutput, labels: Tensor) -> Evidence:
    """Measure what a mask of each image may teach.

    Args:
        output: What a model returns for N images and all K classes.
        labels: Image-level labels (N, K); NaN where nobody knows.
    """
    objects = slice(BACKGROUND + 1, None)
    known = labels[:, objects].float()
    classified = output.logits[:, objects].float().sigmoid()
    presence = torch.where(known.isnan(), classified, known)
    probabilities = output.mask_logits.float().softmax(1)
    shown = find_presence(probabilities)[:, objects]
    uncertainty = torch.where(known.isnan(), measure_entropy(classified), torch.zeros_like(classified))
    numbers = presence, 1 - expect_iou(probabilities)[:, objects], measure_divergence(presence, shown), uncertainty
    return Evidence(*(number.double().cpu().numpy() for number in numbers))


def expect_iou(probabilities: Tensor) -> Tensor:
    """The IoU that a model expects of its own mask of each class.

    The mask gives each pixel its likeliest class. If a pixel is of class k with the probability that the model says,
    the expected intersection is the sum of these probabilities inside the mask of k, and the expected union its size
    plus their sum outside; their ratio is what is returned, 0 for a class of probability 0 everywhere.

    Args:
        probabilities: Shape (N, K, H, W), that add up to 1.

    Returns:
        Shape (N, K).

    Examples:
        >>> expect_iou(torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]], [[[0.75, 0.5]], [[0.25, 0.5]]]]))
        tensor([[1.0000, 0.0000],
                [0.6250, 0.0000]])
    """
    mask = torch.zeros_like(probabilities).scatter_(1, probabilities.argmax(1, keepdim=True), 1.0)
    inside = (probabilities * mask).sum((2, 3))
    union = mask.sum((2, 3)) + probabilities.sum((2, 3)) - inside
    return inside / union.clamp_min(torch.finfo(union.dtype).tiny)


def find_presence(probabilities: Tensor) -> Tensor:
    """The mean probability of each class over the hundredth of the pixels where it is likeliest, at least one.

    Args:
        probabilities: Shape (N, K, H, W).

    Returns:
        Shape (N, K).
    """
    pixels = probabilities.flatten(2)
    return pixels.topk(max(1, round(_SHARE * pixels.shape[2])), dim=2).values.mean(2)


def measure_entropy(probability: Tensor) -> Tensor:
    """The entropy of yes or no in bits.

    Examples:
        >>> measure_entropy(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0., 1., 0.])
    """
    return (torch.special.entr(probability) + torch.special.entr(1 - probability)) / np.log(2)


def measure_divergence(one: Tensor, other: Tensor) -> Tensor:
    """The Jensen-Shannon divergence of two probabilities of yes or no, in bits: 0 where they are equal, at most 1.

    Examples:
        >>> measure_divergence(torch.tensor([0.0, 0.3]), torch.tensor([1.0, 0.3]))
        tensor([1., 0.])
    """
    mixed = measure_entropy((one + other) / 2)
    return (mixed - (measure_entropy(one) + measure_entropy(other)) / 2).clamp_min(0)
