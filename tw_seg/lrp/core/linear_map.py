"""Linear maps and their adjoints, as plain forward ops on coefficients.

A *coefficient* ``c`` belongs to an activation ``a``; relevance is ``a * c``. It has the shape that the activation
would have for a batch of K*S images, S decoded samples for each of K classes, classes outermost: row ``k*S + s``
of its batch axis. So every function here is ordinary batched tensor code that knows nothing of classes, and
`times` is the one place where a value of S samples meets a coefficient. No hooks, no ``autograd.grad``, no
custom function: all of it can be differentiated again, compiled and exported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def times(c: Tensor, value: Tensor, axis: int = 0) -> Tensor:
    """A coefficient (.., K*R, ..) times a value (.., R, ..) of the samples, for each class.

    Examples:
        >>> times(torch.ones(4, 1), torch.tensor([[2.0], [3.0]])).flatten().tolist()
        [2.0, 3.0, 2.0, 3.0]
    """
    product: Tensor = c.unflatten(axis, (-1, value.shape[axis])) * value.unsqueeze(axis)
    return product.flatten(axis, axis + 1)


def expand(value: Tensor, like: Tensor, axis: int = 0, *, of: int | None = None) -> Tensor:
    """A value (.., R, ..) of the samples repeated for each class, (.., K*R, ..).

    Args:
        value: The value.
        like: A coefficient.
        axis: Batch axis of the value.
        of: Batch axis of the coefficient; ``None``: the same.
    """
    classes = like.shape[axis if of is None else of] // value.shape[axis]
    return value.unsqueeze(axis).expand(*value.shape[:axis], classes, *value.shape[axis:]).flatten(axis, axis + 1)


def channels_last(x: Tensor) -> Tensor:
    """Images (N, C, H, W) with their channels last in memory, where a CPU computes convolutions fastest that way.

    The same numbers in the same shape; other devices keep the layout that the classifier's activations have.
    """
    if x.ndim == 4 and x.device.type == "cpu" and x.dtype in _CHANNELS_LAST:
        return x.contiguous(memory_format=torch.channels_last)
    return x


_CHANNELS_LAST = (torch.float32, torch.bfloat16, torch.float16, torch.bool)
"""Types of what oneDNN convolves, and of gates, which multiply it; double precision has no such kernels."""


Parts = dict[int, Tensor]
"""Coefficients at some elements of a call that returns several tensors, such as a split."""


def accumulate(parts: dict[str, Any], name: str, part: Tensor | Parts) -> None:
    """Add one reader's part to what a value has received so far."""
    if name not in parts:
        parts[name] = part
    elif isinstance(part, dict):
        for index, c in part.items():
            accumulate(parts[name], index, c)  # type: ignore[arg-type]
    else:
        parts[name] = parts[name] + part


def stabilize(z: Tensor, epsilon: float) -> Tensor:
    """``z + epsilon * sign(z)`` with ``sign(0) = +1``."""
    return torch.where(z < 0, z - epsilon, z + epsilon)  # epsilon in the precision of z


@dataclass(frozen=True)
class LinearMap:
    """``z = W a + b`` of one call: what a rule needs to know of a convolution, linear layer or pool.

    Attributes:
        weight: The weight, with a BatchNorm fused into it already multiplied in; ``None`` for a pool.
        bias: What is added, in a shape that broadcasts against z, with the shift of such a BatchNorm;
            ``None`` if there is none.
        forward: ``forward(a, weight, bias) -> z`` for activations (R, *in).
        adjoint: ``adjoint(c, weight) -> W^T c`` for coefficients (K*R, *out).
        in_axis: Batch axis of the input.
        out_axis: Batch axis of the output.
        nonnegative: The input is known to be >= 0, as after a ReLU.
    """

    weight: Tensor | None
    bias: Tensor | None
    forward: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
    adjoint: Callable[[Tensor, Tensor | None], Tensor]
    in_axis: int = 0
    out_axis: int = 0
    nonnegative: bool = False


def per_dim(value: int | Sequence[int], dims: int) -> list[int]:
    """One number per spatial dimension."""
    if isinstance(value, int):
        return [value] * dims
    return list(value) * dims if len(value) == 1 else list(value)


def per_channel(vector: Tensor, ndim: int) -> Tensor:
    """(C,) -> (C, 1, ...), which broadcasts with (N, C, ...) of ``ndim`` axes."""
    return vector.reshape(-1, *([1] * (ndim - 2)))


def _plus(z: Tensor, bias: Tensor | None) -> Tensor:
    return z if bias is None else z + bias


