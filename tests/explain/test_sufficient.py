from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.explain.toys import DistantPatch, Neighbourhood, square_image
from tw_seg.explain.hiding import make_fill
from tw_seg.explain.model import ExplainedModel
from tw_seg.explain.pairs import dice, find_pairs
from tw_seg.explain.sufficient import Shown, find_sufficient_regions, measure_distances


def dilate(masks: torch.Tensor, radius: int) -> torch.Tensor:
    return F.max_pool2d(masks[:, None].float(), 2 * radius + 1, stride=1, padding=radius)[:, 0] > 0


def find(net, images, **kwargs):
    model = ExplainedModel(net, batch_size=kwargs.pop("batch_size", 16))
    shown = Shown(images, make_fill(images, kwargs.pop("fill", "zero")), find_pairs(model.run(images)))
    return model, shown, find_sufficient_regions(model, shown, **{"min_dice": 0.9, **kwargs})


def test_regions_of_a_radius_are_dilated_masks():
    masks = torch.rand(4, 13, 10, generator=torch.Generator().manual_seed(0)) > 0.97
    masks[0], masks[1], masks[:, 3, 3] = False, True, True
    distances = measure_distances(masks)
    for radius in range(14):
        assert torch.equal(distances <= radius, dilate(masks, radius))
    assert measure_distances(masks[:0]).shape == (0, 13, 10)


def search_by_hand(net, image, prediction, min_dice):
    """One step at a time, as the paper has it."""
    for radius in range(max(image.shape)):
        region = dilate(prediction[None], radius)
        if dice(net(image * region[:, None])[:, 0] > 0, prediction[None]).item() >= min_dice:
            return radius
    return None


@pytest.mark.parametrize("size", [1, 3, 5, 9, 13])
def test_the_radius_of_a_neighbourhood_is_found_as_by_single_steps(size):
    """The model wants k x k pixels on average bright on a bright ground, so a rim of it must be shown."""
    net = Neighbourhood(size)
    image = torch.full((1, 1, 33, 33), 0.45)
    image[0, 0, 12:20, 10:22] = 1
    _, shown, found = find(net, image, min_dice=0.95)
    radius = search_by_hand(net, image, shown.pairs.predictions[0], 0.95)
    assert found.radii.tolist() == [radius]
    assert found.sufficient.all() and (found.dice >= 0.95).all()
    assert torch.equal(found.regions, dilate(shown.pairs.predictions, radius))
    if size == 1:
        assert radius == 0


def test_a_distant_patch_is_reached_at_its_known_distance():
    """The whole patch must be seen: 9 of its 12 columns and more make it bright enough."""
    net = DistantPatch((40, 40), (slice(4, 9), slice(2, 8)), (slice(4, 9), slice(20, 32)))
    image = torch.ones(1, 3, 40, 40)
    _, _, found = find(net, image)
    # The mask ends in column 7; brightness above 0.75 needs 10 columns, the last of them column 29.
    assert found.radii.tolist() == [22]


def test_pairs_do_not_depend_on_each_other_and_batches_save_calls():
    images = torch.cat([square_image(24, (slice(3, 3 + n), slice(5, 15))) for n in (2, 5, 9, 14)])
    images = torch.cat([images + 0.3, torch.zeros(1, 1, 24, 24)])
    model, _, together = find(Neighbourhood(5, 0.55), images)
    alone = [find(Neighbourhood(5, 0.55), image[None], batch_size=1) for image in images]
    assert together.radii.tolist() == [radius for _, _, one in alone for radius in one.radii.tolist()]
    assert torch.equal(together.dice, torch.cat([one.dice for _, _, one in alone]))
    assert model.calls < sum(one.calls for one, _, _ in alone) / 2


def test_bounds():
    net = DistantPatch((20, 20), (slice(0, 3), slice(0, 3)), (slice(17, 20), slice(17, 20)))
    image = torch.ones(1, 1, 20, 20)
    model, shown, whole = find(net, image)
    assert whole.sufficient.all() and whole.radii.item() == 17 and model.calls <= 2 + 2 * 5
    _, _, bounded = find(net, image, max_radius=6)
    assert bounded.radii.tolist() == [6] and not bounded.sufficient.any() and bounded.dice.tolist() == [0]
    assert torch.equal(bounded.regions, dilate(shown.pairs.predictions, 6))


def test_one_pixel_a_filled_image_and_no_pair():
    pixel = torch.zeros(1, 1, 7, 9)
    pixel[0, 0, 3, 4] = 1
    _, _, found = find(Neighbourhood(1), torch.cat([pixel, torch.ones(1, 1, 7, 9)]))
    assert found.regions.sum((1, 2)).tolist() == [1, 63] and found.radii.tolist() == [0, 0]
    _, _, nothing = find(Neighbourhood(1), torch.zeros(2, 1, 7, 9))
    assert nothing.regions.shape == (0, 7, 9) and len(nothing.dice) == len(nothing.radii) == 0


def test_more_is_asked_for_never_a_smaller_radius():
    image = torch.full((1, 1, 31, 31), 0.4)
    image[0, 0, 10:20, 10:20] = 1
    radii = [find(Neighbourhood(7), image, min_dice=share)[2].radii.item() for share in (0.1, 0.5, 0.8, 0.95, 1.0)]
    assert radii == sorted(radii)
