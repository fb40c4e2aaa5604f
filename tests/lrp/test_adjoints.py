"""Each adjoint is the transpose of the explicit Jacobian."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.functional import jacobian

from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp import adjoints

SAMPLES, CLASSES = 2, 3


def transpose(function, a: Tensor) -> tuple[Tensor, Tensor]:
    """A random coefficient at the output of a map of one sample (1, ...), and the Jacobian transpose of it."""
    out = function(a).shape[1:]
    c = torch.randn(SAMPLES, CLASSES, *out, dtype=a.dtype)
    matrix = jacobian(function, a).reshape(out.numel(), a.numel())
    expected = c.reshape(SAMPLES, CLASSES, -1) @ matrix
    return c, expected.reshape(SAMPLES, CLASSES, *a.shape[1:])


def sample(*shape: int) -> Tensor:
    return torch.randn(1, *shape, dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


CONVS = [
    dict(size=(9,), kernel=3, stride=2, padding=1),
    dict(size=(10,), kernel=4, padding="same"),
    dict(size=(7, 9), kernel=3),
    dict(size=(7, 9), kernel=3, stride=2, padding=1),
    dict(size=(8, 9), kernel=3, stride=2, padding=1),
    dict(size=(8, 11), kernel=(1, 3), stride=(3, 2), padding=(0, 2)),
    dict(size=(9, 10), kernel=3, dilation=2, padding=2),
    dict(size=(9, 10), kernel=3, dilation=(3, 1), stride=(1, 3), padding=1),
    dict(size=(7, 8), kernel=3, groups=2, padding=1),
    dict(size=(7, 8), kernel=3, groups=4, stride=2),
    dict(size=(7, 8), kernel=3, padding="same", dilation=2),
    dict(size=(7, 8), kernel=(2, 4), padding="same"),
    dict(size=(9, 8), kernel=(4, 3), padding="same", dilation=(2, 1), groups=2),
    dict(size=(7, 8), kernel=3, padding="valid", stride=(1, 2)),
    dict(size=(5, 6), kernel=1, stride=2),
    dict(size=(5, 6, 4), kernel=3, stride=2, padding=1),
    dict(size=(5, 4, 4), kernel=(2, 3, 1), padding="same"),
]


def check_conv(size, kernel, groups: int = 1, **options) -> None:
    dims = len(size)
    kernel = (kernel,) * dims if isinstance(kernel, int) else kernel
    weight = torch.randn(4, 4 // groups, *kernel, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    layer = adjoints.conv(weight, bias, input_size=size, groups=groups, **options)
    function = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    a = sample(4, *size)
    c, expected = transpose(lambda x: function(x, weight, bias, groups=groups, **options), a)
    close(layer.adjoint(c, weight), expected)
    assert torch.equal(layer.forward(a, weight, bias), function(a, weight, bias, groups=groups, **options))


@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's advice
def test_conv(case) -> None:
    check_conv(**case)


@settings(max_examples=25)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 4),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
)
def test_conv_of_any_geometry(size, kernel, stride, padding, dilation, groups) -> None:
    assume(all(n + 2 * padding >= dilation * (k - 1) + 1 for n, k in zip(size, kernel, strict=True)))
    check_conv(size, kernel, groups, stride=stride, padding=padding, dilation=dilation)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_linear(shape) -> None:
    weight, bias = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    layer = adjoints.linear(weight, bias)
    c, expected = transpose(lambda x: F.linear(x, weight, bias), sample(*shape))
    close(layer.adjoint(c, weight), expected)


AVERAGES = [
    dict(kernel_size=2),
    dict(kernel_size=3, stride=2, padding=1),
    dict(kernel_size=3, stride=2, ceil_mode=True),
    dict(kernel_size=3, stride=2, padding=1, count_include_pad=False),
    dict(kernel_size=3, stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    dict(kernel_size=3, stride=2, padding=1, ceil_mode=True),
    dict(kernel_size=(2, 3), stride=(1, 2), padding=(1, 0)),
    dict(kernel_size=2, divisor_override=3),
    dict(kernel_size=3, stride=1, ceil_mode=True, padding=1, divisor_override=5),
    dict(kernel_size=(3, 2), stride=[]),
]


@pytest.mark.parametrize("options", AVERAGES, ids=str)
@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_avg_pool(options, size) -> None:
    forward = {**options, "stride": options.get("stride") or None}
    c, expected = transpose(lambda x: F.avg_pool2d(x, **forward), sample(2, *size))
    close(adjoints.avg_pool2d_adjoint(c, input_size=size, **options), expected)


@pytest.mark.parametrize("output", [1, (1, 1), (2, 3), 7, (None, 2), (9, 11)])
@pytest.mark.parametrize("size", [(5, 8), (1, 2), (7, 7)])
def test_adaptive_avg_pool(output, size) -> None:
    c, expected = transpose(lambda x: F.adaptive_avg_pool2d(x, output), sample(2, *size))
    close(adjoints.adaptive_avg_pool2d_adjoint(c, size), expected)


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize("dims", [(2, 3), (-1,), (1,), (3, 1), (-2, -1), (1, 2, 3)])
def test_mean(dims, keepdim: bool) -> None:
    c, expected = transpose(lambda x: x.mean(dims, keepdim=keepdim), sample(2, 4, 5))
    close(adjoints.mean_adjoint(c, (2, 4, 5), dims, keepdim), expected)


def test_mean_over_the_batch_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="mixes the images"):
        adjoints.mean_adjoint(torch.ones(1, 1, 1, 4, 5), (2, 4, 5), (0, 1), True)


MAXIMA = [
    dict(kernel_size=2),
    dict(kernel_size=3, stride=2, padding=1),
    dict(kernel_size=3, stride=1),
    dict(kernel_size=3, stride=2, ceil_mode=True),
    dict(kernel_size=2, stride=1, dilation=2),
]


@pytest.mark.parametrize("options", MAXIMA, ids=str)
def test_max_pool(options) -> None:
    """One sample at a time: winners depend on it."""
    a = sample(2, 7, 9)
    indices = F.max_pool2d(a, **options, return_indices=True)[1]
    c, expected = transpose(lambda x: F.max_pool2d(x, **options), a)
    close(adjoints.max_pool_adjoint(c, indices.expand(SAMPLES, -1, -1, -1), (7, 9)), expected)


def test_overlapping_max_pool_conserves() -> None:
    a = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    z, indices = F.max_pool2d(a, 3, 2, 1, return_indices=True)
    c = torch.ones(2, 1, *z.shape[1:], dtype=torch.float64)
    relevance = a.unsqueeze(1) * adjoints.max_pool_adjoint(c, indices, (16, 16))
    torch.testing.assert_close(relevance.sum(), z.sum(), rtol=1e-13, atol=0)


def test_adaptive_max_pool() -> None:
    a = sample(2, 7, 9)
    indices = F.adaptive_max_pool2d(a, (3, 4), return_indices=True)[1]
    c, expected = transpose(lambda x: F.adaptive_max_pool2d(x, (3, 4)), a)
    close(adjoints.max_pool_adjoint(c, indices.expand(SAMPLES, -1, -1, -1), (7, 9)), expected)


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 1, 1), (1, 4, 5), (1, 1, 1), (5,), (1,), (4, 1)])
def test_unbroadcast(shape) -> None:
    big = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    c, expected = transpose(lambda x: big + x.reshape(shape), sample(*shape))
    close(adjoints.unbroadcast(c, shape), expected)


def test_stabilize_keeps_the_precision() -> None:
    z = torch.zeros(1, dtype=torch.float64)
    assert adjoints.stabilize(z, 0.1).item() == 0.1  # not 0.1 in float32
    assert adjoints.stabilize(z.bfloat16(), 0.1).dtype == torch.bfloat16


def test_stabilize_takes_zero_as_positive() -> None:
    z = torch.tensor([-2.0, -0.0, 0.0, 3.0])
    assert adjoints.stabilize(z, 0.5).tolist() == [-2.5, 0.5, 0.5, 3.5]
