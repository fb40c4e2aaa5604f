from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tw_seg.errors import InputError
from tw_seg.metrics import predict_masks


def test_logits_are_resized_before_the_argmax():
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    sizes = [(7, 5), (4, 4)]
    found = predict_masks(logits, sizes)
    expected = F.interpolate(logits[:1], size=(7, 5), mode="bilinear", align_corners=False).argmax(1)[0]
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], logits[1].argmax(0))
    given_as_masks = predict_masks(logits, [torch.zeros(size, dtype=torch.int64) for size in sizes])
    assert all(torch.equal(a, b) for a, b in zip(given_as_masks, found, strict=True))


def test_masks_of_one_size_go_through_at_once_with_the_same_result():
    logits = torch.randn(3, 4, 5, 5)
    together = predict_masks(logits, [(9, 8)] * 3)
    assert all(torch.equal(predict_masks(logits[i : i + 1], [(9, 8)])[0], together[i]) for i in range(3))
    assert predict_masks(logits[:0], []) == []


def test_half_precision_is_resized_in_single():
    logits = torch.randn(2, 3, 5, 5).bfloat16()
    expected = predict_masks(logits.float(), [(9, 8)] * 2)
    assert all(torch.equal(a, b) for a, b in zip(predict_masks(logits, [(9, 8)] * 2), expected, strict=True))


def test_one_size_for_each_row():
    with pytest.raises(InputError, match="one native size per row of mask_logits, got 1 for 2"):
        predict_masks(torch.zeros(2, 3, 4, 4), [(4, 4)])
