"""The confusion matrix, and what is computed from it: IoU, Dice, precision, recall and pixel accuracy.

A matrix ``confusion[..., t, p]`` counts the pixels of class t that were predicted as class p, int64, over as many
images as wanted; ignored pixels are in none. Functions take one matrix (K, K) or several (..., K, K). Their results are
shares in single precision, in double precision of counts of type float64.

A class is absent if neither a mask nor a prediction holds a pixel of it. It has no IoU and no Dice (NaN) and is left
out of means. A class that is predicted but in no mask counts as 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tw_seg.arguments import check_mask_ids
from tw_seg.types import IGNORE_INDEX


def confusion_matrix(masks: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each true class (row) by predicted class (column), without ignored pixels.

    Args:
        masks: True class ids, int64, any shape, 255 = ignored.
        predictions: Predicted class ids 0..K-1, int64, of the same shape.
        num_classes: K.

    Returns:
        Shape (K, K), int64. Matrices of several images may be added.

    Raises:
        InputError: A mask holds an id that is neither a class nor 255.

    Examples:
        >>> confusion_matrix(torch.tensor([0, 1, 1, 255]), torch.tensor([0, 1, 0, 0]), 2)
        tensor([[1, 0],
                [1, 1]])
    """
    check_mask_ids(masks, num_classes)
    labelled = masks != IGNORE_INDEX
    pairs = masks[labelled] * num_classes + predictions[labelled]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def iou_per_class(confusion: Tensor) -> Tensor:
    """Intersection over union of each class, shape (..., K), NaN if absent.

    Examples:
        >>> iou_per_class(torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]]))
        tensor([0.5000, 0.5000,    nan])
    """
    hits, occurrences = _hits(confusion), _occurrences(confusion)
    return _divide(hits, occurrences - hits)


def mean_iou(confusion: Tensor) -> Tensor:
    """Mean IoU over the classes that occur, shape (...); NaN if none does.

    Equals torchmetrics' ``JaccardIndex(average="macro")`` and scikit-learn's ``jaccard_score(average="macro")``.

    Examples:
        >>> mean_iou(torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]]))
        tensor(0.5000)
    """
    return iou_per_class(confusion).nanmean(-1)


def dice_per_class(confusion: Tensor) -> Tensor:
    """Dice (F1) of each class, shape (..., K), NaN if absent."""
    return _divide(2 * _hits(confusion), _occurrences(confusion))


def precision_per_class(confusion: Tensor) -> Tensor:
    """Share of the pixels predicted as each class that are of it, shape (..., K); NaN if none is."""
    return _divide(_hits(confusion), confusion.sum(-2))


def recall_per_class(confusion: Tensor) -> Tensor:
    """Share of the pixels of each class that are predicted as it, shape (..., K); NaN if there is none."""
    return _divide(_hits(confusion), confusion.sum(-1))


def pixel_accuracy(confusion: Tensor) -> Tensor:
    """Share of labelled pixels whose class is right, shape (...)."""
    return _divide(_hits(confusion).sum(-1), confusion.sum((-2, -1)))


def _hits(confusion: Tensor) -> Tensor:
    return confusion.diagonal(dim1=-2, dim2=-1)


def _occurrences(confusion: Tensor) -> Tensor:
    """Pixels of each class in masks plus those in predictions, (..., K)."""
    return confusion.sum(-2) + confusion.sum(-1)


def _divide(part: Tensor, whole: Tensor) -> Tensor:
    """Quotient of counts; NaN for 0 / 0."""
    return part / whole if part.is_floating_point() else part.float() / whole.float()
