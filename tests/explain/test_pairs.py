from __future__ import annotations

import numpy as np
import pytest
import torch

from tw_seg.errors import InputError
from tw_seg.explain.pairs import dice, find_pairs


def test_pairs_are_the_predicted_classes_image_by_image():
    logits = torch.randn(3, 5, 4, 4)
    logits[1, 0] = 9  # an image of background alone
    masks = logits.argmax(1)
    for classes, wanted in ((None, [1, 2, 3, 4]), ([3, 0], [3, 0]), (torch.tensor([2]), [2])):
        pairs = find_pairs(logits, classes)
        expected = [(n, k) for n in range(3) for k in wanted if (masks[n] == k).any()]
        assert list(zip(pairs.samples.tolist(), pairs.classes.tolist(), strict=True)) == expected
        for row, (n, k) in enumerate(expected):
            assert torch.equal(pairs.predictions[row], masks[n] == k)


def test_no_pair_and_one_class():
    assert find_pairs(torch.tensor([[[[-1.0]]]])).predictions.shape == (0, 1, 1)
    assert find_pairs(torch.tensor([[[[1.0]]]])).classes.tolist() == [0]
    with pytest.raises(InputError, match=r"\[7\] are outside 0..1"):
        find_pairs(torch.zeros(1, 2, 3, 3), [7])


def test_dice_equals_numpy_and_two_empty_masks_agree():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 6, 5, 4))
    b = b > 0.5
    expected = [2 * (x * y).sum() / (x.sum() + y.sum()) for x, y in zip(a, b, strict=True)]
    assert np.allclose(dice(torch.from_numpy(a), torch.from_numpy(b)), expected)
    assert dice(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)).item() == 1
    assert dice(torch.zeros(1, 2, 2), torch.ones(1, 2, 2)).item() == 0
