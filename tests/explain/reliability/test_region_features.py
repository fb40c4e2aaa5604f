from __future__ import annotations

import math

import pytest
import torch

from tests.explain.toys import DistantPatch, Neighbourhood
from tw_seg.errors import InputError
from tw_seg.explain.minimal import Optimisation
from tw_seg.explain.misure import explain_masks
from tw_seg.explain.model import ExplainedModel
from tw_seg.explain.reliability.output_features import measure_compactness
from tw_seg.explain.reliability.region_features import REGION_FEATURES, RegionOptions, measure_regions

SIDE, OBJECT, PATCH = 20, (slice(2, 6), slice(2, 6)), (slice(2, 6), slice(12, 16))


def test_they_describe_the_regions_of_misure():
    images = torch.full((2, 3, SIDE, SIDE), 0.2)
    images[0][(..., *PATCH)] = 1.0  # the second image has no object
    options = RegionOptions(fill="zero", steps=40)
    model = ExplainedModel(DistantPatch((SIDE, SIDE), OBJECT, PATCH))
    with torch.no_grad():
        found = measure_regions(model, images, options)
    known = explain_masks(model.function, images, fill="zero", optimisation=Optimisation(steps=40))
    radius, minimal = known.sufficient.radii.item(), known.minimal.regions
    assert found["sufficient_radius"][0].item() == pytest.approx(radius / SIDE)
    assert found["sufficient_size"][0].item() == pytest.approx(known.sufficient.regions.float().mean().item())
    assert found["minimal_size"][0].item() == pytest.approx(minimal.float().mean().item())
    assert found["minimal_share"][0].item() == pytest.approx((minimal.sum() / known.sufficient.regions.sum()).item())
    assert found["minimal_compactness"][0].item() == pytest.approx(measure_compactness(minimal).item())
    assert found["alone_dice"][0] == 0 and found["dice_curve"][0] == 0  # the patch is further than the curve goes
    assert all(math.isnan(found[name][1]) for name in REGION_FEATURES)


def test_a_mask_that_needs_nothing_around_it():
    images = torch.zeros(1, 1, 12, 12)
    images[0, 0, 3:8, 3:8] = 1
    model = ExplainedModel(Neighbourhood(1, 0.5))
    found = measure_regions(model, images, RegionOptions(fill="zero", steps=0))
    assert found["alone_dice"] == found["dice_curve"] == 1 and found["sufficient_radius"] == 0
    assert found["sufficient_size"].item() == pytest.approx(25 / 144) and found["minimal_share"] == 1
    assert found["minimal_compactness"] == 1


@pytest.mark.parametrize("options", [{"fill": "grey"}, {"min_dice": 0}, {"steps": -1}, {"seed": 1.5}])
def test_wrong_options(options):
    with pytest.raises(InputError, match=next(iter(options))):
        RegionOptions(**options)
