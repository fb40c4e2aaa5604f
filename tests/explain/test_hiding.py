from __future__ import annotations

import pytest
import torch

from tw_seg.errors import InputError
from tw_seg.explain.hiding import FILLS, make_fill, show_regions

IMAGES = torch.rand(3, 2, 12, 9, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fill", FILLS)
def test_a_fill_belongs_to_its_image_alone_and_leaves_the_random_state(fill):
    state = torch.get_rng_state()
    fills = make_fill(IMAGES, fill, seed=1)
    assert fills.shape == IMAGES.shape
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(make_fill(IMAGES[1:2], fill, seed=1)[0], fills[1])
    assert make_fill(IMAGES[..., :1, :1], fill).isfinite().all()  # an image of one pixel


def test_what_hidden_pixels_become():
    assert not make_fill(IMAGES, "zero").any()
    means = IMAGES.mean((2, 3))
    assert torch.allclose(make_fill(IMAGES, "mean"), means[..., None, None].expand_as(IMAGES))
    noise = make_fill(torch.rand(1, 3, 100, 100) * 4, "noise", seed=3)
    assert torch.allclose(noise.mean(), torch.tensor(2.0), atol=0.05)
    assert not torch.equal(make_fill(IMAGES, "noise", seed=1), make_fill(IMAGES, "noise", seed=2))
    assert make_fill(IMAGES, "blur").var() < IMAGES.var() / 5
    assert torch.allclose(make_fill(torch.full((1, 1, 20, 20), 0.3), "blur"), torch.tensor(0.3))
    with pytest.raises(InputError, match="fill must be one of zero, mean, blur, noise, got 'grey'"):
        make_fill(IMAGES, "grey")


def test_a_region_is_shown_and_the_rest_is_filled():
    fills = torch.rand_like(IMAGES)
    regions = torch.rand(3, 12, 9) > 0.5
    shown = show_regions(IMAGES, fills, regions)
    assert torch.equal(shown[regions[:, None].expand_as(shown)], IMAGES[regions[:, None].expand_as(shown)])
    assert torch.equal(shown[~regions[:, None].expand_as(shown)], fills[~regions[:, None].expand_as(shown)])
    assert torch.allclose(show_regions(IMAGES, fills, regions.float()), shown)
