"""What a trace was made from: a classifier that is built otherwise later is traced again."""

from __future__ import annotations

from functools import cache
from types import FunctionType
from typing import Any, cast

import torch
from torch import nn

from tw_seg.lrp.trace.hooks import find_keys
from tw_seg.lrp.trace.trial import PLAIN


class BuildState:
    """The modules of a classifier, in what a trace depends on beside their training flags.

    These are their order, classes, hooks and replaced methods, the type of their numbers, and the settings of torch's
    own layers. Attributes of other modules are not looked at: many change in every step, as counters do.
    """

    def __init__(self, classifier: nn.Module) -> None:
        """Note the present state."""
        self.modules = list(classifier.modules())
        self._hooks = find_keys(self.modules)
        self._parts = [(m, type(m), tuple(m._modules.values()), find_replaced(m)) for m in self.modules]
        own = [m for m in self.modules if type(m).__module__.startswith("torch.nn.")]
        self._settings = [(vars(m), _list_settings(m)) for m in own]
        self._dtype = _find_dtype(self.modules)

    def holds(self) -> bool:
        """Whether it is the same now."""
        return (
            all(
                type(m) is kind and tuple(m._modules.values()) == children and find_replaced(m) == replaced
                for m, kind, children, replaced in self._parts
            )
            and all(
                attributes.get(name) == value for attributes, settings in self._settings for name, value in settings
            )
            and _find_dtype(self.modules) == self._dtype
            and find_keys(self.modules) == self._hooks
        )

    @property
    def has_hooks(self) -> bool:
        """Whether there are hooks."""
        return bool(self._hooks)


def find_replaced(module: nn.Module) -> dict[str, Any]:
    """What a module has itself in the place of methods of its class, by name: its class does not say what it computes.

    Methods that every module has, such as ``train``, are not looked at.
    """
    own, kind = vars(module), cast(Any, type(module))
    return {name: own[name] for name in _list_methods(kind) if name in own and callable(own[name])}


@cache
def _list_methods(kind: type[nn.Module]) -> frozenset[str]:
    bases = (base for base in kind.__mro__ if base is not nn.Module)
    return frozenset(name for base in bases for name, value in vars(base).items() if isinstance(value, FunctionType))


def find_mode(modules: list[nn.Module]) -> bool | tuple[bool, ...]:
    """The training flag of a classifier; where its modules differ, as where a part is frozen, the flags of all."""
    flags = [m.training for m in modules]
    return flags[0] if flags.count(flags[0]) == len(flags) else tuple(flags)


def _list_settings(module: nn.Module) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(module).items() if _is_setting(name, value)]


def _is_setting(name: str, value: Any) -> bool:
    return name != "training" and type(value) in PLAIN and value == value  # not NaN


def _find_dtype(modules: list[nn.Module]) -> torch.dtype | None:
    tensors = (t for m in modules for t in m._parameters.values() if t is not None and t.is_floating_point())
    first = next(tensors, None)
    return None if first is None else first.dtype
