from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, jaccard_score
from torch import Tensor
from torchmetrics.classification import MulticlassF1Score, MulticlassJaccardIndex

from tw_seg.errors import InputError
from tw_seg.metrics import SegmentationMetrics, confusion_matrix, mean_iou
from tw_seg.types import IGNORE_INDEX

NAMES = ["background", "cat", "dog", "eel", "fox"]


Masks = list[Tensor]


def pixels(*, classes: int = 5, predicted: int | None = None, seed: int = 0) -> tuple[Masks, Masks]:
    """Predicted and true masks of three images of different sizes, some pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(7, 5), (3, 9), (6, 6)]
    masks = [torch.randint(0, classes, size, generator=generator) for size in sizes]
    predictions = [torch.randint(0, predicted or classes, size, generator=generator) for size in sizes]
    for mask in masks:
        mask[0] = IGNORE_INDEX
    return predictions, masks


def flat(predictions: list[Tensor], masks: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    predicted = torch.cat([x.flatten() for x in predictions]).numpy()
    target = torch.cat([x.flatten() for x in masks]).numpy()
    return predicted[target != IGNORE_INDEX], target[target != IGNORE_INDEX]


def scores(predictions: list[Tensor], masks: list[Tensor]) -> dict[str, float]:
    metrics = SegmentationMetrics(NAMES)
    for prediction, mask in zip(predictions, masks, strict=True):  # image by image
        metrics.update_masks([prediction], [mask])
    return {name: value.item() for name, value in metrics.compute_masks().items()}


@pytest.mark.parametrize("seed", range(3))
def test_pixel_scores_equal_sklearn(seed):
    predictions, masks = pixels(seed=seed)
    predicted, target = flat(predictions, masks)
    found = scores(predictions, masks)
    assert found["miou"] == pytest.approx(jaccard_score(target, predicted, average="macro"))
    assert found["dice"] == pytest.approx(f1_score(target, predicted, average="macro"))
    assert found["pixel_acc"] == pytest.approx(accuracy_score(target, predicted))
    per_class = [found[f"iou/{name}"] for name in NAMES]
    assert per_class == pytest.approx(jaccard_score(target, predicted, average=None))


def test_pixel_scores_equal_torchmetrics():
    predictions, masks = pixels(classes=4, predicted=3)
    found = scores(predictions, masks)
    arguments = torch.cat([x.flatten() for x in predictions]), torch.cat([x.flatten() for x in masks])
    jaccard = MulticlassJaccardIndex(5, average="macro", ignore_index=IGNORE_INDEX)(*arguments)
    f1 = MulticlassF1Score(5, average="macro", ignore_index=IGNORE_INDEX)(*arguments)
    assert found["miou"] == jaccard.item()
    assert found["miou"] == pytest.approx(mean_iou(confusion_matrix(arguments[1], arguments[0], 5)).item())
    assert found["dice"] == pytest.approx(f1.item())


def test_a_class_in_neither_masks_nor_predictions_is_left_out():
    predictions, masks = pixels(classes=3)
    predicted, target = flat(predictions, masks)
    found = scores(predictions, masks)
    assert found["miou"] == pytest.approx(jaccard_score(target, predicted, average="macro"))
    over_all = jaccard_score(target, predicted, average="macro", labels=range(5), zero_division=0)
    assert found["miou"] == pytest.approx(over_all * 5 / 3)
    assert np.isnan(found["iou/eel"])
    assert np.isnan(found["iou/fox"])


def test_a_class_that_is_only_predicted_or_only_in_masks_counts_as_zero():
    predictions, masks = pixels(classes=3)
    predictions[0][1, 1] = 4
    masks[2][1, 1] = 3
    predicted, target = flat(predictions, masks)
    found = scores(predictions, masks)
    assert found["iou/fox"] == found["iou/eel"] == 0
    assert found["miou"] == pytest.approx(jaccard_score(target, predicted, average="macro", labels=range(5)))


def test_a_class_predicted_at_ignored_pixels_only_is_absent():
    predictions, masks = pixels(classes=3)
    predictions[0][0] = 4
    assert np.isnan(scores(predictions, masks)["iou/fox"])


def test_adding_ignored_pixels_changes_nothing():
    predictions, masks = pixels()
    more_masks = [F.pad(mask, (2, 3, 1, 0), value=IGNORE_INDEX) for mask in masks]
    more_predictions = [F.pad(prediction, (2, 3, 1, 0), value=3) for prediction in predictions]
    assert scores(more_predictions, more_masks) == scores(predictions, masks)


def test_the_score_is_of_the_data_set_not_a_mean_over_images():
    masks = [torch.zeros(1, 100, dtype=torch.int64), torch.tensor([[0, 1]])]
    predictions = [torch.zeros(1, 100, dtype=torch.int64), torch.tensor([[1, 0]])]
    assert scores(predictions, masks)["miou"] == pytest.approx((100 / 102 + 0) / 2)


def test_nothing_labelled_is_nan():
    metrics = SegmentationMetrics(NAMES)
    metrics.update_masks([torch.zeros(2, 2, dtype=torch.int64)], [torch.full((2, 2), IGNORE_INDEX)])
    metrics.update_masks([], [])
    assert all(value.isnan() for value in metrics.compute_masks().values())


def test_reset_forgets():
    metrics = SegmentationMetrics(NAMES)
    metrics.update_masks(*pixels(seed=1))
    metrics.update_labels(torch.randn(4, 5), torch.ones(4, 5))
    metrics.compute_masks(), metrics.compute_labels()
    metrics.reset()
    metrics.update_masks(*pixels())
    found = {name: value.item() for name, value in metrics.compute_masks().items()}
    assert found == scores(*pixels())
    assert metrics.images["cls/map"].preds == []


def test_the_state_is_not_part_of_checkpoints():
    assert SegmentationMetrics(NAMES).state_dict() == {}


def labels_and_logits(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (30, 5), generator=generator).float()
    labels[:, 0] = 1
    return torch.randn(30, 5, generator=generator), labels


@pytest.mark.parametrize("seed", range(3))
def test_image_level_scores_equal_sklearn_without_the_background(seed):
    logits, labels = labels_and_logits(seed)
    metrics = SegmentationMetrics(NAMES)
    for rows in (slice(0, 10), slice(10, 11), slice(11, 30)):
        metrics.update_labels(logits[rows], labels[rows])
    found = metrics.compute_labels()
    target, score = labels[:, 1:].numpy(), logits[:, 1:].numpy()
    assert found["cls/map"].item() == pytest.approx(average_precision_score(target, score, average="macro"))
    assert found["cls/f1"].item() == pytest.approx(f1_score(target, score > 0, average="macro"))


def test_unknown_labels_are_left_out():
    """Class by class, scikit-learn sees the images alone whose label is known; a class that is never known is none."""
    logits, labels = labels_and_logits()
    labels[:, 1:][torch.rand(30, 4, generator=torch.Generator().manual_seed(1)) < 0.4] = torch.nan
    labels[:, 4] = torch.nan
    metrics = SegmentationMetrics(NAMES)
    for rows in (slice(0, 10), slice(10, 30)):
        metrics.update_labels(logits[rows], labels[rows])
    found = metrics.compute_labels()
    precisions, f1 = [], []
    for k in range(1, 4):
        known = ~labels[:, k].isnan()
        target, score = labels[known, k].numpy(), logits[known, k].numpy()
        precisions.append(average_precision_score(target, score))
        f1.append(f1_score(target, score > 0))
    assert found["cls/map"].item() == pytest.approx(sum(precisions) / 3)
    assert found["cls/f1"].item() == pytest.approx(sum(f1) / 3)
    metrics.reset()
    metrics.update_labels(logits, labels.fill_(torch.nan))
    assert all(value.isnan() for value in metrics.compute_labels().values())


def test_batches_of_small_logits_rank_like_all_others():
    """Left alone, torchmetrics takes a batch of logits in [0, 1] for probabilities and skips the sigmoid."""
    labels = torch.tensor([[1.0, 1], [1, 0]])
    metrics = SegmentationMetrics(NAMES[:2])
    metrics.update_labels(torch.tensor([[9.0, 1.2]]), labels[:1])
    metrics.update_labels(torch.tensor([[0.9, 0.9]]), labels[1:])
    assert metrics.compute_labels()["cls/map"] == 1


def test_classes_that_no_image_shows():
    logits, labels = labels_and_logits()
    labels[:, 4] = 0
    logits[:, 4] = -1
    metrics = SegmentationMetrics(NAMES)
    metrics.update_labels(logits, labels)
    found = metrics.compute_labels()
    target, score = labels[:, 1:4].numpy(), logits[:, 1:4].numpy()
    assert found["cls/map"].item() == pytest.approx(average_precision_score(target, score, average="macro"))
    assert found["cls/f1"].item() == pytest.approx(f1_score(target, score > 0, average="macro"))


def test_one_object_class_is_enough():
    metrics = SegmentationMetrics(["background", "defect"])
    metrics.update_labels(torch.tensor([[0.0, 2], [0, -1], [0, 1]]), torch.tensor([[1.0, 1], [1, 1], [1, 0]]))
    assert metrics.compute_labels()["cls/map"].item() == pytest.approx(average_precision_score([1, 1, 0], [2, -1, 1]))
    assert metrics.compute_labels()["cls/f1"] == 0.5


def test_no_image_is_nan():
    metrics = SegmentationMetrics(NAMES)
    assert all(value.isnan() for value in metrics.compute_labels().values())
    assert all(value.isnan() for value in metrics.compute_masks().values())


@pytest.mark.parametrize("count", [0, 1, 256])
def test_class_counts_that_cannot_be_scored(count):
    with pytest.raises(InputError, match=f"found {count}"):
        SegmentationMetrics(["x"] * count)


def test_bad_masks_are_refused():
    metrics = SegmentationMetrics(NAMES)
    zeros = torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(InputError, match="another size"):
        metrics.update_masks([zeros], [zeros[:1]])
    with pytest.raises(InputError, match=r"found 5, 77:"):
        metrics.update_masks([zeros], [torch.tensor([[0, 5], [77, 255]])])
    with pytest.raises(InputError, match="1 for 2"):
        metrics.update_masks([zeros], [zeros, zeros])
