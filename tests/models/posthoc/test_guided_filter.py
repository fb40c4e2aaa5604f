from __future__ import annotations

import numpy as np
import pytest
import torch

from tw_seg.errors import InputError
from tw_seg.models.posthoc.guided_filter import check_guide, filter_guided, make_guides


def filter_by_windows(values: np.ndarray, guide: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Ridge regression of the map on the guide in each window; a pixel takes the mean of its windows' answers."""
    height, width = values.shape
    total, count = np.zeros_like(values), np.zeros_like(values)
    slopes, offsets = np.zeros_like(values), np.zeros_like(values)

    def window(y: int, x: int) -> tuple[slice, slice]:
        return slice(max(y - radius, 0), y + radius + 1), slice(max(x - radius, 0), x + radius + 1)

    for y in range(height):
        for x in range(width):
            inside, target = guide[window(y, x)].ravel(), values[window(y, x)].ravel()
            design = np.column_stack([inside, np.ones_like(inside)])
            penalty = np.diag([epsilon * len(inside), 0.0])
            slopes[y, x], offsets[y, x] = np.linalg.solve(design.T @ design + penalty, design.T @ target)
    for y in range(height):
        for x in range(width):
            for v, u in np.ndindex(values[window(y, x)].shape):
                at = max(y - radius, 0) + v, max(x - radius, 0) + u
                total[y, x] += slopes[at] * guide[y, x] + offsets[at]
                count[y, x] += 1
    return total / count


@pytest.mark.parametrize(("radius", "epsilon"), [(1, 1e-3), (3, 0.1)])
def test_it_is_the_mean_of_linear_regressions_in_windows(radius, epsilon):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 2, 9, 11, generator=generator, dtype=torch.float64)
    guides = torch.rand(2, 1, 9, 11, generator=generator, dtype=torch.float64)
    found = filter_guided(maps, guides, radius=radius, epsilon=epsilon)
    for n, k in np.ndindex(2, 2):
        expected = filter_by_windows(maps[n, k].numpy(), guides[n, 0].numpy(), radius, epsilon)
        torch.testing.assert_close(found[n, k], torch.from_numpy(expected))


def test_radius_0_changes_nothing_and_a_flat_guide_averages():
    maps = torch.rand(1, 1, 8, 8)
    assert filter_guided(maps, maps, radius=0, epsilon=1e-3) is maps
    flat = filter_guided(maps, torch.full_like(maps, 0.3), radius=20, epsilon=1e-3)
    torch.testing.assert_close(flat, maps.mean().expand_as(maps))  # every window is the image


def test_guides_are_grey_and_fill_the_range():
    images = torch.randn(2, 3, 5, 6) * 7
    guides = make_guides(images)
    assert guides.shape == (2, 1, 5, 6)
    assert guides.amin((1, 2, 3)).tolist() == [0, 0] and guides.amax((1, 2, 3)).tolist() == [1, 1]
    torch.testing.assert_close(make_guides(3 * images + 1), guides)
    assert not make_guides(torch.ones(1, 3, 4, 4)).any()


def test_numbers_are_checked():
    with pytest.raises(InputError, match="guide_radius must be a whole number >= 0, got 1.5"):
        check_guide(1.5, 1e-3)
    with pytest.raises(InputError, match="guide_epsilon must be a finite number > 0, got 0"):
        check_guide(2, 0)
