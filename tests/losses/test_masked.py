from __future__ import annotations

import pytest
import torch

from tw_seg.errors import InputError
from tw_seg.losses.masked import check_masks, masked_mean, masked_sums
from tw_seg.types import IGNORE_INDEX


@pytest.fixture
def masks() -> torch.Tensor:
    masks = torch.randint(0, 4, (3, 5, 7), generator=torch.Generator().manual_seed(0))
    masks[0, :2] = IGNORE_INDEX
    masks[1] = IGNORE_INDEX
    return masks


def test_the_mean_is_over_labelled_pixels_of_the_whole_batch(masks):
    values = torch.rand(masks.shape, dtype=torch.float64)
    expected = values[masks != IGNORE_INDEX].mean()
    torch.testing.assert_close(masked_mean(values, masks), expected, rtol=1e-14, atol=0)


def test_values_at_ignored_pixels_do_not_matter_even_if_infinite(masks):
    values = torch.rand(masks.shape).requires_grad_()
    spoiled = values.detach().clone()
    spoiled[masks == IGNORE_INDEX] = torch.inf
    spoiled[1, 0, 0] = torch.nan
    spoiled.requires_grad_()
    assert torch.equal(masked_mean(spoiled, masks), masked_mean(values, masks))
    masked_mean(spoiled, masks).backward()
    assert torch.equal(spoiled.grad != 0, masks != IGNORE_INDEX)


@pytest.mark.parametrize("count", [0, 2])
def test_no_labelled_pixel_gives_zero_with_zero_gradient(count):
    values = torch.rand(count, 4, 4, requires_grad=True)
    loss = masked_mean(values, torch.full((count, 4, 4), IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(values.grad, torch.zeros(count, 4, 4))


def test_the_mean_refuses_to_broadcast(masks):
    with pytest.raises(InputError, match="same shape"):
        masked_mean(torch.rand(1, 5, 7), masks)


def test_sums_are_per_class_over_labelled_pixels(masks):
    values = torch.rand(3, 4, 5, 7, dtype=torch.float64)
    keep = (masks != IGNORE_INDEX)[:, None]
    torch.testing.assert_close(masked_sums(values, masks), (values * keep).sum((0, 2, 3)), rtol=1e-14, atol=0)


LOGITS = torch.zeros(2, 3, 4, 4)
MASKS = torch.zeros(2, 4, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("mask_logits", "masks", "message"),
    [
        (LOGITS[0], MASKS, r"\(L, K, H, W\)"),
        (LOGITS.long(), MASKS, "float tensor"),
        (LOGITS, MASKS[0], r"int64 tensor \(L, H, W\)"),
        (LOGITS, MASKS.float(), "float32"),
        (LOGITS[:1], MASKS, "1 rows for 2 masks.*samples=batch.labelled"),
        (LOGITS, MASKS + 3, r"0\.\.2 or 255.*found 3:"),
        (LOGITS, MASKS - 1, r"found -1:"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(mask_logits, masks, message):
    with pytest.raises(InputError, match=message):
        check_masks(mask_logits, masks)


def test_ids_are_not_read_where_that_waits_for_the_device():
    check_masks(LOGITS.to("meta"), (MASKS + 3).to("meta"))  # reading a value of a meta tensor would raise
