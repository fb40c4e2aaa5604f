from __future__ import annotations

import pytest
import torch

from tw_seg.errors import InputError
from tw_seg.explain.reliability.masks import count_mask_classes, mean_dice, predict_mask


def dice_by_hand(first, second, num_classes):
    """Pixel by pixel."""
    pixels = [
        (a, b) for a, b in zip(first.flatten().tolist(), second.flatten().tolist(), strict=True) if 255 not in (a, b)
    ]
    scores = []
    for k in range(1, num_classes):
        both = sum(a == b == k for a, b in pixels)
        total = sum((a == k) + (b == k) for a, b in pixels)
        scores += [2 * both / total] if total else []
    return sum(scores) / len(scores) if scores else 1.0


def test_it_is_the_mean_over_classes_that_either_shows():
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 4, (2, 20, 3, 4), generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < 0.1] = 255
    masks[0, 0], masks[1, 1] = 0, 0
    masks[:, 2] = 0
    found = mean_dice(masks[0], masks[1], 4)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([dice_by_hand(a, b, 4) for a, b in zip(*masks, strict=True)])
    assert found[2] == 1  # neither shows an object


def test_an_object_that_is_missed_or_made_up_counts_as_nothing():
    empty, full = torch.zeros(1, 2, 2, dtype=torch.int64), torch.ones(1, 2, 2, dtype=torch.int64)
    assert mean_dice(empty, full, 2) == mean_dice(full, empty, 2) == 0 and mean_dice(full, full, 2) == 1


def test_without_a_labelled_pixel_it_is_undefined():
    masks = torch.tensor([[[1, 1]], [[1, 1]]])
    found = mean_dice(masks, torch.tensor([[[255, 255]], [[255, 1]]]), 2)
    assert found.isnan().tolist() == [True, False] and found[1] == 1


def test_unknown_ids_are_refused():
    with pytest.raises(InputError, match="class ids 0..1 or 255"):
        mean_dice(torch.tensor([[[2]]]), torch.tensor([[[0]]]), 2)


def test_masks_of_one_class_and_of_several():
    one = torch.tensor([[[[-1.0, 0.0, 1.0]]]])
    assert predict_mask(one).tolist() == [[[0, 0, 1]]] and count_mask_classes(one) == 2
    three = torch.eye(3)[None, :, None]
    assert predict_mask(three).tolist() == [[[0, 1, 2]]] and count_mask_classes(three) == 3
