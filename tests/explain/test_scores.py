from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.explain.toys import DistantPatch, Neighbourhood
from tw_seg.errors import InputError
from tw_seg.explain.hiding import make_fill
from tw_seg.explain.model import ExplainedModel
from tw_seg.explain.pairs import find_pairs
from tw_seg.explain.scores import (
    energy_inside,
    measure_deletion,
    measure_insertion,
    measure_sufficient_size,
    point_inside,
    rank_pixels,
)
from tw_seg.explain.sufficient import Shown


def prepare(net, images):
    model = ExplainedModel(net, batch_size=3)
    return model, Shown(images, make_fill(images, "mean"), find_pairs(model.run(images)))


@pytest.fixture(scope="module")
def bright():
    images = torch.rand(3, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    model, shown = prepare(Neighbourhood(3, 0.4), images)
    heatmaps = torch.rand(shown.pairs.predictions.shape, generator=torch.Generator().manual_seed(1))
    heatmaps[0] = heatmaps[0].round(decimals=1)  # with equal values
    return model, shown, heatmaps


def dice_by_hand(shown, row, visible):
    """Pixel by pixel, in numpy."""
    n = shown.pairs.samples[row]
    image, fill = shown.images[n, 0].numpy(), shown.fills[n, 0].numpy()
    seen = np.pad(np.where(visible, image, fill), 1)
    again = np.array([[seen[i : i + 3, j : j + 3].mean() > 0.4 for j in range(5)] for i in range(6)])
    first = shown.pairs.predictions[row].numpy()
    return 2 * (again & first).sum() / (again.sum() + first.sum())


def order_by_hand(heatmap):
    return sorted(((i, j) for i in range(6) for j in range(5)), key=lambda at: -heatmap[at].item())


def visible_by_hand(heatmap, count):
    visible = np.zeros((6, 5), dtype=bool)
    for at in order_by_hand(heatmap)[:count]:
        visible[at] = True
    return visible


def test_curves_equal_those_by_hand(bright):
    model, shown, heatmaps = bright
    insertion = measure_insertion(model, shown, heatmaps, steps=6)
    deletion = measure_deletion(model, shown, heatmaps, steps=6)
    assert np.allclose(insertion.shares, np.arange(7) / 6)
    for row in range(len(heatmaps)):
        visible = [visible_by_hand(heatmaps[row], 5 * t) for t in range(7)]
        shown_dice = [dice_by_hand(shown, row, one) for one in visible]
        hidden_dice = [dice_by_hand(shown, row, ~one) for one in visible]
        assert np.allclose(insertion.dice[row], shown_dice) and np.allclose(deletion.dice[row], hidden_dice)
        assert np.isclose(insertion.area[row], sum(shown_dice[1:-1]) / 6 + (shown_dice[0] + shown_dice[-1]) / 12)
    assert (insertion.dice[:, -1] == 1).all() and (deletion.dice[:, 0] == 1).all()


def test_a_sufficient_size_is_enough_and_one_pixel_less_is_not(bright):
    model, shown, heatmaps = bright
    sizes = measure_sufficient_size(model, shown, heatmaps, min_dice=0.8)
    for row, size in enumerate(sizes.tolist()):
        assert dice_by_hand(shown, row, visible_by_hand(heatmaps[row], size)) >= 0.8
        assert size == 0 or dice_by_hand(shown, row, visible_by_hand(heatmaps[row], size - 1)) < 0.8


def test_the_size_and_the_areas_of_a_right_explanation_are_known():
    """All of 10 pixels are needed: shown first they are enough at once, shown last only the whole image is."""
    net = DistantPatch((10, 10), (slice(0, 3), slice(0, 3)), (slice(8, 10), slice(5, 10)), threshold=0.95)
    image = torch.ones(1, 1, 10, 10)
    image[0, 0, :5] = 0
    model, shown = prepare(net, image)
    right = net.patch[None]
    assert measure_sufficient_size(model, shown, right, min_dice=0.9).tolist() == [10]
    assert measure_sufficient_size(model, shown, -right, min_dice=0.9).tolist() == [100]
    assert measure_insertion(model, shown, right, steps=10).dice.tolist() == [[0.0] + [1.0] * 10]
    assert measure_deletion(model, shown, right, steps=10).dice.tolist() == [[1.0] + [0.0] * 10]
    assert measure_insertion(model, shown, right).area > measure_insertion(model, shown, -right).area


def test_localisation_equals_quantus_definitions():
    """Mass accuracy: positive relevance inside over all; pointing game: any argmax inside. Written from its pages."""
    rng = np.random.default_rng(0)
    heatmaps, regions = rng.normal(size=(8, 6, 7)).round(1), rng.random((8, 6, 7)) > 0.6
    energy = energy_inside(torch.from_numpy(heatmaps), torch.from_numpy(regions)).numpy()
    points = point_inside(torch.from_numpy(heatmaps), torch.from_numpy(regions)).numpy()
    for p in range(8):
        a, s = heatmaps[p].flatten(), regions[p].flatten()
        assert np.isclose(energy[p], a[s & (a > 0)].sum() / a[a > 0].sum())
        assert points[p] == s[np.argwhere(a == a.max())].any()
    assert energy_inside(-torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)).isnan().all()
    assert not point_inside(torch.ones(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool)).any()


def test_no_pair_and_bad_heatmaps(bright):
    model, shown = prepare(Neighbourhood(3), torch.zeros(2, 1, 6, 5))
    nothing = torch.zeros(0, 6, 5)
    assert measure_sufficient_size(model, shown, nothing, min_dice=0.9).shape == (0,)
    assert measure_insertion(model, shown, nothing, steps=2).dice.shape == (0, 3)
    model, shown, heatmaps = bright
    with pytest.raises(InputError, match="one for each pair, got"):
        measure_deletion(model, shown, heatmaps[:, :3])
    with pytest.raises(InputError, match="steps must be a whole number >= 1"):
        measure_deletion(model, shown, heatmaps, steps=0)
    with pytest.raises(InputError, match="found NaN"):
        rank_pixels(heatmaps * torch.nan)
