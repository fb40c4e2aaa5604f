"""Adjoints of the linear pieces of a network, as plain forward ops on coefficients.

A *coefficient* tensor has shape (S, K, *activation): S samples, K classes, then the shape of one sample's
activation. Relevance is ``activation * coefficient``. Every function maps the coefficient at a call's output
to the coefficient at its input; classes are folded into the batch where an op wants a batch. All of it is
ordinary differentiable tensor code: no hooks, no ``autograd.grad``, no custom function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tw_seg.errors import UnsupportedOpError

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def fold(c: Tensor) -> Tensor:
    """(S, K, ...) -> (S*K, ...)."""
    return c.flatten(0, 1)


def unfold(c: Tensor, like: Tensor) -> Tensor:
    """(S*K, ...) -> (S, K, ...), with S and K of ``like``."""
    return c.reshape(*like.shape[:2], *c.shape[1:])


def stabilize(z: Tensor, epsilon: float) -> Tensor:
    """``z + epsilon * sign(z)`` with ``sign(0) = +1``."""
    return torch.where(z < 0, z - epsilon, z + epsilon)  # epsilon in the precision of z


@dataclass(frozen=True)
class LinearMap:
    """``z = W a + b`` of one call: what a rule needs to know of a convolution, linear layer or pool.

    Attributes:
        weight: The weight, with a following BatchNorm already multiplied in; ``None`` for a pool.
        bias: The bias, with a following BatchNorm folded in; ``None`` if there is none.
        forward: ``forward(a, weight, bias) -> z`` for activations of shape (B, ...).
        adjoint: ``adjoint(c, weight) -> W^T c`` for coefficients of shape (S, K, ...).
    """

    weight: Tensor | None
    bias: Tensor | None
    forward: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
    adjoint: Callable[[Tensor, Tensor | None], Tensor]


def per_dim(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """One number per spatial dimension."""
    return (value,) * dims if isinstance(value, int) else tuple(value)


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
        bias: Shape (C_out,) or ``None``.
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
        before = after = list(per_dim(padding, dims))

    def forward(a: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        return _CONV[dims](a, w, b, stride, padding, dilation, groups)

    def adjoint(c: Tensor, w: Tensor | None) -> Tensor:
        assert w is not None
        sizes = c.shape[3:]
        # The rows that the last stride did not reach: they exist in the input and get no coefficient.
        rest = [
            n + pb + pa - span - 1 - (m - 1) * s
            for n, m, s, span, pb, pa in zip(input_size, sizes, strides, spans, before, after, strict=True)
        ]
        crop = [pa - pb for pb, pa in zip(before, after, strict=True)]
        folded = _CONV_TRANSPOSE[dims](
            fold(c),
            w,
            None,
            strides,
            before,
            [0 if x else r for r, x in zip(rest, crop, strict=True)],
            groups,
            dilations,
        )
        for dim, extra in enumerate(crop):
            if extra:  # padding="same" with an even kernel pads one more behind than before
                folded = folded.narrow(2 + dim, 0, input_size[dim])
        return unfold(folded, c)

    return LinearMap(weight, bias, forward, adjoint)


def linear(weight: Tensor, bias: Tensor | None) -> LinearMap:
    """The linear map of ``torch.nn.functional.linear``; weight of shape (C_out, C_in)."""

    def forward(a: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        assert w is not None
        return F.linear(a, w, b)

    def adjoint(c: Tensor, w: Tensor | None) -> Tensor:
        assert w is not None
        return F.linear(c, w.t())

    return LinearMap(weight, bias, forward, adjoint)


def avg_pool(run: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> LinearMap:
    """The linear map of an average pool: no weight, no bias."""
    return LinearMap(None, None, lambda a, w, b: run(a), lambda c, w: adjoint(c))


def avg_pool2d_adjoint(
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
    """Each output's coefficient is spread evenly over its window; overlapping windows add up."""
    folded = fold(c)
    like = folded.new_empty(1).expand(*folded.shape[:2], *input_size)
    kernel = list(per_dim(kernel_size, 2))
    strides = kernel if stride is None or stride == [] else list(per_dim(stride, 2))
    spread = torch.ops.aten.avg_pool2d_backward(
        folded,
        like,
        kernel,
        strides,
        list(per_dim(padding, 2)),
        ceil_mode,
        count_include_pad,
        divisor_override,
    )
    return unfold(spread, c)


def adaptive_avg_pool2d_adjoint(c: Tensor, input_size: Sequence[int]) -> Tensor:
    """Each output's coefficient is spread evenly over its (uneven) window."""
    if c.shape[-2:] == (1, 1):
        return (c / (input_size[0] * input_size[1])).expand(*c.shape[:-2], *input_size)
    # The pool is separable: one averaging matrix per axis.
    for axis, size in ((-2, input_size[0]), (-1, input_size[1])):
        cells = torch.arange(c.shape[axis], device=c.device)
        pixels = torch.arange(size, device=c.device)
        start = (cells * size) // c.shape[axis]
        stop = ((cells + 1) * size + c.shape[axis] - 1) // c.shape[axis]
        inside = (pixels >= start[:, None]) & (pixels < stop[:, None])
        matrix = inside.to(c.dtype) / (stop - start)[:, None].to(c.dtype)
        c = torch.movedim(torch.movedim(c, axis, -1) @ matrix, -1, axis)
    return c


def mean_adjoint(c: Tensor, input_shape: Sequence[int], dims: Sequence[int], keepdim: bool) -> Tensor:
    """Adjoint of ``a.mean(dims)`` for a of shape (S, *input_shape); ``dims`` count the batch axis as 0."""
    rank = len(input_shape) + 1
    axes = sorted(d % rank for d in dims)
    if 0 in axes:
        raise UnsupportedOpError(f"mean over {tuple(dims)} of (N, ...) mixes the images of a batch")
    count = 1
    for axis in axes:
        count = count * input_shape[axis - 1]
        if not keepdim:
            c = c.unsqueeze(axis + 1)
    return (c / count).expand(*c.shape[:2], *input_shape)


def max_pool_adjoint(c: Tensor, indices: Tensor, input_size: Sequence[int]) -> Tensor:
    """Each output's coefficient goes to the winner of its window, added up where windows overlap.

    Args:
        c: Shape (S, K, C, *out).
        indices: Flat position of each winner in its input plane, shape (S, C, *out).
        input_size: Spatial size of the input.
    """
    spatial = len(input_size)
    plane = 1
    for n in input_size:
        plane = plane * n
    target = indices.flatten(-spatial).unsqueeze(1).expand(-1, c.shape[1], -1, -1)
    flat = c.new_zeros((*c.shape[:3], plane)).scatter_add(-1, target, c.flatten(-spatial))
    return flat.reshape(*flat.shape[:3], *input_size)


def unbroadcast(c: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum a coefficient (S, K, ...) over the axes along which an operand of ``shape`` was broadcast."""
    extra = c.ndim - 2 - len(shape)
    if extra > 0:
        c = c.sum(dim=tuple(range(2, 2 + extra)))
    axes = tuple(i + 2 for i, n in enumerate(shape) if n == 1 and c.shape[i + 2] != 1)
    return c.sum(dim=axes, keepdim=True) if axes else c
