"""Functions and methods of torch that are a line or two of others: the tracer records those lines in their place.

They compute what torch computes. What a line holds constant (``hold``) carries no relevance, as the statistics of a
normalisation do; what it only selects by is computed from detached values.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tw_seg.errors import TraceError
from tw_seg.lrp.ops.constants import hold_constant

Pair = namedtuple("Pair", ["values", "indices"])
"""What ``min``, ``topk`` and ``sort`` return."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def hold(value: Any) -> Any:
    """A traced value that carries no relevance from here on; gradients pass it."""
    if not isinstance(value, fx.Proxy):
        return value
    return value.tracer.create_proxy("call_function", hold_constant, (value,), {})


def _record(function: Callable[..., Any], value: fx.Proxy, *args: Any, **kwargs: Any) -> Any:
    """A call as it is, also of a function that is written in others."""
    return fx.Tracer.create_proxy(value.tracer, "call_function", function, (value, *args), kwargs)


def _is_number(value: Any) -> bool:
    """Whether an argument is one whole number, not several."""
    if isinstance(value, fx.Proxy):
        tracer: Any = value.tracer
        value = tracer.example(value)
    return isinstance(value, int)


# Sums and products


def _rsub(input: Any, other: Any, *, alpha: float = 1) -> Any:
    return other - input * alpha


def _lerp(input: Any, end: Any, weight: Any) -> Any:
    return input * (1 - weight) + end * weight


def _addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Any:
    return input + tensor1 / tensor2 * value


