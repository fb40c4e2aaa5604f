from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from tw_seg.errors import InputError
from tw_seg.models.posthoc.relevance_maps import check_combination, check_smoothing, combine_depths, smooth_maps

SIZE = (12, 16)


def heatmaps() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(12, 16), (6, 8), (3, 4)]
    return [torch.randn(2, 3, *size, generator=generator, dtype=torch.float64) * 10**i for i, size in enumerate(sizes)]


def resized(heatmap: torch.Tensor) -> torch.Tensor:
    return F.interpolate(heatmap, size=SIZE, mode="bilinear", align_corners=False)


def test_every_depth_counts_the_same_whatever_its_scale():
    given = heatmaps()
    for relevance in ("positive", "signed"):
        expected = torch.zeros(2, 3, *SIZE, dtype=torch.float64)
        for heatmap in given:
            maps = resized(heatmap.clamp(min=0) if relevance == "positive" else heatmap)
            for n in range(2):
                for k in range(3):
                    expected[n, k] += maps[n, k] / maps[n, k].abs().max() / 3
        found = combine_depths(given, SIZE, relevance=relevance)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(combine_depths([100 * given[0], *given[1:]], SIZE, relevance=relevance), found)


def test_the_geometric_mean_is_the_root_of_the_product():
    single = [combine_depths([heatmap], SIZE) for heatmap in heatmaps()]
    found = combine_depths(heatmaps(), SIZE, combine="geometric_mean")
    torch.testing.assert_close(found**3, single[0] * single[1] * single[2])
    torch.testing.assert_close(combine_depths(heatmaps()[:1], SIZE, combine="geometric_mean"), single[0])


def test_a_map_without_relevance_stays_empty():
    nothing = torch.zeros(1, 2, 3, 4)
    assert not combine_depths([nothing, -torch.ones(1, 2, 6, 8)], SIZE).any()


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_smoothing_is_scipys(sigma):
    maps = heatmaps()[0]
    radius = 3 * sigma
    expected = gaussian_filter(maps.numpy(), (0, 0, sigma, sigma), mode="mirror", radius=int(-(-radius // 1)))
    torch.testing.assert_close(smooth_maps(maps, sigma), torch.from_numpy(expected))
    assert smooth_maps(maps, 0) is maps


def test_arguments_are_checked():
    check_combination("positive", "geometric_mean")
    with pytest.raises(InputError, match="one of positive, signed, got 'negative'"):
        check_combination("negative", "mean")
    with pytest.raises(InputError, match="one of mean, geometric_mean, got 'product'"):
        check_combination("positive", "product")
    with pytest.raises(InputError, match="two negative values would make a positive one"):
        check_combination("signed", "geometric_mean")
    with pytest.raises(InputError, match="smooth must be a finite number >= 0, got -1"):
        check_smoothing(-1)
    with pytest.raises(InputError, match=r"smooth=4 reaches 12 pixels, as far as images of 12x16: use less than 4.0"):
        smooth_maps(torch.zeros(1, 1, *SIZE), 4)
