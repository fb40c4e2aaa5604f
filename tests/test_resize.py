from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tw_seg.resize import resize_logits, resize_maps


@pytest.mark.parametrize("size", [(7, 9), (3, 2), (5, 8)])
def test_is_bilinear_without_aligned_corners(size):
    maps = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    rows, columns = (
        ((torch.arange(n).double() + 0.5) * m / n - 0.5).clamp(0, m - 1) for n, m in zip(size, (5, 4), strict=True)
    )
    top, left = rows.floor().long(), columns.floor().long()
    down, right = (top + 1).clamp(max=4), (left + 1).clamp(max=3)
    y, x = (rows - top)[:, None], columns - left
    upper = (1 - x) * maps[:, :, top][..., left] + x * maps[:, :, top][..., right]
    lower = (1 - x) * maps[:, :, down][..., left] + x * maps[:, :, down][..., right]
    torch.testing.assert_close(resize_maps(maps, size), (1 - y) * upper + y * lower, rtol=1e-12, atol=1e-12)
    assert torch.equal(
        resize_maps(maps.float(), size), F.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False)
    )


def test_the_same_size_is_the_same_tensor():
    maps = torch.randn(1, 2, 3, 4)
    assert resize_maps(maps, maps.shape[-2:]) is maps and resize_logits(maps, [3, 4]) is maps


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)])
def test_no_maps_are_resized_within_the_graph(shape):
    maps = torch.zeros(shape, requires_grad=True)
    resized = resize_maps(maps, (6, 8))
    assert resized.shape == (*shape[:2], 6, 8)
    resized.sum().backward()
    assert maps.grad is not None and maps.grad.shape == shape


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_logits_are_at_least_single(dtype, expected):
    logits = torch.randn(1, 2, 4, 4).to(dtype)
    assert resize_maps(logits.to(torch.bfloat16), (6, 6)).dtype == torch.bfloat16
    for size in ((4, 4), (6, 6)):
        found = resize_logits(logits, size)
        assert found.dtype == expected and torch.equal(found, resize_maps(logits.to(expected), size))
