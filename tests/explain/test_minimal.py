from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from tests.explain.toys import DistantPatch, Neighbourhood
from tw_seg.errors import InputError
from tw_seg.explain.hiding import make_fill, show_regions
from tw_seg.explain.minimal import Optimisation, compute_loss, find_minimal_regions
from tw_seg.explain.model import ExplainedModel, predict_class, probabilities
from tw_seg.explain.pairs import dice, find_pairs
from tw_seg.explain.sufficient import Shown, find_sufficient_regions


def find(net, images, *, min_dice=0.9, batch_size=16, max_radius=None, fill="zero", **options):
    model = ExplainedModel(net, batch_size=batch_size)
    shown = Shown(images, make_fill(images, fill), find_pairs(model.run(images)))
    sufficient = find_sufficient_regions(model, shown, min_dice=min_dice, max_radius=max_radius)
    minimal = find_minimal_regions(model, shown, sufficient, min_dice=min_dice, options=Optimisation(**options))
    return shown, sufficient, minimal


def ask_again(net, shown, regions):
    images = show_regions(shown.images[shown.pairs.samples], shown.fills[shown.pairs.samples], regions)
    return dice(predict_class(net(images).detach(), shown.pairs.classes), shown.pairs.predictions)


def test_the_loss_equals_numpy():
    rng = np.random.default_rng(0)
    chances, masks = rng.random((2, 3, 5, 4))
    predictions, areas = rng.random((3, 5, 4)) > 0.5, np.array([20, 7, 11])
    options = Optimisation(size_weight=0.3, variation_weight=0.7)
    found = compute_loss(*(torch.from_numpy(a) for a in (chances, predictions, masks, areas)), options)
    for p in range(3):
        agreement = 2 * (chances[p] * predictions[p]).sum() / (chances[p].sum() + predictions[p].sum())
        steps = sum(abs(masks[p, i, j] - masks[p, i - 1, j]) for i in range(1, 5) for j in range(4))
        steps += sum(abs(masks[p, i, j] - masks[p, i, j - 1]) for i in range(5) for j in range(1, 4))
        assert np.isclose(found[p], 1 - agreement + (0.3 * masks[p].sum() + 0.7 * steps) / areas[p])


def test_its_gradient_through_a_model_equals_finite_differences():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1)).double()
    images = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    fills = make_fill(images, "mean")
    predictions = torch.rand(1, 4, 5) > 0.5

    def loss(masks):
        chances = probabilities(net(show_regions(images, fills, masks)))[:, 1]
        return compute_loss(chances, predictions, masks, torch.tensor([20]), Optimisation())

    assert torch.autograd.gradcheck(loss, torch.rand(1, 4, 5, dtype=torch.float64, requires_grad=True))


def smallest_by_trying_all(net, shown, region, min_dice):
    places = region.nonzero().tolist()
    smallest = len(places)
    for chosen in product([False, True], repeat=len(places)):
        if sum(chosen) < smallest:
            some = torch.zeros_like(region)
            for (i, j), one in zip(places, chosen, strict=True):
                some[i, j] = one
            if ask_again(net, shown, some[None]).item() >= min_dice:
                smallest = sum(chosen)
    return smallest


def test_not_smaller_than_the_smallest_of_all_subsets_and_often_as_small():
    nets = [
        DistantPatch((3, 4), (slice(0, 1), slice(0, 2)), (slice(2, 3), slice(1, 3)), threshold=0.8),
        DistantPatch((3, 4), (slice(0, 2), slice(0, 2)), (slice(0, 2), slice(2, 4)), threshold=0.45),
        Neighbourhood(1),
        Neighbourhood(3, 0.3),
    ]
    image = torch.ones(1, 1, 3, 4)
    image[0, 0, 2] = 0.4
    gaps = []
    for net in nets:
        shown, sufficient, minimal = find(net, torch.ones(1, 1, 3, 4) if isinstance(net, DistantPatch) else image)
        smallest = smallest_by_trying_all(net, shown, sufficient.regions[0], 0.9)
        gaps.append(minimal.regions.sum().item() - smallest)
    assert min(gaps) >= 0 and gaps.count(0) >= 2


