from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import label

from tw_seg.models.posthoc.regions import EVEN, clean_region, score_map


def random_region(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((24, 30)) > 0.55


def clean_by_hand(region: np.ndarray, min_region: int, max_hole: int) -> np.ndarray:
    region = region.copy()
    parts, count = label(region, structure=np.ones((3, 3)))
    for part in range(1, count + 1):
        if (parts == part).sum() < min_region:
            region[parts == part] = False
    holes, count = label(~region)
    for hole in range(1, count + 1):
        if region.any() and (holes == hole).sum() <= max_hole:
            region[holes == hole] = True
    return region


def test_small_parts_go_and_small_holes_are_filled():
    for seed in range(5):
        for min_region, max_hole in ((0, 0), (1, 1), (5, 0), (0, 4), (6, 6), (1000, 3)):
            found = clean_region(random_region(seed), min_region=min_region, max_hole=max_hole)
            assert (found == clean_by_hand(random_region(seed), min_region, max_hole)).all()


def test_a_region_stays_and_nothing_stays_nothing():
    region = random_region(0)
    assert (clean_region(region) == region).all()
    assert not clean_region(np.zeros((4, 4), dtype=bool), max_hole=100).any()
    assert clean_region(np.ones((4, 4), dtype=bool), min_region=3, max_hole=3).all()


def test_scores_are_above_even_in_the_cleaned_region_only():
    values = torch.rand(24, 30, generator=torch.Generator().manual_seed(0))
    for threshold in (0.0, 0.3, 0.6, 1.0):
        found = score_map(values, threshold, min_region=4, max_hole=3) > EVEN
        expected = clean_by_hand((values > threshold).numpy(), 4, 3)
        assert (found.numpy() == expected).all()


def test_scores_compare_maps_by_their_own_thresholds():
    first, second = torch.rand(2, 200, 1, generator=torch.Generator().manual_seed(1)).double()
    scores = torch.stack([score_map(first, 0.2), score_map(second, 0.5)])
    assert scores.min() >= 0 and scores.max() <= 1
    clear = (scores > EVEN + 1e-3).all(0)
    assert clear.sum() > 30
    assert (scores.argmax(0)[clear] == (second / 0.5 > first / 0.2)[clear]).all()


def test_scores_of_a_zero_threshold_and_of_zeros_are_numbers():
    assert score_map(torch.tensor([[0.0, 1e-20, 1.0]]), 0.0).tolist() == [[0.0, 1.0, 1.0]]
