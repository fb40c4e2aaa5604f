"""Each adjoint is the transpose of the explicit Jacobian."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.functional import jacobian

from tw_seg.lrp.core import linear_map

SAMPLES, CLASSES = 2, 3


def transpose(function, a: Tensor) -> tuple[Tensor, Tensor]:
    """A random coefficient at the output of a map of one sample (1, ...), and the Jacobian transpose of it."""
    out = function(a).shape[1:]
    c = torch.randn(CLASSES * SAMPLES, *out, dtype=a.dtype)
    matrix = jacobian(function, a).reshape(out.numel(), a.numel())
    expected = c.reshape(CLASSES * SAMPLES, -1) @ matrix
    return c, expected.reshape(CLASSES * SAMPLES, *a.shape[1:])


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


def check_map(layer: linear_map.LinearMap, function, a: Tensor) -> None:
    """Forward and adjoint of a map are those of a function; the adjoint knows no bias."""
    c, expected = transpose(function, a)
    close(layer.adjoint(c, layer.weight), expected)
    close(layer.forward(a, layer.weight, layer.bias), function(a))
    close(layer.forward(a, layer.weight, None), function(a) - function(torch.zeros_like(a)))


def check_conv(size, kernel, groups: int = 1, channels: int = 4, **options) -> None:
    """As many channels as an image may have, or more: a convolution with a stride takes another way."""
    dims = len(size)
    kernel = (kernel,) * dims if isinstance(kernel, int) else kernel
    weight = torch.randn(4, channels // groups, *kernel, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    layer = linear_map.conv(weight, bias, input_size=size, groups=groups, **options)
    function = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    check_map(layer, lambda x: function(x, weight, bias, groups=groups, **options), sample(channels, *size))
    assert layer.weight is weight


@pytest.mark.parametrize("case", CONVS, ids=str)
@pytest.mark.parametrize("channels", [4, 8])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's advice
def test_conv(case, channels: int) -> None:
    check_conv(**case, channels=channels)


@settings(max_examples=50)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 4),
    padding=st.integers(0, 3),
    dilation=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    channels=st.sampled_from([4, 8]),
)
def test_conv_of_any_geometry(size, kernel, stride, padding, dilation, groups, channels) -> None:
    assume(all(n + 2 * padding >= dilation * (k - 1) + 1 for n, k in zip(size, kernel, strict=True)))
    check_conv(size, kernel, groups, channels, stride=stride, padding=padding, dilation=dilation)


def test_bias_of_each_place() -> None:
    """A bias that depends on the place, as a BatchNorm before a padded convolution makes it, is added as it is."""
    weight, bias = torch.randn(4, 3, 3, 3, dtype=torch.float64), torch.randn(1, 4, 5, 6, dtype=torch.float64)
    a = sample(3, 5, 6)
    layer = linear_map.conv(weight, bias, input_size=(5, 6), padding=1)
    close(layer.forward(a, weight, layer.bias), F.conv2d(a, weight, None, padding=1) + bias)


TRANSPOSED = [
    dict(size=(9,), kernel=3, stride=2, padding=1, output_padding=1),
    dict(size=(4, 5), kernel=3),
    dict(size=(4, 5), kernel=3, stride=2, padding=1),
    dict(size=(4, 5), kernel=2, stride=3, output_padding=2),
    dict(size=(4, 5), kernel=3, stride=(1, 2), padding=(2, 0), output_padding=(0, 1), groups=2),
    dict(size=(4, 5), kernel=3, dilation=3, output_padding=2),
    dict(size=(4, 5), kernel=(1, 4), stride=(3, 2), dilation=(1, 2), output_padding=(2, 0), groups=4),
    dict(size=(3, 4, 2), kernel=(2, 3, 1), stride=2, padding=(0, 1, 0), output_padding=1),
]


def check_conv_transpose(size, kernel, groups: int = 1, **options) -> None:
    dims = len(size)
    kernel = (kernel,) * dims if isinstance(kernel, int) else kernel
    weight = torch.randn(4, 8 // groups, *kernel, dtype=torch.float64)
    bias = torch.randn(8, dtype=torch.float64)
    layer = linear_map.conv_transpose(weight, bias, input_size=size, groups=groups, **options)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    check_map(layer, lambda x: function(x, weight, bias, groups=groups, **options), sample(4, *size))
    assert layer.weight is weight


@pytest.mark.parametrize("case", TRANSPOSED, ids=str)
def test_conv_transpose(case) -> None:
    check_conv_transpose(**case)


@settings(max_examples=25)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    output_padding=st.integers(0, 2),
    dilation=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
)
def test_conv_transpose_of_any_geometry(size, kernel, stride, padding, output_padding, dilation, groups) -> None:
    assume(output_padding < max(stride, dilation))
    output = [
        (n - 1) * stride - 2 * padding + dilation * (k - 1) + output_padding + 1
        for n, k in zip(size, kernel, strict=True)
    ]
    assume(min(output) > 0)
    options = dict(stride=stride, padding=padding, output_padding=output_padding, dilation=dilation)
    check_conv_transpose(size, kernel, groups, **options)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_linear(shape) -> None:
    weight, bias = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    layer = linear_map.linear(weight, bias)
    check_map(layer, lambda x: F.linear(x, weight, bias), sample(*shape))
    assert layer.weight is weight and layer.bias is bias


def test_linear_with_its_batch_elsewhere() -> None:
    layer = linear_map.linear(torch.randn(4, 5), None, axis=1)
    assert (layer.in_axis, layer.out_axis) == (1, 1)


@pytest.mark.parametrize("size", [(), (7,), (7, 9), (3, 4, 5)])
def test_scale(size: tuple[int, ...]) -> None:
    weight, bias = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    shape = (-1, *[1] * len(size))
    layer = linear_map.scale(weight, bias, 2 + len(size))
    check_map(layer, lambda x: x * weight.reshape(shape) + bias.reshape(shape), sample(4, *size))


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


def check_pool(function, adjoint, a: Tensor) -> None:
    layer = linear_map.avg_pool(function, adjoint)
    assert layer.weight is None and layer.bias is None
    check_map(layer, function, a)


@pytest.mark.parametrize("options", AVERAGES, ids=str)
@pytest.mark.parametrize("size", [(6, 8), (7, 9)])
def test_avg_pool(options, size) -> None:
    forward = {**options, "stride": options.get("stride") or None}
    check_pool(
        lambda x: F.avg_pool2d(x, **forward),
        lambda c: linear_map.avg_pool_adjoint(c, input_size=size, **options),
        sample(2, *size),
    )


OTHER_AVERAGES = [
    dict(size=(9,), kernel_size=2),
    dict(size=(9,), kernel_size=3, stride=2, padding=1, ceil_mode=True),
    dict(size=(10,), kernel_size=(3,), stride=(2,), padding=(1,), ceil_mode=True, count_include_pad=False),
    dict(size=(5, 6, 7), kernel_size=2),
    dict(size=(5, 6, 7), kernel_size=(3, 2, 3), stride=2, padding=1, ceil_mode=True, count_include_pad=False),
    dict(size=(5, 6, 7), kernel_size=3, stride=(1, 2, 3), padding=(1, 0, 1), divisor_override=5),
]


@pytest.mark.parametrize("case", OTHER_AVERAGES, ids=str)
def test_avg_pool_of_signals_and_volumes(case) -> None:
    options = dict(case)
    size = options.pop("size")
    function = F.avg_pool1d if len(size) == 1 else F.avg_pool3d
    check_pool(
        lambda x: function(x, **options),
        lambda c: linear_map.avg_pool_adjoint(c, input_size=size, **options),
        sample(2, *size),
    )


@pytest.mark.parametrize("output", [1, (1, 1), (2, 3), 7, (None, 2), (9, 11)])
@pytest.mark.parametrize("size", [(5, 8), (1, 2), (7, 7)])
def test_adaptive_avg_pool(output, size) -> None:
    check_pool(
        lambda x: F.adaptive_avg_pool2d(x, output),
        lambda c: linear_map.adaptive_avg_pool_adjoint(c, size),
        sample(2, *size),
    )


@pytest.mark.parametrize("output", [1, 4, 11])
@pytest.mark.parametrize("size", [(7,), (5, 3, 4)])
def test_adaptive_avg_pool_of_signals_and_volumes(output: int, size) -> None:
    function = F.adaptive_avg_pool1d if len(size) == 1 else F.adaptive_avg_pool3d
    check_pool(lambda x: function(x, output), lambda c: linear_map.adaptive_avg_pool_adjoint(c, size), sample(2, *size))


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
    close(linear_map.max_pool_adjoint(c, indices.expand(SAMPLES, -1, -1, -1), (7, 9)), expected)


def test_overlapping_max_pool_conserves() -> None:
    a = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    z, indices = F.max_pool2d(a, 3, 2, 1, return_indices=True)
    c = torch.ones_like(z)
    relevance = linear_map.times(linear_map.max_pool_adjoint(c, indices, (16, 16)), a)
    torch.testing.assert_close(relevance.sum(), z.sum(), rtol=1e-13, atol=0)


def test_max_pool_of_several_samples() -> None:
    """Winners are those of the sample, for each class."""
    a = torch.randn(SAMPLES, 2, 7, 9, dtype=torch.float64)
    indices = F.max_pool2d(a, 3, 2, return_indices=True)[1]
    c = torch.randn(CLASSES * SAMPLES, 2, 3, 4, dtype=torch.float64)
    found = linear_map.max_pool_adjoint(c, indices, (7, 9))
    for row in range(CLASSES * SAMPLES):
        sample = row % SAMPLES
        alone = linear_map.max_pool_adjoint(c[row : row + 1], indices[sample : sample + 1], (7, 9))
        assert torch.equal(found[row : row + 1], alone)


def test_max_pool_with_channels_last() -> None:
    """The same numbers, in the layout of the coefficient."""
    a = torch.randn(SAMPLES, 3, 7, 9, dtype=torch.float64)
    indices = F.max_pool2d(a, 3, 2, return_indices=True)[1]
    c = torch.randn(CLASSES * SAMPLES, 3, 3, 4, dtype=torch.float64)
    last = c.contiguous(memory_format=torch.channels_last).requires_grad_()
    found = linear_map.max_pool_adjoint(last, indices, (7, 9))
    assert torch.equal(found, linear_map.max_pool_adjoint(c, indices, (7, 9)))
    assert found.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * weights).sum(), last)
    expected = weights.flatten(2).gather(2, linear_map.expand(indices.flatten(2), c)).reshape(c.shape)
    assert torch.equal(gradient, expected)


def test_adaptive_max_pool() -> None:
    a = sample(2, 7, 9)
    indices = F.adaptive_max_pool2d(a, (3, 4), return_indices=True)[1]
    c, expected = transpose(lambda x: F.adaptive_max_pool2d(x, (3, 4)), a)
    close(linear_map.max_pool_adjoint(c, indices.expand(SAMPLES, -1, -1, -1), (7, 9)), expected)


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 1, 1), (1, 4, 5), (1, 1, 1)])
def test_unbroadcast(shape) -> None:
    big = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    c, expected = transpose(lambda x: big + x, sample(*shape))
    close(linear_map.unbroadcast(c, (1, *shape), 0), expected)


@pytest.mark.parametrize("shape", [(1, 4, 5), (1, 1, 5), (1, 4, 1), (1, 1, 1)])
def test_unbroadcast_with_axes_before_the_batch(shape) -> None:
    """The batch is axis 0 of the operand and axis 1 of the output."""
    c = torch.randn(3, CLASSES * SAMPLES, 4, 5, dtype=torch.float64)
    dims = [i + 1 for i in (1, 2) if shape[i] == 1]
    expected = c.sum(dims, keepdim=True).sum(0) if dims else c.sum(0)
    close(linear_map.unbroadcast(c, shape, 0), expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_times_and_expand(axis: int) -> None:
    """Row ``k * S + s`` of a coefficient meets sample s, at any batch axis."""
    value = torch.randn(SAMPLES, 4, 5, dtype=torch.float64).movedim(0, axis)
    c = torch.randn(CLASSES * SAMPLES, 4, 5, dtype=torch.float64).movedim(0, axis)
    found, repeated = linear_map.times(c, value, axis), linear_map.expand(value, c, axis)
    assert found.shape == repeated.shape == c.shape
    for row in range(CLASSES * SAMPLES):
        of_sample = value.select(axis, row % SAMPLES)
        assert torch.equal(found.select(axis, row), c.select(axis, row) * of_sample)
        assert torch.equal(repeated.select(axis, row), of_sample)


def test_stabilize_keeps_the_precision() -> None:
    z = torch.zeros(1, dtype=torch.float64)
    assert linear_map.stabilize(z, 0.1).item() == 0.1  # not 0.1 in float32
    assert linear_map.stabilize(z.bfloat16(), 0.1).dtype == torch.bfloat16


def test_stabilize_takes_zero_as_positive() -> None:
    z = torch.tensor([-2.0, -0.0, 0.0, 3.0])
    assert linear_map.stabilize(z, 0.5).tolist() == [-2.5, 0.5, 0.5, 3.5]


def test_parts_add_up() -> None:
    parts: dict = {}
    one, two, three = torch.ones(2), torch.full((2,), 2.0), torch.full((2,), 3.0)
    linear_map.accumulate(parts, "a", one)
    linear_map.accumulate(parts, "a", two)
    linear_map.accumulate(parts, "split", {0: one})
    linear_map.accumulate(parts, "split", {1: two})
    linear_map.accumulate(parts, "split", {1: three, 2: three})
    assert parts["a"].tolist() == [3, 3]
    assert {index: c.tolist() for index, c in parts["split"].items()} == {0: [1, 1], 1: [5, 5], 2: [3, 3]}
    assert one.tolist() == [1, 1] and two.tolist() == [2, 2]  # nothing is added in place
