from __future__ import annotations

import itertools
import math

import pytest
import torch

from tw_seg.errors import InputError
from tw_seg.losses import SegmentationLoss, cross_entropy, dice
from tw_seg.losses.sets import find_allowed
from tw_seg.types import IGNORE_INDEX, Batch, SegOutput

K, R = 4, 3
LOSSES = (cross_entropy, dice)


@pytest.fixture
def case():
    """Masks with every kind of pixel; the second has a set of one class, one of all, and a row that is filled up."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, K, 4, 6, generator=generator, dtype=torch.float64).requires_grad_()
    masks = torch.randint(0, K + 2, (2, 4, 6), generator=generator)
    masks[0, 0, :2] = torch.tensor([K + 2, IGNORE_INDEX])
    regions = torch.tensor(
        [
            [[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 1]],
            [[0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]],
        ]
    ).bool()
    return logits, masks, regions


def allowed(masks, regions, image, y, x):
    value = int(masks[image, y, x])
    if value == IGNORE_INDEX:
        return set(range(K))
    return {value} if value < K else set(regions[image, value - K].nonzero().flatten().tolist())


def pixels(masks):
    return itertools.product(*map(range, masks.shape))


def probabilities(logits, image, y, x):
    e = [math.exp(v) for v in logits[image, :, y, x].tolist()]
    return [v / sum(e) for v in e]


def test_allowed_classes_are_those_that_each_pixel_names(case):
    _, masks, regions = case
    found = find_allowed(masks, K, regions)
    assert found.shape == (2, K, 4, 6) and found.dtype == torch.bool
    for image, y, x in pixels(masks):
        assert set(found[image, :, y, x].nonzero().flatten().tolist()) == allowed(masks, regions, image, y, x)


def test_cross_entropy_is_that_of_the_summed_probability(case):
    logits, masks, regions = case
    terms = []
    for place in pixels(masks):
        classes = allowed(masks, regions, *place)
        if len(classes) < K:
            p = probabilities(logits, *place)
            terms.append(-math.log(sum(p[k] for k in classes)))
    assert cross_entropy(logits, masks, regions).item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)


def test_dice_of_a_class_counts_the_pixels_of_which_it_is_known(case):
    logits, masks, regions = case
    scores = []
    for k in range(K):
        overlap = size = mass = 0.0
        for place in pixels(masks):
            classes, p = allowed(masks, regions, *place), probabilities(logits, *place)[k]
            if classes == {k}:
                overlap, size, mass = overlap + p, size + 1, mass + p
            elif k not in classes:
                mass += p
        if size:
            scores.append(1 - 2 * overlap / (mass + size))
    assert dice(logits, masks, regions).item() == pytest.approx(sum(scores) / len(scores), rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(loss, case):
    logits, masks, regions = case
    assert torch.autograd.gradcheck(lambda x: loss(x, masks, regions), logits)
    large = masks.repeat_interleave(2, 1)
    assert torch.autograd.gradcheck(lambda x: loss(x, large, regions), logits)


@pytest.mark.parametrize("loss", LOSSES)
def test_sets_of_one_class_are_ids_and_sets_of_all_are_ignored(loss, case):
    logits, masks, _ = case
    ids = masks.where(masks < K, IGNORE_INDEX)
    single = torch.eye(K, dtype=torch.bool).expand(2, -1, -1)
    every = torch.ones(2, 1, K, dtype=torch.bool)
    coded = torch.where(ids == IGNORE_INDEX, 2 * K, ids + K)
    torch.testing.assert_close(loss(logits, coded, torch.cat([single, every], 1)), loss(logits, ids))


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_unknown_does_not_count(loss, case):
    """Probability may move among the members of a set; logits may be anything where the class may be."""
    logits, masks, regions = case
    value = loss(logits, masks, regions)
    for image, y, x in pixels(masks):
        classes = sorted(allowed(masks, regions, image, y, x))
        if len(classes) == 1:
            continue
        moved = logits.detach().clone()
        inside = moved[image, classes, y, x]
        if len(classes) == K:
            moved[image, :, y, x] = torch.arange(K, dtype=torch.float64) * 7
        else:  # the same summed exponential, so the probabilities of the classes outside stay
            flipped = inside.flip(0) + torch.arange(len(classes), dtype=torch.float64)
            moved[image, classes, y, x] = flipped + inside.logsumexp(0) - flipped.logsumexp(0)
        torch.testing.assert_close(loss(moved, masks, regions), value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_regions_that_no_pixel_has_change_nothing(loss, case):
    logits, masks, regions = case
    ids = masks.where(masks < K, IGNORE_INDEX)
    torch.testing.assert_close(loss(logits, ids, regions), loss(logits, ids))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("masks", [torch.empty(0, 4, 6, dtype=torch.int64), torch.full((2, 4, 6), K)])
def test_without_anything_known_the_loss_is_zero(loss, masks):
    logits = torch.randn(len(masks), K, 4, 6, requires_grad=True)
    value = loss(logits, masks, torch.ones(len(masks), 1, K, dtype=torch.bool))
    value.backward()
    assert value == 0 and not logits.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite(loss, dtype, case):
    logits, masks, regions = case
    half = (200 * logits.detach()).to(dtype).requires_grad_()
    loss(half, masks, regions).backward()
    assert half.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_bad_regions_are_refused(loss, case):
    logits, masks, regions = case
    for wrong in (regions[:1], regions[:, :, :2], regions.float(), regions[0]):
        with pytest.raises(InputError, match=r"regions must be bool of shape \(L, R, K\) = \(2, R, 4\)"):
            loss(logits, masks.clamp(max=0), wrong)
    with pytest.raises(InputError, match=r"0\.\.6 or 255 \(ignored\), found 9"):
        loss(logits, masks.clamp(min=9, max=9), regions)
    with pytest.raises(InputError, match="row of regions has no class"):
        loss(logits, torch.full_like(masks, K + 2), regions)


def test_the_whole_loss_has_the_sets_in_every_part(case):
    logits, masks, regions = case
    labels = torch.ones(2, K, dtype=torch.float64)
    batch = Batch(torch.zeros(2, 3, 4, 6), labels, torch.arange(2), masks, (), ("a", "b"), regions=regions)
    aux = logits.detach() * 2
    loss, parts = SegmentationLoss(ce=2.0, dice=3.0, bce=0.0, aux=5.0)(SegOutput(labels, logits, (aux,)), batch)
    main, deep = ([one(x, masks, regions) for one in LOSSES] for x in (logits, aux))
    torch.testing.assert_close(loss, 2 * main[0] + 3 * main[1] + 5 * (2 * deep[0] + 3 * deep[1]))
    torch.testing.assert_close(parts["seg/ce"], main[0].detach())