def _add_product(input: Any, first: Any, second: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """``addmm``, ``baddbmm``, ``addmv``."""
    product = torch.matmul(first, second)
    product = product if alpha == 1 else product * alpha
    if beta == 0:
        return product
    return (input if beta == 1 else input * beta) + product


def _mv(input: Any, vec: Any) -> Any:
    return torch.matmul(input, vec.unsqueeze(-1)).squeeze(-1)


def _addmv(input: Any, mat: Any, vec: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    return _add_product(input, mat, vec.unsqueeze(-1), beta=0, alpha=alpha).squeeze(-1) + input * beta


def _multi_dot(tensors: Sequence[Any]) -> Any:
    result = tensors[0]
    for matrix in tensors[1:]:
        result = torch.matmul(result, matrix)
    return result


def _chain_matmul(*matrices: Any) -> Any:
    return _multi_dot(matrices)


def _tensordot(a: Any, b: Any, dims: Any = 2, out: None = None) -> Any:
    left, right = a.dim(), b.dim()
    if _is_number(dims):
        dims = (range(left - dims, left), range(dims))
    first, second = ([d % n for d in ([one] if isinstance(one, int) else one)]
                     for one, n in zip(dims, (left, right), strict=True))  # fmt: skip
    names = list(_LETTERS[:left])
    other = list(_LETTERS[left : left + right])
    for i, j in zip(first, second, strict=True):
        other[j] = names[i]
    kept = [names[d] for d in range(left) if d not in first] + [other[d] for d in range(right) if d not in second]
    return torch.einsum(f"{''.join(names)},{''.join(other)}->{''.join(kept)}", a, b)


def _inner(input: Any, other: Any) -> Any:
    return _tensordot(input, other, ([-1], [-1]))


def _bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
    product = torch.einsum("...i,kij,...j->...k", input1, weight, input2)
    return product if bias is None else product + bias


def _cosine_similarity(x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    """Both lengths are held constant, as those of every normalisation are."""
    norms = [torch.linalg.vector_norm(x, 2, dim).clamp(min=eps) for x in (x1, x2)]
    return (x1 * x2).sum(dim) / hold(norms[0] * norms[1])


# Places


def _fliplr(input: Any) -> Any:
    return torch.flip(input, [1])


def _flipud(input: Any) -> Any:
    return torch.flip(input, [0])


def _rot90(input: Any, k: int = 1, dims: Sequence[int] = (0, 1)) -> Any:
    first, second = dims
    if k % 2:
        return torch.flip(torch.transpose(input, first, second), [first if k % 4 == 1 else second])
    return torch.flip(input, [first, second]) if k % 4 else input.clone()


def _at_least(value: Any, axes: int) -> Any:
    """``torch.atleast_1d``, ``atleast_2d``, ``atleast_3d`` of one tensor."""
    ndim = value.dim()
    if axes > 1 and ndim <= 1:
        value = value.reshape(1, -1)
        ndim = 2
    return value.unsqueeze(-1) if axes == 3 and ndim == 2 else value


def _join(axes: int, dim: int) -> Callable[..., Any]:
    def join(tensors: Sequence[Any]) -> Any:
        parts = [_at_least(t, axes) for t in tensors]
        return torch.cat(parts, 0 if axes == 1 and parts[0].dim() == 1 else dim)

    return join


def _cut(dim: int) -> Callable[..., Any]:
    def cut(input: Any, indices_or_sections: Any) -> Any:
        return torch.tensor_split(input, indices_or_sections, dim)

    return cut


def _square_of(p: float, value: Any) -> Any:
    return value.square() if p == 2 else value.pow(p)


# Choices


def _select_by(indices: Callable[..., Any]) -> Callable[..., Any]:
    """A function that returns values from along an axis and where they came from: ``(values, indices)``."""

    def select(input: Any, *args: Any, **kwargs: Any) -> Pair:
        places, dim = indices(input.detach(), *args, **kwargs)
        return Pair(torch.gather(input, dim, places), places)

    return select


def _topk_places(x: Any, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Any, int]:
    return _record(torch.topk, x, k, dim, largest, sorted)[1], dim


def _sort_places(x: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> tuple[Any, int]:
    return _record(torch.sort, x, dim=dim, descending=descending, stable=stable)[1], dim


def _kth_places(x: Any, k: Any, dim: int = -1, keepdim: bool = False) -> tuple[Any, int]:
    return _record(torch.kthvalue, x, k, dim, True)[1], dim


def _median_places(x: Any, dim: int, keepdim: bool = False) -> tuple[Any, int]:
    return _record(torch.median, x, dim, True)[1], dim


def _min_places(x: Any, dim: int, keepdim: bool = False) -> tuple[Any, int]:
    return _record(torch.min, x, dim, True)[1], dim


def _drop_axis(select: Callable[..., Pair], position: int, default: int | None = None) -> Callable[..., Pair]:
    """Likewise of one value, whose axis goes unless ``keepdim``, the argument at ``position`` after the input."""

    def reduce(input: Any, *args: Any, **kwargs: Any) -> Pair:
        keepdim = kwargs.get("keepdim", args[position] if len(args) > position else False)
        dim = kwargs.get("dim", args[position - 1] if len(args) >= position else default)
        if dim is None:
            raise TraceError("a median or minimum over every axis mixes the images of a batch: name an axis")
        pair = select(input, *args, **kwargs)
        return pair if keepdim else Pair(pair.values.squeeze(dim), pair.indices.squeeze(dim))

    return reduce


_min_along = _drop_axis(_select_by(_min_places), 1)


def _min(input: Any, *args: Any, **kwargs: Any) -> Any:
    """Of two tensors, or along an axis."""
    other: Any = kwargs.get("other", args[0] if args else None)
    if isinstance(other, (Tensor, fx.Proxy)):
        pair: Any = (input, other)
        return torch.minimum(*pair)
    return _min_along(input, *args, **kwargs)


def _amin(input: Any, dim: Any = (), keepdim: bool = False) -> Any:
    return -torch.amax(-input, dim, keepdim)


def _nan_to_num(input: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Any:
    fixed = _record(torch.nan_to_num, input.detach(), nan, posinf, neginf)
    return torch.where(torch.isfinite(input.detach()), input, fixed)


def _take_along_dim(input: Any, indices: Any, dim: int) -> Any:
    return torch.gather(input, dim, indices)


def _log_softmax(input: Any, dim: int, *_: Any, **__: Any) -> Any:
    return input - torch.logsumexp(input, dim, keepdim=True)


def _var_mean(statistic: Callable[..., Any]) -> Callable[..., Any]:
    def both(input: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        dim = kwargs.get("dim", args[0] if args else None)
        keepdim = kwargs.get("keepdim", args[2] if len(args) > 2 else False)
        return statistic(input, *args, **kwargs), torch.mean(input, dim, keepdim)

    return both


# Elementwise functions


def _hardshrink(input: Any, lambd: float = 0.5) -> Any:
    return torch.where(input.detach().abs() > lambd, input, 0.0)


def _softshrink(input: Any, lambd: float = 0.5) -> Any:
    signs = torch.sign(input.detach())
    return torch.where(input.detach().abs() > lambd, input - signs * lambd, 0.0)


def _tanhshrink(input: Any) -> Any:
    return input - torch.tanh(input)


def _softsign(input: Any) -> Any:
    return input / (hold(input).abs() + 1)


def _threshold(input: Any, threshold: float, value: float, inplace: bool = False) -> Any:
    return torch.where(input.detach() > threshold, input, value)


# Pools and normalisations


def _lp_pool(pool: Callable[..., Any], dims: int) -> Callable[..., Any]:
    """Relevance goes to the cells of a window in proportion to their power; the root is a factor held constant."""

    def pooled(input: Any, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> Any:
        kernel = [kernel_size] * dims if _is_number(kernel_size) else list(kernel_size)
        mean = _record(pool, _square_of(norm_type, input), kernel, stride, 0, ceil_mode)
        held = hold(mean).abs() * math.prod(kernel)
        positive = held > 0
        root = torch.where(positive, held, 1.0).pow(1 / norm_type - 1) * math.prod(kernel)
        return mean * torch.where(positive, root, 0.0)

    return pooled


def _local_response_norm(input: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Any:
    """The scale, made of the channels around, is held constant."""
    square = F.pad(hold(input).square().flatten(2).unsqueeze(1), (0, 0, size // 2, (size - 1) // 2))
    mean = F.avg_pool2d(square, (size, 1), stride=1).squeeze(1).reshape(input.shape)
    return input / mean.mul(alpha).add(k).pow(beta)


def _pool_with_indices(pool: str) -> Callable[..., Any]:
    with_indices = getattr(F, f"{pool}_with_indices")
    plain = getattr(F, pool)

    def pooled(input: Any, *args: Any, return_indices: bool = True, **kwargs: Any) -> Any:
        return plain(input, *args, **kwargs), _record(with_indices, input.detach(), *args, **kwargs)[1]

    return pooled


def _max_pool_module(pool: str) -> Callable[..., Any]:
    def pooled(module: Any, input: Any) -> Any:
        settings = (module.kernel_size, module.stride, module.padding, module.dilation)
        return _pool_with_indices(pool)(input, *settings, ceil_mode=module.ceil_mode)

    return pooled


def _padded_convolution(convolution: Callable[..., Any]) -> Callable[..., Any]:
    """A convolution that pads by reflection, by the edge or in a circle: a pad and a convolution without padding."""

    def convolved(module: Any, input: Any) -> Any:
        padded = F.pad(input, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        return convolution(padded, module.weight, module.bias, module.stride, 0, module.dilation, module.groups)

    return convolved


def _every(namespaces: Sequence[Any], word: str) -> list[Any]:
    functions = [vars(namespace).get(word) for namespace in namespaces]
    return [f for f in functions if callable(f)] + [word] * callable(getattr(Tensor, word, None))


_NAMESPACES = (torch, F, torch.linalg, torch.special)

_WORDS: dict[str, Callable[..., Any]] = {
    "rsub": _rsub, "lerp": _lerp, "addcdiv": _addcdiv, "addmm": _add_product, "baddbmm": _add_product,
    "addmv": _addmv, "mv": _mv, "multi_dot": _multi_dot, "chain_matmul": _chain_matmul, "tensordot": _tensordot,
    "inner": _inner, "bilinear": _bilinear, "cosine_similarity": _cosine_similarity,
    "fliplr": _fliplr, "flipud": _flipud, "rot90": _rot90,
    "hstack": _join(1, 1), "vstack": _join(2, 0), "row_stack": _join(2, 0), "dstack": _join(3, 2),
    "hsplit": _cut(1), "vsplit": _cut(0), "dsplit": _cut(2),
    "topk": _select_by(_topk_places), "sort": _select_by(_sort_places),
    "kthvalue": _drop_axis(_select_by(_kth_places), 2, -1), "median": _drop_axis(_select_by(_median_places), 1),
    "min": _min, "amin": _amin, "nan_to_num": _nan_to_num, "take_along_dim": _take_along_dim,
    "log_softmax": _log_softmax, "var_mean": _var_mean(torch.var), "std_mean": _var_mean(torch.std),
    "hardshrink": _hardshrink, "softshrink": _softshrink, "tanhshrink": _tanhshrink, "softsign": _softsign,
    "threshold": _threshold, "local_response_norm": _local_response_norm,
    "lp_pool1d": _lp_pool(F.avg_pool1d, 1), "lp_pool2d": _lp_pool(F.avg_pool2d, 2),
    "lp_pool3d": _lp_pool(F.avg_pool3d, 3),
    **{f"{name}_with_indices": _pool_with_indices(name)
       for dims in (1, 2, 3) for name in (f"max_pool{dims}d", f"adaptive_max_pool{dims}d")},
}  # fmt: skip


def _write_into(rewritten: Callable[..., Any]) -> Callable[..., Any]:
    """The in-place twin: the result is written into the first argument."""

    def written(input: Any, *args: Any, **kwargs: Any) -> Any:
        input[...] = rewritten(input, *args, **kwargs)
        return input

    return written


REWRITTEN_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **{form: new for word, new in _WORDS.items() for form in _every(_NAMESPACES, word)},
    **{form: _write_into(new) for word, new in _WORDS.items() for form in _every(_NAMESPACES, f"{word}_")},
}
"""Function of torch, or name of a method -> the same in other calls."""

REWRITTEN_MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    nn.LogSoftmax: lambda module, input: _log_softmax(input, module.dim),
    nn.CosineSimilarity: lambda module, x1, x2: _cosine_similarity(x1, x2, module.dim, module.eps),
    nn.Bilinear: lambda module, x1, x2: _bilinear(x1, x2, module.weight, module.bias),
    nn.Hardshrink: lambda module, input: _hardshrink(input, module.lambd),
    nn.Softshrink: lambda module, input: _softshrink(input, module.lambd),
    nn.Tanhshrink: lambda module, input: _tanhshrink(input),
    nn.Softsign: lambda module, input: _softsign(input),
    nn.Threshold: lambda module, input: _threshold(input, module.threshold, module.value),
    nn.LocalResponseNorm: lambda module, input: _local_response_norm(
        input, module.size, module.alpha, module.beta, module.k
    ),
    **{
        getattr(nn, f"LPPool{dims}d"): lambda module, input, dims=dims: _WORDS[f"lp_pool{dims}d"](
            input, module.norm_type, module.kernel_size, module.stride, module.ceil_mode
        )
        for dims in (1, 2, 3)
        if hasattr(nn, f"LPPool{dims}d")
    },
}
"""Module class of torch -> its forward in other calls."""

_MAX_POOLS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MaxPool1d: _max_pool_module("max_pool1d"),
    nn.MaxPool2d: _max_pool_module("max_pool2d"),
    nn.MaxPool3d: _max_pool_module("max_pool3d"),
    **{
        module: lambda module, input, pool=pool: _pool_with_indices(pool)(input, module.output_size)
        for module, pool in (
            (nn.AdaptiveMaxPool1d, "adaptive_max_pool1d"),
            (nn.AdaptiveMaxPool2d, "adaptive_max_pool2d"),
            (nn.AdaptiveMaxPool3d, "adaptive_max_pool3d"),
        )
    },
}
_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Conv1d: _padded_convolution(F.conv1d),
    nn.Conv2d: _padded_convolution(F.conv2d),
    nn.Conv3d: _padded_convolution(F.conv3d),
}


def rewrite_module(kind: type[nn.Module], module: nn.Module) -> Callable[..., Any] | None:
    """How a module's forward is written in other calls, where it is: some only with some options."""
    if getattr(module, "return_indices", False):
        return _MAX_POOLS.get(kind)
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return _CONVOLUTIONS.get(kind)
    return REWRITTEN_MODULES.get(kind)
