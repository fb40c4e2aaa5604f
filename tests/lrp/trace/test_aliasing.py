"""Changes in place: which are followed, and which are refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.gradients import input_x_gradient
from tests.oracles.nets import Calls, conv
from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder


def pictures() -> Tensor:
    return torch.randn(2, 3, 11, 9, dtype=torch.float64)


def dead_in_place(s, x):
    y = s.c(x)
    y.mul_(2)
    return y


def operator_in_place(s, x):
    z = y = s.c(x)
    z *= 2
    return y


def chain_in_place(s, x):
    z = y = s.c(x)
    z -= 1.0
    w = z
    w /= 2
    return y


def view_in_place_read_through_the_view(s, x):
    z = s.c(x).transpose(2, 3)
    z.add_(1.0)
    return z.transpose(2, 3)


def copy_in_place(s, x):
    y = s.c(x)
    z = y.clone()
    z.relu_()
    return y + z


def mask_in_place(s, x):
    mask = torch.zeros_like(x[:, :1])
    mask[:, :, 2:] = 1
    return s.c(x) * mask


def mask_by_an_operator(s, x):
    z = mask = torch.ones_like(x[:, :1])
    z += 1
    return s.c(x) * mask


@pytest.mark.parametrize(
    "function",
    [
        dead_in_place, operator_in_place, chain_in_place, view_in_place_read_through_the_view, copy_in_place,
        mask_in_place, mask_by_an_operator,
    ],
)  # fmt: skip
def test_changes_in_place_that_are_followed(function) -> None:
    net, images = Calls(function, c=conv()), pictures()
    decoded = HeatmapDecoder(net)(images)
    torch.testing.assert_close(decoded.logits, net(images), rtol=0, atol=0)
    torch.testing.assert_close(decoded.heatmaps, input_x_gradient(net, images), rtol=1e-12, atol=1e-13)


def view_in_place(s, x):
    y = s.c(x)
    F.relu_(y.flatten(1))
    return y


def dropout_in_place(s, x):
    y = s.c(x)
    z = F.relu_(F.dropout(y, 0.5, s.training))  # in evaluation mode dropout returns its input
    return y + z


def buffer_in_place(s, x):
    s.buffer.add_(x.mean((2, 3), keepdim=True))
    return s.c(x)


def slice_in_place(s, x):
    y = s.c(x)
    y[:, 0].relu_()
    return y


def item_of_a_buffer(s, x):
    s.buffer[:] = s.c(x)[:1, :, :1, :1]
    return s.c(x) + s.buffer


def part_in_place(s, x):
    y = s.c(x)
    y.chunk(2, 1)[0].relu_()
    return y


def maybe_copy_in_place(s, x):
    y = s.c(x).permute(0, 1, 3, 2)
    z = y.contiguous().relu_()  # here a copy, elsewhere y itself
    return y + z


def einsum_in_place(s, x):
    y = s.c(x)
    z = torch.einsum("nchw->ncwh", y).relu_()
    return y + z.transpose(2, 3)


def cast_in_place(s, x):
    y = s.c(x)
    z = y.to(torch.float64).relu_()
    return y + z


def view_read_after_its_base_changed(s, x):
    y = s.c(x)
    z = y.view_as(y)
    y.add_(1.0)
    return z


def detached_in_place(s, x):
    y = s.c(x)
    y.detach().mul_(0)
    return y


def data_in_place(s, x):
    y = s.c(x)
    y.data.mul_(2)
    return y


def unknown_in_place(s, x):
    y = s.c(x)
    y.zero_()
    return y


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (view_in_place, "reads 'c' after a change in place"),
        (dropout_in_place, "reads 'c' after a change in place"),
        (buffer_in_place, "changes 'buffer' by the images"),
        (slice_in_place, "reads 'c' after a change in place"),
        (item_of_a_buffer, "changes 'buffer' by the images"),
        (part_in_place, "reads 'c' after a change in place"),
        (maybe_copy_in_place, "reads 'permute' after a change in place"),
        (einsum_in_place, "reads 'c' after a change in place"),
        (cast_in_place, "reads 'c' after a change in place"),
        (view_read_after_its_base_changed, "reads 'view_as' after a change in place"),
        (detached_in_place, "in place"),
        (data_in_place, "reads 'c' after a change in place"),
        (unknown_in_place, "zero_"),
    ],
)
def test_changes_in_place_that_a_run_out_of_place_would_miss(function, named: str) -> None:
    net = Calls(function, c=conv())
    net.register_buffer("buffer", torch.zeros(1, 3, 1, 1))
    with pytest.raises(UnsupportedOpError, match=named):
        HeatmapDecoder(net)
