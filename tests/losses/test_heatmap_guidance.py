from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tw_seg.errors import InputError
from tw_seg.losses import SegmentationLoss
from tw_seg.losses.heatmap_guidance import GUIDANCE, check_guidance, find_guided_pairs, guide_heatmaps
from tw_seg.types import IGNORE_INDEX, Batch, SegOutput

P, H, W, K = 4, 5, 6, 3


@pytest.fixture
def case():
    """Heatmaps of either sign, regions that overlap with what is not known."""
    generator = torch.Generator().manual_seed(0)
    heatmaps = torch.randn(P, H, W, generator=generator, dtype=torch.float64)
    inside = torch.rand(P, H, W, generator=generator) < 0.4
    known = torch.rand(P, H, W, generator=generator) < 0.8
    inside[0], known[0] = False, True  # no region
    known[1] = True
    return heatmaps, inside, known


def compute_by_loops(name, heatmap, inside, known):
    """The published formulas, pixel by pixel, over what is known."""
    pixels = [(heatmap[y, x], inside[y, x]) for y in range(H) for x in range(W) if known[y, x]]
    peak = max(abs(a) for a, _ in pixels)
    top = max(max(a, 0) for a, _ in pixels)
    if name == "rrr":
        return sum((a / peak) ** 2 for a, m in pixels if not m) / len(pixels)
    if name == "energy":
        return 1 - sum(max(a, 0) for a, m in pixels if m) / sum(max(a, 0) for a, _ in pixels)
    if name == "l1":
        return sum(abs(float(m) - max(a, 0) / top) for a, m in pixels) / len(pixels)
    terms = [-math.log(a / top) if a > 0 else 100.0 for a, m in pixels if m]
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("name", GUIDANCE)
def test_each_is_its_formula_by_loops(name, case):
    found = GUIDANCE[name](*case).item()
    expected = [compute_by_loops(name, *(one[p].numpy() for one in case)) for p in range(P)]
    assert found == pytest.approx(np.mean(expected), rel=1e-12)


def test_two_are_those_of_torch(case):
    """On heatmaps in [0, 1] whose largest is 1 and of which all is known: mean absolute error and cross-entropy."""
    heatmaps, inside, _ = case
    heatmaps, inside = heatmaps[1:].sigmoid(), inside[1:]
    heatmaps = heatmaps / heatmaps.amax((1, 2), keepdim=True)
    known, target = torch.ones_like(inside), inside.double()
    torch.testing.assert_close(GUIDANCE["l1"](heatmaps, inside, known), F.l1_loss(heatmaps, target))
    entropies = [
        F.binary_cross_entropy(one[region], torch.ones_like(one[region]))
        for one, region in zip(heatmaps, inside, strict=True)
    ]
    torch.testing.assert_close(GUIDANCE["ppce"](heatmaps, inside, known), torch.stack(entropies).mean())


@pytest.mark.parametrize("name", GUIDANCE)
def test_gradients_are_those_of_finite_differences(name, case):
    heatmaps, inside, known = case
    assert torch.autograd.gradcheck(lambda x: GUIDANCE[name](x, inside, known), heatmaps.requires_grad_())


@pytest.mark.parametrize("name", GUIDANCE)
def test_what_is_not_known_and_the_scale_do_not_count(name, case):
    heatmaps, inside, known = case
    value = GUIDANCE[name](heatmaps, inside, known)
    moved = torch.where(known, heatmaps, 100 * torch.randn(P, H, W, dtype=torch.float64))
    torch.testing.assert_close(GUIDANCE[name](moved, inside | ~known, known), value)
    torch.testing.assert_close(GUIDANCE[name](7 * heatmaps, inside, known), value)


@pytest.mark.parametrize("name", GUIDANCE)
def test_relevance_inside_alone_is_the_goal(name):
    inside = torch.zeros(1, H, W, dtype=torch.bool)
    inside[:, 1:3, 2:5] = True
    known = torch.ones_like(inside)
    goal, spilled = inside.double(), torch.ones(1, H, W, dtype=torch.float64)
    spilled[:, 1, 2] = 0.5
    assert GUIDANCE[name](goal, inside, known) == 0 < GUIDANCE[name](spilled, inside, known)
    assert GUIDANCE[name](goal - 0.5 * (~inside), inside, known) == (0.25 * 24 / 30 if name == "rrr" else 0)


@pytest.mark.parametrize("name", GUIDANCE)
@pytest.mark.parametrize("count", [0, 2])
def test_heatmaps_of_zeros_and_none_at_all_are_finite(name, count):
    heatmaps = torch.zeros(count, H, W, requires_grad=True)
    inside = torch.ones(count, H, W, dtype=torch.bool)
    value = GUIDANCE[name](heatmaps, inside, inside)
    value.backward()
    expected = {"rrr": 0, "energy": 1, "l1": 1, "ppce": 100}[name] if count else 0
    assert value == expected and heatmaps.grad.isfinite().all()


@pytest.mark.parametrize("name", GUIDANCE)
def test_without_positive_relevance_one_alone_has_a_gradient(name, case):
    heatmaps, inside, known = case
    heatmaps = (-heatmaps.abs()).requires_grad_()
    GUIDANCE[name](heatmaps, inside, known).backward()
    assert heatmaps.grad.any() == (name == "rrr")


