"""Functions of other libraries that a classifier calls, made to record themselves while it is traced."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import fx, nn


@contextmanager
def let_einops_record(proxies: Sequence[type[fx.Proxy]]) -> Iterator[None]:
    """Let einops, where the classifier's code has imported it, treat traced values as tensors of torch.

    einops looks its backend up by the type of a value; it is that of tensors, whose calls record themselves.
    """
    backends = sys.modules.get("einops._backends")
    known = getattr(backends, "_type2backend", None)
    if backends is None or known is None:
        yield
        return
    backend = backends.get_backend(torch.empty(0))
    known.update(dict.fromkeys(proxies, backend))
    try:
        yield
    finally:
        for proxy in proxies:
            known.pop(proxy, None)


def find_einops_forward(kind: type[nn.Module]) -> Callable[..., Any] | None:
    """The forward of a layer of einops as a call of its function: the layer looks its recipe up by a number."""
    layers, einops = sys.modules.get("einops.layers.torch"), sys.modules.get("einops")
    if layers is None or einops is None:
        return None
    if kind is layers.Rearrange:
        return lambda module, input: einops.rearrange(input, module.pattern, **module.axes_lengths)
    if kind is layers.Reduce:
        return lambda module, input: einops.reduce(input, module.pattern, module.reduction, **module.axes_lengths)
    return None


@contextmanager
def record_functions(functions: Sequence[Any], record: Callable[..., Any]) -> Iterator[None]:
    """Let Python functions that have a custom rule record themselves, wherever a module has them by name.

    Args:
        functions: The keys of custom rules; those of torch record themselves.
        record: ``record(function, args, kwargs)`` is what a call gives instead of the function's own value, or
            ``NotImplemented`` where none of its arguments is traced.
    """
    wanted = [f for f in functions if isinstance(f, FunctionType) and f.__module__.partition(".")[0] != "torch"]
    replaced: list[tuple[ModuleType, str, Any]] = []
    if wanted:
        recorders = {id(f): _recorder(f, record) for f in wanted}
        for module in list(sys.modules.values()):
            # Most modules have none. Looked at one by one, their attributes took half the time of a small trace.
            if isinstance(module, ModuleType) and not recorders.keys().isdisjoint(map(id, list(vars(module).values()))):
                found = [(name, value) for name, value in list(vars(module).items()) if id(value) in recorders]
                replaced.extend((module, name, value) for name, value in found)
        for module, name, value in replaced:
            setattr(module, name, recorders[id(value)])
    try:
        yield
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)


def _recorder(function: Callable[..., Any], record: Callable[..., Any]) -> Callable[..., Any]:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        result = record(function, args, kwargs)
        return function(*args, **kwargs) if result is NotImplemented else result

    return recorded
