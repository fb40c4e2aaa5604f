from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.explain.toys import DistantPatch, Neighbourhood, square_image
from tw_seg.errors import InputError
from tw_seg.explain.hiding import FILLS
from tw_seg.explain.minimal import Optimisation
from tw_seg.explain.misure import explain_masks


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.Conv2d(6, 3, 5, padding=2)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("mode", ["training", "evaluation", "mixed"])
def test_the_model_is_left_as_it_was(mode):
    net = small_net().train(mode != "evaluation")
    if mode == "mixed":
        net[1].eval()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, modes = copy.deepcopy(net), [m.training for m in net.modules()]
    images = torch.randn(1, 3, 15, 17)
    kept, state = images.clone(), torch.get_rng_state()
    found = explain_masks(net, images)
    assert len(found.pairs.samples) > 0
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, kept)
    for (name, value), old in zip(net.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(value, old), name
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())
    again = explain_masks(net.eval(), images)
    assert torch.equal(again.minimal.regions, found.minimal.regions)


def test_without_steps_no_gradient_is_needed():
    net = small_net().eval()

    @torch.no_grad()
    def function(images):
        return net(images)

    images = torch.randn(1, 3, 10, 10)
    found = explain_masks(function, images, optimisation=Optimisation(steps=0))
    assert torch.equal(found.minimal.regions, found.sufficient.regions) and not found.minimal.reduced.any()
    with pytest.raises(InputError, match="no gradient reaches the images .* steps=0"):
        explain_masks(function, images)


@pytest.mark.parametrize("fill", FILLS)
def test_every_fill_gives_a_sufficient_region_and_the_same_again(fill):
    images = torch.randn(2, 3, 14, 11, generator=torch.Generator().manual_seed(2))
    first, second = (explain_masks(small_net(), images, fill=fill, seed=4) for _ in range(2))
    assert first.sufficient.sufficient.all() and (first.sufficient.dice >= 0.9).all()
    assert torch.equal(first.minimal.masks, second.minimal.masks)
    assert torch.equal(first.minimal.regions, second.minimal.regions)
    assert (first.minimal.dice >= 0.9).all() and (first.sufficient.regions | ~first.minimal.regions).all()
    assert (first.sufficient.regions | ~first.pairs.predictions).all()  # the mask is in its region


def test_inside_inference_mode():
    with torch.inference_mode():
        found = explain_masks(Neighbourhood(3), square_image(12, (slice(2, 7), slice(2, 7))))
    assert found.sufficient.sufficient.all()


def test_the_object_alone_or_the_context_alone():
    """Two models with the same mask: one needs the object's own pixels, the other a patch far away."""
    at, patch_at = (slice(2, 8), slice(2, 8)), (slice(20, 26), slice(18, 26))
    image = torch.full((1, 1, 32, 32), 0.1)
    image[0, 0][at] = image[0, 0][patch_at] = 1
    # The object is bright as well: pixels of the same value matter to one model and not to the other.
    context = DistantPatch((32, 32), at, patch_at, threshold=0.9)
    local = DistantPatch((32, 32), at, at, threshold=0.9)
    for net, wanted in ((context, context.patch.bool()), (local, context.object_mask.bool())):
        found = explain_masks(net, image)
        region = found.minimal.regions[0]
        assert ((region & wanted).sum() / (region | wanted).sum()).item() >= 0.8
    assert explain_masks(local, image).sufficient.radii.item() == 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"min_dice": 0}, r"min_dice must be in \(0, 1\], got 0"),
        ({"min_dice": 1.5}, r"min_dice must be in \(0, 1\], got 1.5"),
        ({"max_radius": -1}, "max_radius must be a whole number >= 0, got -1"),
        ({"fill": "grey"}, "fill must be one of"),
        ({"classes": [3]}, r"classes \[3\] are outside 0..2"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(InputError, match=message):
        explain_masks(small_net(), torch.rand(1, 3, 8, 8), **kwargs)
