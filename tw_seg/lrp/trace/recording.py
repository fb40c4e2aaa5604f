"""Torch's functions and methods, made to record themselves while a classifier is traced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

_FACTORIES = (
    "arange", "as_tensor", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn",
    "randperm", "scalar_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
)  # fmt: skip


class Recording(Protocol):
    """What a tracer must have.

    Attributes:
        running: Whether calls are run on examples now: nothing is recorded then.
    """

    running: bool

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, /) -> Any:
        """Record a call."""

    def constant(self, value: Any) -> Any:
        """A value that is no tensor."""


@cache
def _list_functions() -> tuple[tuple[Any, str, bool], ...]:
    """Namespace and name of each of torch's own functions, and whether it makes a tensor out of none."""
    found = []
    for namespace in (torch, F, torch.linalg, torch.fft, torch.special):
        for name, function in vars(namespace).items():
            dispatch = name.startswith("_") or "torch_function" in name
            factory = namespace is torch and name in _FACTORIES
            if factory or (isinstance(function, BuiltinFunctionType) and not dispatch):
                found.append((namespace, name, factory))
    return tuple(found)


@cache
def _list_methods() -> tuple[str, ...]:
    methods = vars(torch._C.TensorBase).items()
    return tuple(name for name, m in methods if isinstance(m, MethodDescriptorType) and not name.startswith("_"))


@contextmanager
def record_torch(tracer: Recording) -> Iterator[None]:
    """Let torch's functions and methods record themselves before they look at their arguments.

    Their argument parsers ask a traced size for its number, which the graph would then hold for good, and do not
    take a traced device.
    """
    replaced: list[tuple[Any, str, Any]] = []
    for namespace, name, factory in _list_functions():
        function = vars(namespace)[name]
        if factory or isinstance(function, BuiltinFunctionType):
            replaced.append((namespace, name, _make_recorder("call_function", function, always=factory)))
    for name in _list_methods():  # of a tensor that is not traced itself
        if name not in vars(Tensor):
            method = vars(torch._C.TensorBase)[name]
            replaced.append((Tensor, name, _make_recorder("call_method", method)))
    enter = torch.autocast.__init__

    def enter_autocast(self: torch.autocast, device_type: Any, *args: Any, **kwargs: Any) -> None:
        enter(self, str(tracer.constant(device_type)), *args, **kwargs)

    replaced.append((torch.autocast, "__init__", enter_autocast))
    own = [vars(holder).get(name) for holder, name, _ in replaced]
    _tracers.append(tracer)
    try:
        for holder, name, new in replaced:
            setattr(holder, name, new)
        with _RecordedIndexing(tracer):
            yield
    finally:
        _tracers.pop()
        for (holder, name, _), old in zip(replaced, own, strict=True):
            if old is None:  # inherited
                delattr(holder, name)
            else:
                setattr(holder, name, old)


class _RecordedIndexing(TorchFunctionMode):
    """Records ``tensor[index]`` and ``tensor[index] = value`` of a tensor that is not traced itself.

    A mode, for ``Tensor.__getitem__`` cannot be replaced for a while: Python keeps taking every tensor for a sequence
    afterwards, and ``x[[tensor(0), tensor(1)]]`` raises for the rest of the process.
    """

    def __init__(self, tracer: Recording) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("__getitem__", "__setitem__") and not self.tracer.running and holds_proxy(args):
            return self.tracer.create_proxy("call_method", name, args, kwargs or {})
        return func(*args, **(kwargs or {}))


_tracers: list[Recording] = []
"""Those that trace now, the last one the innermost."""


@cache  # to make all of them takes longer than to trace a small net
def _make_recorder(kind: str, function: Any, *, always: bool = False) -> Callable[..., Any]:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        # None traces where a forward has kept the function, and its graph is run.
        if _tracers and not _tracers[-1].running and (always or holds_proxy(args) or holds_proxy(kwargs)):
            target = function if kind == "call_function" else function.__name__
            return _tracers[-1].create_proxy(kind, target, args, kwargs)
        return function(*args, **kwargs)

    recorded.__name__ = function.__name__
    return recorded


def holds_proxy(value: Any) -> bool:
    """Whether a traced value is among nested arguments."""
    if isinstance(value, (tuple, list)):
        return any(map(holds_proxy, value))
    if isinstance(value, dict):
        return any(map(holds_proxy, value.values()))
    if isinstance(value, slice):
        return any(map(holds_proxy, (value.start, value.stop, value.step)))
    return isinstance(value, fx.Proxy)
