from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tw_seg.metrics.boundary import boundary_f, count_boundaries, find_boundary


def count_by_loops(mask, predicted, num_classes):
    """The definition, pixel by pixel."""
    height, width = mask.shape
    limit = max(1.0, 0.0075 * np.sqrt(height**2 + width**2))
    shown = predicted.copy()
    shown[mask == 255] = 255

    def outline(ids, k):
        found = []
        for y in range(height):
            for x in range(width):
                around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                inside = [ids[a, b] for a, b in around if 0 <= a < height and 0 <= b < width]
                if ids[y, x] == k and any(other not in (k, 255) for other in inside):
                    found.append((y, x))
        return found

    def met(points, others):
        return sum(any((y - a) ** 2 + (x - b) ** 2 <= limit**2 for a, b in others) for y, x in points)

    rows = []
    for k in range(num_classes):
        ours, theirs = outline(shown, k), outline(mask, k)
        rows.append([len(ours), met(ours, theirs), len(theirs), met(theirs, ours)])
    return np.array(rows)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6), st.sampled_from([0.0, 0.2]))
def test_counts_are_those_of_brute_force(height, width, seed, ignored):
    random = np.random.default_rng(seed)
    mask, predicted = random.integers(0, 3, (2, height, width), dtype=np.uint8)
    mask[random.random(mask.shape) < ignored] = 255
    assert np.array_equal(count_boundaries(mask, predicted, 3), count_by_loops(mask, predicted, 3))


def test_a_large_image_allows_more_than_a_neighbour():
    """A square that is shifted by 2 of 400x300 pixels (3.75 allowed) is met, by 6 it is not."""
    mask = np.zeros((300, 400), dtype=np.uint8)
    mask[100:200, 100:200] = 1
    scores = [boundary_f(count_boundaries(mask, np.roll(mask, shift, axis=1), 2))[1] for shift in (0, 2, 6)]
    assert scores[0] == scores[1] == 1 and 0.45 < scores[2] < 0.6  # its upper and lower sides are still met


def test_the_score_is_the_harmonic_mean_and_nan_without_outlines():
    assert boundary_f(np.array([[0, 0, 0, 0], [4, 0, 0, 0], [0, 0, 4, 0], [4, 1, 2, 1]])).tolist() == pytest.approx(
        [np.nan, 0, 0, 2 / (1 / 0.25 + 1 / 0.5)], nan_ok=True
    )


def test_a_boundary_has_two_sides_and_none_at_ignored_pixels():
    mask = np.array([[0, 0, 1, 1], [0, 255, 1, 1]])
    assert find_boundary(mask).tolist() == [[False, True, True, False], [False, False, False, False]]
