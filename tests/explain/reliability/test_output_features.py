from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.measure import label

from tw_seg.explain.pairs import find_pairs
from tw_seg.explain.reliability.output_features import (
    measure_compactness,
    measure_image_level,
    measure_largest_part,
    measure_mask,
    measure_relevance,
)


def softmax_by_hand(values):
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def mask_features_by_hand(logits):
    """Of one image, logits (K, H, W), in plain Python."""
    pixels = [softmax_by_hand(column) for column in logits.flatten(1).T.tolist()]
    winners = [column.index(max(column)) for column in pixels]
    largest = [max(column) for column in pixels]
    entropy = [-sum(p * math.log(p) for p in column) / math.log(len(column)) for column in pixels]
    objects = [i for i, k in enumerate(winners) if k]
    soft = []
    for k in sorted({winners[i] for i in objects}):
        inside = [i for i, winner in enumerate(winners) if winner == k]
        soft.append(2 * sum(pixels[i][k] for i in inside) / (len(inside) + sum(column[k] for column in pixels)))

    def mean(values):
        return sum(values) / len(values) if values else math.nan

    return {
        "max_probability": mean(largest),
        "entropy": mean(entropy),
        "object_max_probability": mean([largest[i] for i in objects]),
        "object_entropy": mean([entropy[i] for i in objects]),
        "soft_dice": mean(soft),
        "empty": float(not objects),
        "area": len(objects) / len(pixels),
    }


def test_features_of_mask_logits_equal_those_by_hand():
    logits = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    logits[0, 0] += 9  # background alone
    logits[1, 2] += 9  # one class fills the image
    found = measure_mask(logits, find_pairs(logits))
    for n in range(len(logits)):
        for name, value in mask_features_by_hand(logits[n]).items():
            assert found[name][n].item() == pytest.approx(value, rel=1e-4, nan_ok=True), name
    assert found["empty"].tolist() == [1, 0, 0, 0, 0, 0]
    assert found["area"][:2].tolist() == [0, 1] and found["compactness"][1].item() == pytest.approx(20 * 16 / 18**2)
    assert found["largest_part"][1] == 1 and found["compactness"][0].isnan()


def test_one_class_alone_is_a_sigmoid_against_the_rest():
    logits = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    two = torch.cat([torch.zeros_like(logits), logits], 1)
    one, both = measure_mask(logits, find_pairs(logits)), measure_mask(two, find_pairs(two))
    for name in one:
        torch.testing.assert_close(one[name], both[name], equal_nan=True)


def perimeter_by_hand(region):
    inside = {tuple(at) for at in np.argwhere(region)}
    steps = ((0, 1), (0, -1), (1, 0), (-1, 0))
    return sum((i + a, j + b) not in inside for i, j in inside for a, b in steps)


def test_compactness_and_parts_equal_those_by_hand_and_scikit_image():
    regions = torch.rand(8, 6, 7, generator=torch.Generator().manual_seed(2)) < 0.4
    regions[0], regions[1] = False, True
    for region, compactness, part in zip(
        regions.numpy(), measure_compactness(regions), measure_largest_part(regions), strict=True
    ):
        area = region.sum()
        expected = 16 * area / perimeter_by_hand(region) ** 2 if area else 0
        parts = np.bincount(label(region, connectivity=2).ravel())[1:]
        assert compactness.item() == pytest.approx(expected)
        assert part.item() == pytest.approx(parts.max() / area if area else 0)


def test_image_level_probabilities_of_classes_in_and_out_of_the_mask():
    mask_logits = torch.zeros(3, 4, 1, 2)
    mask_logits[0, [1, 2], 0, [0, 1]] = 5  # shows 1 and 2
    mask_logits[1, 0] = 5  # shows none
    mask_logits[2, [1, 2], 0, [0, 1]] = 5
    logits = torch.tensor([[9.0, 1.0, -1.0, 0.5], [9.0, 1.0, 2.0, 3.0], [9.0, 3.0, 2.0, -5.0]])
    found = measure_image_level(logits, find_pairs(mask_logits))
    chances = logits.sigmoid()
    expected = torch.tensor([chances[0, 2], torch.nan, chances[2, 2]])
    torch.testing.assert_close(found["shown_probability"], expected, equal_nan=True)
    torch.testing.assert_close(found["hidden_probability"], torch.stack([chances[0, 3], chances[1, 3], chances[2, 3]]))
    one = measure_image_level(torch.tensor([[2.0]]), find_pairs(torch.ones(1, 1, 1, 1)))
    assert one["shown_probability"].item() == pytest.approx(1 / (1 + math.exp(-2))) and one["hidden_probability"] == 0


def test_relevance_inside_is_the_share_of_what_is_positive():
    mask_logits = torch.tensor([[[[0.0, 0.0, 9.0]], [[5.0, 0.0, 0.0]], [[0.0, 5.0, 0.0]]]])
    relevance = torch.tensor([[[[7.0, 7.0, 7.0]], [[3.0, 1.0, -8.0]], [[-1.0, -1.0, 0.0]]]])
    found = measure_relevance(relevance, find_pairs(mask_logits))
    assert found["relevance_inside"].tolist() == [pytest.approx((3 / 4 + 0) / 2)]  # class 2 has none that is positive
