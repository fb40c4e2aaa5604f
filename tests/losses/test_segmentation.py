from __future__ import annotations

import pytest
import torch

from tw_seg.errors import InputError
from tw_seg.losses import SegmentationLoss, cross_entropy, dice, multilabel_bce
from tw_seg.types import IGNORE_INDEX, Batch, SegOutput


def batch_and_output(labelled: int = 2, *, aux: int = 2) -> tuple[SegOutput, Batch]:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 3, (labelled, 8, 8), generator=generator)
    masks[:, 0] = IGNORE_INDEX
    batch = Batch(
        images=torch.randn(4, 3, 8, 8, generator=generator),
        labels=torch.randint(0, 2, (4, 3), generator=generator).float(),
        labelled=torch.arange(labelled),
        masks=masks,
        native_masks=tuple(masks),
        names=("a", "b", "c", "d"),
    )

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_()

    logits = random(4, 3)
    mask_logits = random(labelled, 3, 8, 8)
    return SegOutput(logits, mask_logits, tuple(random(labelled, 3, 4, 4) for _ in range(aux))), batch


def test_the_loss_is_the_weighted_sum_of_its_parts():
    output, batch = batch_and_output()
    loss, parts = SegmentationLoss(ce=2.0, dice=3.0, bce=5.0, aux=7.0)(output, batch)
    ce, soft_dice = cross_entropy(output.mask_logits, batch.masks), dice(output.mask_logits, batch.masks)
    bce = multilabel_bce(output.logits, batch.labels)
    deep = sum(2 * cross_entropy(x, batch.masks) + 3 * dice(x, batch.masks) for x in output.aux)
    torch.testing.assert_close(loss, 2 * ce + 3 * soft_dice + 5 * bce + 7 * deep)
    assert list(parts) == ["seg/ce", "seg/dice", "cls/bce", "seg/aux"]
    for name, expected in zip(parts, (ce, soft_dice, bce, deep), strict=True):
        assert not parts[name].requires_grad
        torch.testing.assert_close(parts[name], expected.detach())


def test_deep_supervision_reaches_every_tensor_and_costs_nothing_at_weight_zero():
    output, batch = batch_and_output()
    SegmentationLoss(aux=0.0)(output, batch)[0].backward()
    assert all(x.grad is None for x in output.aux)
    SegmentationLoss(aux=0.1)(output, batch)[0].backward()
    assert all((x.grad != 0).any() for x in output.aux)


def test_without_masks_only_the_image_level_loss_remains():
    output, batch = batch_and_output(labelled=0)
    loss, parts = SegmentationLoss()(output, batch)
    loss.backward()
    assert loss.item() == pytest.approx(parts["cls/bce"].item())
    assert parts["seg/ce"] == parts["seg/dice"] == parts["seg/aux"] == 0
    assert (output.logits.grad[:, 1:] != 0).all()
    assert output.mask_logits.grad.isfinite().all()


def test_masks_without_a_labelled_pixel_give_a_finite_loss_and_zero_segmentation_gradient():
    output, batch = batch_and_output()
    loss, _ = SegmentationLoss()(output, batch._replace(masks=torch.full_like(batch.masks, IGNORE_INDEX)))
    loss.backward()
    assert loss.isfinite()
    for mask_logits in (output.mask_logits, *output.aux):
        assert (mask_logits.grad == 0).all()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_must_be_finite_and_not_negative(weight):
    with pytest.raises(InputError, match="seg/dice"):
        SegmentationLoss(1.0, weight)


def test_a_wrong_treatment_of_classes_without_masks_is_refused_at_once():
    with pytest.raises(InputError, match="unmasked must be one of compete, fixed, leave_out, got 'ignore'"):
        SegmentationLoss(unmasked="ignore")