def test_nothing_smaller_is_enough():
    """Every pixel of the mask needs itself, and the whole mask is asked for."""
    image = torch.zeros(1, 1, 9, 11)
    image[0, 0, 2:6, 3:9] = 1
    _, sufficient, minimal = find(Neighbourhood(1), image, min_dice=1.0)
    assert torch.equal(minimal.regions, sufficient.regions) and torch.equal(minimal.dice, sufficient.dice)
    assert not minimal.reduced.any()


def test_a_model_that_looks_at_nothing_needs_nothing():
    constant = torch.zeros(1, 2, 6, 6)
    constant[:, 1, 2:4, 2:4] = 5
    _, sufficient, minimal = find(lambda images: constant + 0 * images[:, :1], torch.rand(1, 3, 6, 6))
    assert sufficient.radii.tolist() == [0]
    assert minimal.reduced.all() and not minimal.regions.any() and minimal.dice.tolist() == [1]


@pytest.fixture(scope="module")
def five():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(2, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 5, padding=2)).eval()
    return net, torch.randn(3, 2, 13, 12)


def test_what_comes_out_is_enough_inside_and_smaller(five):
    net, images = five
    shown, sufficient, minimal = find(net, images, steps=40)
    assert torch.equal(ask_again(net, shown, minimal.regions), minimal.dice) and (minimal.dice >= 0.9).all()
    assert (sufficient.regions | ~minimal.regions).all()
    sizes, before = minimal.regions.sum((1, 2)), sufficient.regions.sum((1, 2))
    assert torch.equal(sizes < before, minimal.reduced) and minimal.reduced.any()
    assert (minimal.masks >= 0).all() and (minimal.masks <= 1).all() and not minimal.masks[~sufficient.regions].any()


def test_pairs_do_not_depend_on_each_other(five):
    net, images = (five[0].double(), five[1].double())
    _, _, together = find(net, images, steps=25)
    _, _, by_two = find(net, images, steps=25, batch_size=2)
    alone = [find(net, image[None], steps=25)[2].masks for image in images]
    assert torch.allclose(together.masks, by_two.masks, atol=1e-6)
    assert torch.allclose(together.masks, torch.cat(alone), atol=1e-6)
    net.float()


def test_a_region_that_is_not_enough_is_left_alone():
    net = DistantPatch((20, 20), (slice(0, 3), slice(0, 3)), (slice(17, 20), slice(17, 20)))
    _, sufficient, minimal = find(net, torch.ones(1, 1, 20, 20), max_radius=4)
    assert not sufficient.sufficient.any() and not minimal.reduced.any()
    assert torch.equal(minimal.regions, sufficient.regions)


def test_patience_ends_a_search():
    image = torch.ones(1, 1, 6, 6)
    model = ExplainedModel(Neighbourhood(1))
    shown = Shown(image, torch.zeros_like(image), find_pairs(model.run(image)))
    sufficient = find_sufficient_regions(model, shown, min_dice=1.0)
    calls = model.calls
    options = Optimisation(patience=3, steps=1000, check_every=1000, lr=0.0)
    find_minimal_regions(model, shown, sufficient, min_dice=1.0, options=options)
    assert model.calls - calls == 4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"steps": -1}, "steps must be a whole number >= 0"),
        ({"check_every": 0}, "check_every must be a whole number >= 1"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"cuts": ()}, r"cuts must be shares in \(0, 1\], one or more, got \(\)"),
        ({"cuts": (0.0,)}, "cuts must be shares"),
    ],
)
def test_bad_numbers(kwargs, message):
    with pytest.raises(InputError, match=message):
        Optimisation(**kwargs)
