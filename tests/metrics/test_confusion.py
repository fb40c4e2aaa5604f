from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor
from torchmetrics.functional import classification as tm

from tw_seg.errors import InputError
from tw_seg.metrics import (
    confusion_matrix,
    dice_per_class,
    iou_per_class,
    mean_iou,
    pixel_accuracy,
    precision_per_class,
    recall_per_class,
)
from tw_seg.types import IGNORE_INDEX

K = 6


def pixels(seed: int) -> tuple[Tensor, Tensor]:
    """True and predicted ids of some of the K classes, some ignored: one class only predicted, one never there."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, K - 2, (3, 9, 7), generator=generator)
    predictions = torch.where(torch.rand(masks.shape, generator=generator) < 0.5, masks, masks.roll(1))
    predictions[0, 1, 2] = K - 2
    masks[:, 0] = IGNORE_INDEX
    predictions[:, 0] = K - 1  # at ignored pixels only
    return masks, predictions


@pytest.fixture(params=range(3))
def example(request) -> tuple[Tensor, Tensor, Tensor]:
    masks, predictions = pixels(request.param)
    return masks, predictions, confusion_matrix(masks, predictions, K)


def test_equals_sklearn(example):
    masks, predictions, confusion = example
    kept = masks != IGNORE_INDEX
    truth, predicted = masks[kept].numpy(), predictions[kept].numpy()
    assert confusion.tolist() == sk.confusion_matrix(truth, predicted, labels=range(K)).tolist()
    assert mean_iou(confusion).item() == pytest.approx(sk.jaccard_score(truth, predicted, average="macro"))
    assert pixel_accuracy(confusion).item() == pytest.approx(sk.accuracy_score(truth, predicted))
    present = {"average": None, "labels": range(K - 1), "zero_division": 0}
    assert iou_per_class(confusion)[:-1].tolist() == pytest.approx(sk.jaccard_score(truth, predicted, **present))
    assert dice_per_class(confusion)[:-1].tolist() == pytest.approx(sk.f1_score(truth, predicted, **present))


def test_equals_torchmetrics(example):
    masks, predictions, confusion = example
    arguments = {"preds": predictions, "target": masks, "num_classes": K, "ignore_index": IGNORE_INDEX}
    assert torch.equal(confusion, tm.multiclass_confusion_matrix(**arguments))
    torch.testing.assert_close(mean_iou(confusion), tm.multiclass_jaccard_index(**arguments, average="macro"))
    per_class = {"jaccard": iou_per_class(confusion), "f1": dice_per_class(confusion)}
    torch.testing.assert_close(
        per_class["jaccard"].nan_to_num(0), tm.multiclass_jaccard_index(**arguments, average="none")
    )
    torch.testing.assert_close(per_class["f1"].nan_to_num(0), tm.multiclass_f1_score(**arguments, average="none"))
    torch.testing.assert_close(dice_per_class(confusion).nanmean(), tm.multiclass_f1_score(**arguments))
    accuracy = tm.multiclass_accuracy(**arguments, average="micro")
    torch.testing.assert_close(pixel_accuracy(confusion), accuracy)


def test_an_absent_class_has_no_score_and_one_that_is_only_predicted_has_zero(example):
    *_, confusion = example
    for scores in (iou_per_class(confusion), dice_per_class(confusion)):
        assert scores[K - 2] == 0 and scores[K - 1].isnan() and scores[: K - 2].isfinite().all()
    assert mean_iou(confusion).item() == pytest.approx(iou_per_class(confusion)[:-1].mean().item())


def test_nothing_labelled_is_nan():
    confusion = confusion_matrix(torch.full((2, 2), IGNORE_INDEX), torch.zeros(2, 2).long(), 3)
    assert not confusion.any() and confusion.shape == (3, 3)
    assert mean_iou(confusion).isnan() and pixel_accuracy(confusion).isnan() and iou_per_class(confusion).isnan().all()


@pytest.mark.parametrize("function", [iou_per_class, mean_iou, dice_per_class, pixel_accuracy])
def test_several_matrices_at_once_equal_each_alone(function):
    confusions = torch.stack([confusion_matrix(*pixels(seed), K) for seed in range(6)]).view(2, 3, K, K)
    together = function(confusions)
    alone = torch.stack([function(one) for one in confusions.flatten(0, 1)])
    torch.testing.assert_close(together.flatten(0, 1), alone, rtol=0, atol=0, equal_nan=True)


def test_matrices_add_up():
    masks, predictions = pixels(0)
    parts = sum(confusion_matrix(mask, predicted, K) for mask, predicted in zip(masks, predictions, strict=True))
    assert torch.equal(parts, confusion_matrix(masks, predictions, K))


def test_double_counts_give_double_scores():
    confusion = confusion_matrix(*pixels(0), K)
    for function in (iou_per_class, mean_iou, dice_per_class, pixel_accuracy):
        assert function(confusion).dtype == torch.float32
        found = function(confusion.double())
        assert found.dtype == torch.float64
        torch.testing.assert_close(found.float(), function(confusion), equal_nan=True)


def test_an_unknown_id_is_refused():
    with pytest.raises(InputError, match=r"0\.\.2 or 255 \(ignored\), found 3"):
        confusion_matrix(torch.tensor([0, 3]), torch.tensor([0, 0]), 3)


def test_precision_and_recall_are_scikit_learns():
    generator = torch.Generator().manual_seed(3)
    masks, predictions = torch.randint(0, 4, (2, 200), generator=generator)
    masks[:20] = 255
    confusion = confusion_matrix(masks, predictions, 5)
    kept = masks != 255
    arguments = {"labels": range(5), "average": None, "zero_division": np.nan}
    for function, oracle in ((precision_per_class, sk.precision_score), (recall_per_class, sk.recall_score)):
        expected = oracle(masks[kept], predictions[kept], **arguments)
        np.testing.assert_allclose(function(confusion), expected, rtol=1e-6)
