from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.classification import multiclass_jaccard_index

from tw_seg.errors import InputError
from tw_seg.models.posthoc.calibration import THRESHOLDS, choose_threshold, count_exceeded


def random_scores(samples: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of 4 classes, and masks that a threshold of 0.3 would give, spoiled and partly ignored."""
    scores = torch.rand(samples, 4, 12, 16) ** 2
    masks = scores.clone().index_fill_(1, torch.tensor([0]), 0.3).argmax(1)
    masks[torch.rand(masks.shape) < 0.1] = 0
    masks[torch.rand(masks.shape) < 0.1] = 255
    return scores, masks


def test_the_threshold_is_the_best_of_the_grid():
    scores, masks = random_scores()
    threshold, miou = choose_threshold([(scores[:2], masks[:2]), (scores[2:], masks[2:])], 4)
    found = {}
    for candidate in THRESHOLDS.tolist():
        predicted = scores.clone().index_fill_(1, torch.tensor([0]), candidate).argmax(1)
        jaccard = multiclass_jaccard_index(predicted, masks, 4, average="macro", ignore_index=255)
        found[candidate] = float(jaccard)
    assert threshold in found and found[threshold] == pytest.approx(miou, abs=1e-6)
    assert miou == pytest.approx(max(found.values()), abs=1e-6)


def test_every_labelled_pixel_is_counted_once_and_the_scores_stay():
    scores, masks = random_scores()
    before = scores.clone()
    counts = count_exceeded(scores, masks)
    assert counts.shape == (4, 4, 101) and counts.sum() == (masks != 255).sum()
    assert counts.sum((1, 2)).tolist() == [int((masks == k).sum()) for k in range(4)]
    assert not counts[:, 0].any()  # the background never wins before the threshold decides
    assert torch.equal(scores, before)


@pytest.mark.parametrize("ignored", [False, True])
def test_without_labelled_pixels_there_is_no_threshold(ignored):
    scores, masks = random_scores()
    with pytest.raises(InputError, match="at least one labelled pixel"):
        choose_threshold([(scores, torch.full_like(masks, 255))] if ignored else [], 4)


def test_an_unknown_class_in_a_mask_is_named():
    scores, masks = random_scores()
    with pytest.raises(InputError, match=r"class ids 0..3 .*found 9"):
        choose_threshold([(scores, masks.masked_fill(masks == 1, 9))], 4)
