from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.losses.pixels import cross_entropy, dice
from tw_seg.types import IGNORE_INDEX

LOSSES = [cross_entropy, dice]


def example(dtype: torch.dtype = torch.float64, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three masks of 6x8 with 4 of 5 classes: one whole, one partial, one without any labelled pixel."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randint(0, 4, (3, 6, 8), generator=generator)
    masks[1, :, 3:] = IGNORE_INDEX
    masks[2] = IGNORE_INDEX
    return torch.randn(3, 5, 6, 8, generator=generator, dtype=dtype), masks


def dice_in_numpy(mask_logits: Tensor, masks: Tensor) -> float:
    """Class by class and pixel by pixel; shares no code with the loss."""
    logits, target = mask_logits.numpy(), masks.numpy()
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    losses = []
    for k in range(logits.shape[1]):
        if not (target == k).any():
            continue
        p = probabilities[:, k][target != IGNORE_INDEX]
        t = (target == k)[target != IGNORE_INDEX]
        losses.append(1 - 2 * (p * t).sum() / (p.sum() + t.sum()))
    return float(np.mean(losses))


def test_cross_entropy_equals_torch():
    mask_logits, masks = example()
    expected = F.cross_entropy(mask_logits, masks, ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(cross_entropy(mask_logits, masks), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_dice_equals_numpy(seed):
    mask_logits, masks = example(seed=seed)
    assert dice(mask_logits, masks).item() == pytest.approx(dice_in_numpy(mask_logits, masks), rel=1e-12)


def test_dice_of_a_perfect_and_of_a_wrong_mask():
    masks = torch.tensor([[[0, 0, 1, 1]]])
    right = 100 * F.one_hot(masks, 2).permute(0, 3, 1, 2).double()
    assert dice(right, masks).item() == pytest.approx(0, abs=1e-12)
    assert dice(-right, masks).item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_adding_ignored_pixels_changes_nothing(loss):
    mask_logits, masks = example()
    padded = F.pad(masks, (0, 3, 2, 0), value=IGNORE_INDEX)
    more_logits = F.pad(mask_logits, (0, 3, 2, 0), value=7.0)
    more_logits = torch.cat([more_logits, torch.randn_like(more_logits)])
    more_masks = torch.cat([padded, torch.full_like(padded, IGNORE_INDEX)])
    torch.testing.assert_close(loss(more_logits, more_masks), loss(mask_logits, masks), rtol=1e-13, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_pixels_get_no_gradient(loss):
    mask_logits, masks = example()
    mask_logits.requires_grad_()
    loss(mask_logits, masks).backward()
    ignored = (masks == IGNORE_INDEX)[:, None].expand_as(mask_logits)
    assert (mask_logits.grad[ignored] == 0).all()
    assert (mask_logits.grad[~ignored] != 0).any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("size", [(4, 4), (8, 8)])
def test_no_labelled_pixel_gives_zero_with_zero_gradient(loss, count, size):
    mask_logits = torch.randn(count, 3, 4, 4, requires_grad=True)
    value = loss(mask_logits, torch.full((count, *size), IGNORE_INDEX))
    value.backward()
    assert value.item() == 0
    assert torch.equal(mask_logits.grad, torch.zeros_like(mask_logits))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [(6, 8), (9, 11)])
def test_gradcheck(loss, size):
    mask_logits, _ = example()
    masks = torch.randint(0, 5, (3, *size), generator=torch.Generator().manual_seed(1))
    masks[0, 0] = IGNORE_INDEX
    small = mask_logits[..., ::2, ::2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, masks), (small,))


@pytest.mark.parametrize("loss", LOSSES)
def test_logits_are_brought_to_the_masks_size(loss):
    mask_logits, masks = example()
    small = mask_logits[..., ::2, ::2]
    large = F.interpolate(small, size=(6, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(loss(small, masks), loss(large, masks), rtol=1e-13, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_computed_in_single(loss, dtype):
    mask_logits, masks = example(torch.float32)
    half = (200 * mask_logits).to(dtype).requires_grad_()
    value = loss(half, masks)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert half.grad.isfinite().all()
    torch.testing.assert_close(value.detach(), loss(half.detach().float(), masks))


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_autocast_is_finite(loss):
    mask_logits, masks = example(torch.float32)
    weight = torch.eye(5).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(torch.einsum("kc,nchw->nkhw", weight, mask_logits), masks)
    value.backward()
    assert value.isfinite()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_class_ids_beyond_the_list_are_refused(loss):
    mask_logits, masks = example()
    masks[0, 0, 0] = 5
    with pytest.raises(InputError, match=r"0\.\.4"):
        loss(mask_logits, masks)