@pytest.mark.parametrize("name", GUIDANCE)
def test_bad_shapes_are_refused(name, case):
    heatmaps, inside, known = case
    with pytest.raises(InputError, match=r"heatmaps must be a float tensor \(P, H, W\), got torch.float64 \(5, 6\)"):
        GUIDANCE[name](heatmaps[0], inside[0], known[0])
    with pytest.raises(InputError, match=r"inside must be bool .*\(4, 5, 6\), got torch.int64"):
        GUIDANCE[name](heatmaps, inside.long(), known)
    with pytest.raises(InputError, match=r"known must be bool .*, got torch.bool \(3, 5, 6\)"):
        GUIDANCE[name](heatmaps, inside, known[1:])


# ------------------------------------------------------------------------------------------------------ batches


@pytest.fixture
def batch():
    """A mask of class 1 and an ignored row; boxes of 1 and 2; a scribble of 2 where 1 was not annotated."""
    masks = torch.zeros(3, 4, 6, dtype=torch.int64)
    masks[0, 1, 1:3], masks[0, 0] = 1, IGNORE_INDEX
    masks[1, :, :3], masks[1, 3, :] = K, K + 1
    masks[2] = IGNORE_INDEX
    masks[2, 2, 2:4], masks[2, 0, 0] = 2, 0
    regions = torch.zeros(3, 3, K, dtype=torch.bool)
    regions[1, 0, [0, 1]] = regions[1, 1, [0, 2]] = True
    labels = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, torch.nan], [1, torch.nan, 1]])
    annotated = torch.tensor([[True] * 3, [True] * 3, [True, False, True]])
    images = torch.zeros(4, 3, 4, 6)
    return Batch(images, labels, torch.tensor([0, 2, 3]), masks, (), ("a", "b", "c", "d"), (), annotated, regions)


def test_pairs_are_the_objects_that_have_a_region(batch):
    pairs = find_guided_pairs(batch, K)
    assert list(zip(pairs.rows.tolist(), pairs.classes.tolist(), strict=True)) == [(0, 1), (1, 1), (1, 2), (2, 2)]
    assert torch.equal(pairs.inside[0], batch.masks[0] == 1)
    assert torch.equal(pairs.known[0], batch.masks[0] != IGNORE_INDEX)
    assert torch.equal(pairs.inside[1], batch.masks[1] == K) and pairs.known[1].all()
    assert torch.equal(pairs.inside[2], batch.masks[1] == K + 1)
    assert torch.equal(pairs.inside[3], batch.masks[2] == 2) and pairs.known[3].sum() == 3
    excluded = batch.labels.clone()
    excluded[2, 2] = 0
    assert find_guided_pairs(batch._replace(labels=excluded), K).classes.tolist() == [1, 1, 2]
    everything = find_guided_pairs(batch._replace(annotated=None), K)
    assert torch.equal(everything.classes, pairs.classes)  # a class without a pixel has no region


def test_a_batch_is_guided_pair_by_pair_at_the_size_of_its_masks(batch):
    heatmaps = torch.randn(3, K, 2, 3, dtype=torch.float64, requires_grad=True)
    pairs = find_guided_pairs(batch, K)
    large = F.interpolate(heatmaps, size=(4, 6), mode="bilinear", align_corners=False)[pairs.rows, pairs.classes]
    found = guide_heatmaps(heatmaps, batch, dict.fromkeys(GUIDANCE, 1.0))
    assert list(found) == list(GUIDANCE)
    for name, loss in GUIDANCE.items():
        torch.testing.assert_close(found[name], loss(large, pairs.inside, pairs.known))
    found["energy"].backward()
    untouched = torch.ones(3, K, dtype=torch.bool)
    untouched[pairs.rows, pairs.classes] = False
    assert not heatmaps.grad[untouched].any() and heatmaps.grad[~untouched].any()


def test_the_whole_loss_adds_them_by_their_weights(batch):
    mask_logits, heatmaps = torch.randn(2, 3, K, 4, 6)
    output = SegOutput(torch.randn(4, K), mask_logits)
    plain, parts = SegmentationLoss()(output, batch)
    weights = {"energy": 0.5, "rrr": 2.0}
    loss, guided = SegmentationLoss(guidance=weights)(output, batch, heatmaps=heatmaps)
    found = guide_heatmaps(heatmaps, batch, weights)
    torch.testing.assert_close(loss, plain + 0.5 * found["energy"] + 2 * found["rrr"])
    assert tuple(guided) == SegmentationLoss(guidance=weights).names == (*parts, "guidance/energy", "guidance/rrr")
    assert not any(part.requires_grad for part in guided.values())
    without, _ = SegmentationLoss(guidance=weights)(output, batch)
    found = guide_heatmaps(mask_logits, batch, weights)
    torch.testing.assert_close(without, plain + 0.5 * found["energy"] + 2 * found["rrr"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("energy", "guidance must be a mapping such as {'energy': 0.1}, got 'energy'"),
        ({"epg": 1}, "guidance knows rrr, energy, l1, ppce, not epg"),
        ({"l1": -1}, "guidance: l1 must be a finite number >= 0, got -1"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        check_guidance(weights)
