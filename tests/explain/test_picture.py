from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.explain.toys import DistantPatch
from tw_seg.cli import explain as command
from tw_seg.errors import InputError
from tw_seg.explain.hiding import FILLS
from tw_seg.explain.minimal import Optimisation
from tw_seg.explain.misure import explain_masks
from tw_seg.explain.model import ExplainedModel
from tw_seg.explain.picture import METHODS, Method, explain_picture
from tw_seg.pictures import make_palette

SIDE, OBJECT, PATCH = 20, (slice(2, 6), slice(2, 6)), (slice(12, 16), slice(12, 16))


def make_picture(scale=1):
    picture = np.full((SIDE, SIDE, 3), 51, dtype=np.uint8)
    picture[PATCH] = 255
    image = torch.from_numpy(picture.transpose(2, 0, 1)[None] / 255).float()
    return picture.repeat(scale, 0).repeat(scale, 1), image


def make_model():
    return ExplainedModel(DistantPatch((SIDE, SIDE), OBJECT, PATCH).eval())


def test_regions_are_those_of_misure_and_stand_out_in_the_picture():
    picture, image = make_picture(scale=3)
    found = explain_picture(make_model(), image, picture, Method(steps=40))
    known = explain_masks(make_model().function, image, optimisation=Optimisation(steps=40))
    assert found.classes == [1] and found.rows[0]["mask_pixels"] == 16
    assert found.rows[0]["minimal_pixels"] == int(known.minimal.regions.sum())
    assert found.rows[0]["sufficient_radius"] == int(known.sufficient.radii)
    assert (found.maps["minimal"] == known.minimal.regions.numpy()).all()
    assert sorted(found.maps) == ["mask", "minimal", "soft", "sufficient"]
    (overlay,) = found.overlays
    assert overlay.shape == picture.shape and overlay.dtype == np.uint8
    large = {name: one[0].repeat(3, 0).repeat(3, 1) for name, one in found.maps.items()}
    outline = (overlay == make_palette()[1]).all(2)
    assert outline[6, 6:18].all() and not outline[9:15, 9:15].any() and not (outline & ~large["mask"]).any()
    bright = large["minimal"] & ~outline
    assert (overlay[bright] == picture[bright]).all()
    assert overlay[~large["sufficient"]].max(initial=0) <= 0.25 * 255 + 1


@pytest.mark.parametrize("name", ["occlusion", "rise"])
def test_heatmaps_point_at_what_the_mask_follows_from(name):
    picture, image = make_picture()
    found = explain_picture(make_model(), image, picture, Method(name, fill="zero", rise_masks=60))
    heatmap = found.maps["heatmap"][0]
    assert heatmap[PATCH].mean() > heatmap[OBJECT].mean()
    assert found.rows[0]["points_inside"] == 0 and found.rows[0]["sufficient_pixels"] <= SIDE * SIDE
    assert found.overlays[0].shape == picture.shape


def test_a_picture_of_background_alone_has_no_row():
    picture, image = make_picture()
    found = explain_picture(make_model(), torch.zeros_like(image), picture, Method())
    assert found.classes == found.rows == found.overlays == [] and found.maps["mask"].shape == (0, SIDE, SIDE)


def test_the_names_of_the_command_are_these():
    assert command.METHODS == METHODS and tuple(FILLS) == command.FILLS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "gradient"}, "method must be one of misure"),
        ({"fill": "grey"}, "fill must be one of"),
        ({"min_dice": 2}, r"min_dice must be in \(0, 1\]"),
        ({"name": "seg_grad_cam"}, "seg_grad_cam needs a layer"),
        ({"layer": torch.nn.ReLU()}, "no other method takes one"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        Method(**arguments)