def conv(
    weight: Tensor,
    bias: Tensor | None,
    *,
    input_size: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> LinearMap:
    """The linear map of a convolution in 1, 2 or 3 dimensions.

    Args:
        weight: Shape (C_out, C_in / groups, *kernel).
        bias: Shape (C_out,), or broadcasting against (N, C_out, *out), or ``None``.
        input_size: Spatial size of the input: a stride forgets it, the adjoint has to restore it.
        stride: As in ``torch.nn.functional.conv2d``.
        padding: As there, ``"same"`` and ``"valid"`` included.
        dilation: As there.
        groups: As there.
    """
    dims = weight.ndim - 2
    strides, dilations = per_dim(stride, dims), per_dim(dilation, dims)
    spans = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
    if isinstance(padding, str):
        before = [span // 2 if padding == "same" else 0 for span in spans]
        after = [span - b if padding == "same" else 0 for span, b in zip(spans, before, strict=True)]
    else:
        before = after = per_dim(padding, dims)

    plain = dims == 2 and groups == 1 and not any(d > 1 for d in dilations) and strides[0] == strides[1] > 1

    def forward(a: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        return _plus(_CONV[dims](a, w, None, stride, padding, dilation, groups), b)

    def adjoint(c: Tensor, w: Tensor | None) -> Tensor:
        assert w is not None
        if plain and c.is_cpu and w.shape[1] <= _FEW_CHANNELS:
            return strided_conv_adjoint(c, w, stride=strides[0], padding=before, input_size=input_size)
        # A kernel of several cells would have to be laid out anew; where it outnumbers the coefficients, they are.
        if w[0, 0].numel() == 1 or torch.compiler.is_compiling() or c.numel() >= w.numel():
            c = channels_last(c)
        # The rows that the last stride did not reach: they exist in the input and get no coefficient.
        rest = [
            n + pb + pa - span - 1 - (m - 1) * s
            for n, m, s, span, pb, pa in zip(input_size, c.shape[2:], strides, spans, before, after, strict=True)
        ]
        crop = [pa - pb for pb, pa in zip(before, after, strict=True)]
        output_padding = [0 if x else r for r, x in zip(rest, crop, strict=True)]
        spread = _CONV_TRANSPOSE[dims](c, w, None, strides, before, output_padding, groups, dilations)
        for dim, extra in enumerate(crop):
            if extra:  # padding="same" with an even kernel pads one more behind than before
                spread = spread.narrow(2 + dim, 0, input_size[dim])
        return spread

    return LinearMap(weight, _broadcast(bias, weight.ndim), forward, adjoint)


_FEW_CHANNELS = 4
"""Up to so many channels, those of images, a CPU is faster by phases: 2.5 times for the stem of a ResNet."""


def strided_conv_adjoint(
    c: Tensor, weight: Tensor, *, stride: int, padding: Sequence[int], input_size: Sequence[int]
) -> Tensor:
    """The adjoint of a convolution with a stride, as a convolution without one.

    Input cell ``m * s + r`` takes from kernel cells ``a * s + r`` alone: each of the ``s * s`` phases ``r`` is a
    convolution with every s-th kernel cell, all of them together one convolution and a pixel shuffle.

    Args:
        c: Shape (P, C_out, h, w).
        weight: Shape (C_out, C_in, *kernel).
        stride: The stride s of both axes.
        padding: The padding of each axis.
        input_size: Height and width of the input.
    """
    cells = [-(-k // stride) for k in weight.shape[2:]]
    height, width = (n * stride - k for n, k in zip(cells, weight.shape[2:], strict=True))
    split = F.pad(weight, (0, width, 0, height)).unflatten(3, (cells[1], stride)).unflatten(2, (cells[0], stride))
    phases = split.permute(1, 3, 5, 0, 2, 4).flatten(0, 2).flip(2, 3)  # (C_in * s * s, C_out, *cells)
    shuffled = F.pixel_shuffle(F.conv2d(c, phases, None, 1, [n - 1 for n in cells]), stride)
    # Rows that the last stride did not reach get nothing.
    short = [n + p - m for n, p, m in zip(input_size, padding, shuffled.shape[2:], strict=True)]
    if any(n > 0 for n in short):
        shuffled = F.pad(shuffled, (0, max(short[1], 0), 0, max(short[0], 0)))
    return shuffled[:, :, padding[0] : padding[0] + input_size[0], padding[1] : padding[1] + input_size[1]]


def conv_transpose(
    weight: Tensor,
    bias: Tensor | None,
    *,
    input_size: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> LinearMap:
    """The linear map of a transposed convolution in 1, 2 or 3 dimensions.

    Args:
        weight: Shape (C_in, C_out / groups, *kernel).
        bias: Shape (C_out,), or broadcasting against (N, C_out, *out), or ``None``.
        input_size: Spatial size of the input.
        stride: As in ``torch.nn.functional.conv_transpose2d``.
        padding: As there.
        output_padding: As there.
        dilation: As there.
        groups: As there.
    """
    dims = weight.ndim - 2

    def forward(a: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        return _plus(_CONV_TRANSPOSE[dims](a, w, None, stride, padding, output_padding, groups, dilation), b)

    def adjoint(c: Tensor, w: Tensor | None) -> Tensor:
        gathered = _CONV[dims](channels_last(c), w, None, stride, padding, dilation, groups)
        for dim, n in enumerate(input_size):  # an output padding as wide as the stride reaches one cell further
            gathered = gathered.narrow(2 + dim, 0, n)
        return gathered

    return LinearMap(weight, _broadcast(bias, weight.ndim), forward, adjoint)


def linear(weight: Tensor, bias: Tensor | None, *, axis: int = 0) -> LinearMap:
    """The linear map of ``torch.nn.functional.linear``; weight of shape (C_out, C_in), batch axis ``axis``."""

    def forward(a: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        assert w is not None
        return F.linear(a, w, b)

    def adjoint(c: Tensor, w: Tensor | None) -> Tensor:
        assert w is not None
        return F.linear(c, w.t())

    return LinearMap(weight, bias, forward, adjoint, axis, axis)


def scale(weight: Tensor, bias: Tensor | None, ndim: int) -> LinearMap:
    """The linear map of a BatchNorm that stands alone: one factor and shift per channel, axis 1 of ``ndim``."""

    def apply(a: Tensor, w: Tensor | None) -> Tensor:
        assert w is not None
        return a * per_channel(w, ndim)

    return LinearMap(weight, _broadcast(bias, ndim), lambda a, w, b: _plus(apply(a, w), b), apply)


def avg_pool(run: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> LinearMap:
    """The linear map of an average pool: no weight, no bias."""
    return LinearMap(None, None, lambda a, w, b: run(a), lambda c, w: adjoint(c))


def _broadcast(bias: Tensor | None, ndim: int) -> Tensor | None:
    return per_channel(bias, ndim) if bias is not None and bias.ndim == 1 else bias


def avg_pool_adjoint(
    c: Tensor,
    *,
    input_size: Sequence[int],
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Each output's coefficient is spread evenly over its window; overlapping windows add up. 1, 2 or 3 axes."""
    dims = len(input_size)
    kernel = per_dim(kernel_size, dims)
    strides = kernel if stride is None or stride == [] else per_dim(stride, dims)
    paddings = per_dim(padding, dims)
    size = list(input_size)
    if dims == 1:  # torch has no such backward op: a plane of one row
        c, size, kernel, strides, paddings = c.unsqueeze(-2), [1, *size], [1, *kernel], [1, *strides], [0, *paddings]
    like = c.new_empty(1).expand(*c.shape[:2], *size)
    backward = torch.ops.aten.avg_pool3d_backward if dims == 3 else torch.ops.aten.avg_pool2d_backward
    spread: Tensor = backward(c, like, kernel, strides, paddings, ceil_mode, count_include_pad, divisor_override)
    return spread.squeeze(-2) if dims == 1 else spread


def adaptive_avg_pool_adjoint(c: Tensor, input_size: Sequence[int]) -> Tensor:
    """Each output's coefficient is spread evenly over its (uneven) window."""
    count = 1
    for n in input_size:
        count = count * n
    if all(n == 1 for n in c.shape[2:]):
        return (c / count).expand(*c.shape[:2], *input_size)
    # The pool is separable: one averaging matrix per axis.
    for axis, size in enumerate(input_size, start=2):
        cells = torch.arange(c.shape[axis], device=c.device)
        pixels = torch.arange(size, device=c.device)
        start = (cells * size) // c.shape[axis]
        stop = ((cells + 1) * size + c.shape[axis] - 1) // c.shape[axis]
        inside = (pixels >= start[:, None]) & (pixels < stop[:, None])
        matrix = inside.to(c.dtype) / (stop - start)[:, None].to(c.dtype)
        c = torch.movedim(torch.movedim(c, axis, -1) @ matrix, -1, axis)
    return c


def max_pool_adjoint(c: Tensor, winners: Tensor, input_size: Sequence[int]) -> Tensor:
    """Each output's coefficient goes to the winner of its window, added up where windows overlap.

    Args:
        c: Shape (K*S, C, *out).
        winners: Flat position of each winner in its input plane, shape (S, C, *out).
        input_size: Spatial size of the input.
    """
    plane = 1
    for n in input_size:
        plane = plane * n
    target, share = winners.flatten(2), c.flatten(2)
    cells = 3
    if c.ndim == 4 and c.is_contiguous(memory_format=torch.channels_last):
        target, share, cells = target.transpose(1, 2).contiguous(), share.transpose(1, 2), 2  # as it lies in memory
    share = share.unflatten(0, (-1, winners.shape[0]))
    shape = [*share.shape[:cells], plane, *share.shape[cells + 1 :]]
    # The winners are the same for every class: an expanded view, no copy.
    flat = c.new_zeros(shape).scatter_add_(cells, target.expand(share.shape), share).flatten(0, 1)
    spread: Tensor = (flat if cells == 3 else flat.transpose(1, 2)).unflatten(2, tuple(input_size))
    return spread


def unbroadcast(c: Tensor, shape: Sequence[int], axis: int) -> Tensor:
    """Sum a coefficient over the axes along which an operand of ``shape`` was broadcast.

    Args:
        c: Coefficient at the output.
        shape: Shape of the operand as recorded.
        axis: Batch axis of the operand: its length differs by the classes, not by broadcasting.
    """
    extra = c.ndim - len(shape)
    if extra > 0:
        c = c.sum(dim=tuple(range(extra)))
    axes = tuple(i for i, n in enumerate(shape) if i != axis and n == 1 and c.shape[i] != 1)
    return c.sum(dim=axes, keepdim=True) if axes else c
