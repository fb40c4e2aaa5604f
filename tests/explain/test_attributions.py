from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.explain.toys import DistantPatch, Neighbourhood
from tw_seg.errors import InputError
from tw_seg.explain.attributions import compute_occlusion, compute_relevance, compute_rise, compute_seg_grad_cam
from tw_seg.explain.misure import prepare
from tw_seg.explain.model import ExplainedModel
from tw_seg.explain.scores import energy_inside, point_inside
from tw_seg.types import SegOutput


class Under(nn.Module):
    """Mask logits at half the size, by name."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images):
        return {"out": self.net(images)}


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1, bias=False))
    images = torch.randn(3, 2, 8, 8, dtype=torch.float64)
    model = ExplainedModel(net.double(), batch_size=4)
    return model, prepare(model, images, None, fill="mean", seed=0)


def summed_logits(net, shown, row, image):
    return (net(image[None])[0, shown.pairs.classes[row]] * shown.pairs.predictions[row]).sum()


def test_seg_grad_cam_equals_its_formula(case):
    model, shown = case
    net = model.function
    found = compute_seg_grad_cam(model, shown, net[1])
    for row, sample in enumerate(shown.pairs.samples.tolist()):
        features = net[:2](shown.images[sample : sample + 1])
        features = features.detach().requires_grad_()
        score = (net[2](features)[0, shown.pairs.classes[row]] * shown.pairs.predictions[row]).sum()
        (gradient,) = torch.autograd.grad(score, features)
        expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1)[0].relu()
        assert torch.allclose(found[row], expected.detach())


def test_occlusion_equals_hiding_by_hand(case):
    model, shown = case
    found = compute_occlusion(model, shown, window=4, stride=4)
    for row, sample in enumerate(shown.pairs.samples.tolist()):
        image, fill = shown.images[sample], shown.fills[sample]
        for top in (0, 4):
            for left in (0, 4):
                at = (slice(None), slice(top, top + 4), slice(left, left + 4))
                hidden = image.clone()
                hidden[at] = fill[at]
                fall = summed_logits(model.function, shown, row, image)
                fall = fall - summed_logits(model.function, shown, row, hidden)
                assert torch.allclose(found[row][at[1:]], fall.detach().expand(4, 4))


@pytest.mark.parametrize("by_name", [False, True])
def test_relevance_of_a_relu_net_is_input_times_gradient(case, by_name):
    model, shown = case
    if by_name:
        model = ExplainedModel(Under(model.function))
    found = compute_relevance(model, shown, "epsilon")
    net = case[0].function
    for row, sample in enumerate(shown.pairs.samples.tolist()):
        image = shown.images[sample].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(summed_logits(net, shown, row, image), image)
        expected = (gradient * image.detach()).sum(0)
        assert torch.allclose(found[row], expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_relevance_of_coarse_logits_adds_up():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False))
    model = ExplainedModel(net.double())
    shown = prepare(model, torch.rand(2, 1, 9, 7, dtype=torch.float64), [0, 1], fill="zero", seed=0)
    found = compute_relevance(model, shown, "epsilon")
    logits = model.run(shown.images)[shown.pairs.samples, shown.pairs.classes]
    assert torch.allclose(found.sum((1, 2)), (logits * shown.pairs.predictions).sum((1, 2)), rtol=1e-3)


def test_rise_finds_the_patch_and_depends_on_its_seed_alone():
    net = DistantPatch((24, 24), (slice(2, 6), slice(2, 6)), (slice(16, 22), slice(14, 22)), threshold=0.5)
    model = ExplainedModel(net)
    shown = prepare(model, torch.ones(2, 1, 24, 24), None, fill="zero", seed=0)
    state = torch.get_rng_state()
    found = compute_rise(model, shown, masks=150, cells=4, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found, compute_rise(ExplainedModel(net, batch_size=1), shown, masks=150, cells=4, seed=1))
    assert torch.equal(found[0], found[1])
    assert point_inside(found, net.patch.bool()[None]).all()
    assert (found >= 0).all() and (found <= 1 + 1e-6).all()
    above = found - found.mean((1, 2), keepdim=True)
    assert (energy_inside(above, net.patch.bool()[None]) > net.patch.mean()).all()


def test_no_pair_and_bad_arguments(case):
    model, shown = case
    empty_model = ExplainedModel(Neighbourhood(1))
    nothing = prepare(empty_model, torch.zeros(1, 1, 8, 8), None, fill="zero", seed=0)
    empty = [compute_occlusion(empty_model, nothing), compute_rise(empty_model, nothing, masks=1)]
    empty += [compute_relevance(empty_model, nothing), compute_seg_grad_cam(empty_model, nothing, nn.Identity())]
    assert all(one.shape == (0, 8, 8) for one in empty)
    with pytest.raises(InputError, match="needs stride <= window <= the shorter side, got stride 5, window 4"):
        compute_occlusion(model, shown, window=4, stride=5)
    with pytest.raises(InputError, match="masks must be a whole number"):
        compute_rise(model, shown, masks=0)
    with pytest.raises(InputError, match="give the torch.nn.Module itself"):
        compute_relevance(ExplainedModel(lambda images: images), shown)

    class Ours(nn.Module):
        def forward(self, images):
            return SegOutput(images.mean((2, 3)), images)

    with pytest.raises(InputError, match="Ours checks its images, .* its attribute net"):
        compute_relevance(ExplainedModel(Ours()), shown)
