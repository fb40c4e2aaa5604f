from __future__ import annotations

import math

import pytest
import torch

from tw_seg.errors import InputError
from tw_seg.losses import SegmentationLoss, cross_entropy, dice
from tw_seg.losses.annotated import merge_open_classes
from tw_seg.types import IGNORE_INDEX, Batch, SegOutput

K = 5


@pytest.fixture
def case():
    """Two masks of classes 1 and 2 only, in images of 1, 2 and 3, and of 1 alone; class 4 is nowhere."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, K, 4, 6, generator=generator, dtype=torch.float64).requires_grad_()
    masks = torch.randint(0, 3, (2, 4, 6), generator=generator)
    masks[:, 0, 0] = IGNORE_INDEX
    annotated = torch.tensor([[True, True, True, False, False]] * 2)
    labels = torch.tensor([[1.0, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    return logits, masks, annotated, labels


def allowed(image: int, pixel: int) -> set[int]:
    return {pixel} if pixel else ({0, 3} if image == 0 else {0})


def test_cross_entropy_is_that_of_the_set_that_a_pixel_may_be(case):
    logits, masks, annotated, labels = case
    merged = merge_open_classes(logits, annotated, labels, size=(4, 6))
    expected = []
    for image in range(2):
        for y in range(4):
            for x in range(6):
                pixel = int(masks[image, y, x])
                if pixel != IGNORE_INDEX:
                    e = {k: math.exp(logits[image, k, y, x].item()) for k in range(K)}
                    expected.append(-math.log(sum(e[k] for k in allowed(image, pixel)) / sum(e.values())))
    assert cross_entropy(merged, masks).item() == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def test_an_absent_class_is_kept_low_and_one_that_may_be_there_is_not(case):
    logits, masks, annotated, labels = case
    merged = merge_open_classes(logits, annotated, labels, size=(4, 6))
    cross_entropy(merged, masks).backward()
    gradient = logits.grad
    labelled = masks != IGNORE_INDEX
    assert (gradient[:, 4][labelled] > 0).all() and (gradient[1, 3][labelled[1]] > 0).all()
    assert not gradient[:, :, 0, 0].any()
    # Where it may be, the set is pulled up as one: the shares are those of its members.
    rest = masks[0] == 0
    share = logits.detach()[0, [0, 3]].softmax(0)
    torch.testing.assert_close(
        gradient[0, 0][rest] * share[1][rest], gradient[0, 3][rest] * share[0][rest], rtol=1e-9, atol=1e-15
    )
    assert (gradient[0, 3][rest] <= 0).all() and (gradient[0, 3][masks[0] == 1] > 0).all()


def test_gradients_are_those_of_finite_differences(case):
    logits, masks, annotated, labels = case

    def loss(x):
        merged = merge_open_classes(x, annotated, labels, size=(8, 6))
        large = masks.repeat_interleave(2, 1)
        return cross_entropy(merged, large) + dice(merged, large)

    assert torch.autograd.gradcheck(loss, logits)


def test_a_class_that_nobody_knows_of_is_open(case):
    logits, _, annotated, labels = case
    unknown = labels.clone()
    unknown[:, 3] = torch.nan
    present = labels.clone()
    present[:, 3] = 1
    found = merge_open_classes(logits, annotated, unknown, size=(4, 6))
    torch.testing.assert_close(found, merge_open_classes(logits, annotated, present, size=(4, 6)))
    unknown[:, 1] = torch.nan  # annotated: the mask knows
    torch.testing.assert_close(found, merge_open_classes(logits, annotated, unknown, size=(4, 6)))


def test_masks_of_all_classes_leave_the_losses_as_they_are(case):
    logits, masks, _, labels = case
    merged = merge_open_classes(logits, torch.ones(2, K, dtype=torch.bool), labels, size=(4, 6))
    torch.testing.assert_close(merged, logits)


def test_fixed_classes_are_constants_of_the_same_loss(case):
    """Its gradient is that of the loss with the logits of classes 3 and 4 held, by finite differences."""
    logits, masks, annotated, labels = case
    held = logits.detach()[:, 3:]

    def loss(x, unmasked="compete"):
        merged = merge_open_classes(x, annotated, labels, size=(4, 6), unmasked=unmasked)
        return cross_entropy(merged, masks) + dice(merged, masks)

    value = loss(logits, "fixed")
    torch.testing.assert_close(value, loss(logits))
    (gradient,) = torch.autograd.grad(value, logits)
    shown = logits.detach()[:, :3].requires_grad_()
    (expected,) = torch.autograd.grad(loss(torch.cat([shown, held], 1)), shown)
    torch.testing.assert_close(gradient[:, :3], expected)
    assert not gradient[:, 3:].any()


def test_classes_that_are_left_out_do_not_compete_where_labels_exclude_them(case):
    logits, masks, annotated, labels = case
    merged = merge_open_classes(logits, annotated, labels, size=(4, 6), unmasked="leave_out")
    loss = cross_entropy(merged, masks)
    expected = []
    for image in range(2):
        for y, x in (masks[image] != IGNORE_INDEX).nonzero().tolist():
            e = {k: math.exp(logits[image, k, y, x].item()) for k in ((0, 1, 2, 3) if image == 0 else (0, 1, 2))}
            members = allowed(image, int(masks[image, y, x]))
            expected.append(-math.log(sum(e[k] for k in members) / sum(e.values())))
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[:, 3:].any() and gradient[:, :3].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_stays_finite(case, dtype):
    logits, masks, annotated, labels = case
    small = logits.detach().to(dtype).requires_grad_()
    merged = merge_open_classes(small, annotated, labels, size=(4, 6))
    loss = cross_entropy(merged.float(), masks) + dice(merged.float(), masks)
    loss.backward()
    exact = merge_open_classes(logits, annotated, labels, size=(4, 6))
    assert loss.item() == pytest.approx((cross_entropy(exact, masks) + dice(exact, masks)).item(), rel=1e-2)
    assert small.grad.isfinite().all()


def test_the_loss_of_a_batch_closes_masks_and_deep_supervision(case):
    logits, masks, annotated, labels = case
    extra = torch.zeros(1, K)
    batch = Batch(
        torch.zeros(3, 3, 4, 6),
        torch.cat([labels[:1], extra, labels[1:]]),
        torch.tensor([0, 2]),
        masks,
        (),
        ("a", "b", "c"),
        annotated=annotated,
    )
    output = SegOutput(torch.zeros(3, K), logits, (logits[..., :2, :3],))
    _, parts = SegmentationLoss(ce=2.0, aux=1.0)(output, batch)
    merged, small = (merge_open_classes(x, annotated, labels, size=(4, 6)) for x in (logits, logits[..., :2, :3]))
    torch.testing.assert_close(parts["seg/ce"], cross_entropy(merged, masks).detach())
    torch.testing.assert_close(parts["seg/dice"], dice(merged, masks).detach())
    torch.testing.assert_close(parts["seg/aux"], (2 * cross_entropy(small, masks) + dice(small, masks)).detach())


def test_rows_that_do_not_fit_are_refused(case):
    logits, _, annotated, labels = case
    with pytest.raises(InputError, match=r"shape \(L, K\) = \(2, 5\), got \(2, 4\) and \(2, 5\)"):
        merge_open_classes(logits, annotated[:, :4], labels, size=(4, 6))
    with pytest.raises(InputError, match="compete, fixed, leave_out, got 'ignore'"):
        merge_open_classes(logits, annotated, labels, size=(4, 6), unmasked="ignore")
    with pytest.raises(InputError, match="pass the rows of the masks alone"):
        merge_open_classes(logits, annotated, labels[:1], size=(4, 6))
