"""Every operation that has a relevance rule: which calls it stands for, how it runs, how relevance passes it.

An operation is declared once, as an ``Op`` of its family's file. Everything here is made of these declarations.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.lrp.core.graph import CONSTANT, UNSUPPORTED, Names, Op
from tw_seg.lrp.ops import (
    activation,
    arithmetic,
    attention,
    batch_norm,
    custom,
    dropout,
    indexing,
    interpolate,
    linear,
    norm,
    pool,
    shape,
    statistics,
)

FAMILIES = (
    linear, batch_norm, pool, interpolate, activation, dropout, arithmetic, attention, norm, statistics,
    shape, indexing, custom,
)  # fmt: skip

OPS: dict[str, Op] = {op.kind: op for family in FAMILIES for op in family.OPS}
"""Kind -> operation."""

MODULES: dict[type[nn.Module], Op] = {module: op for op in OPS.values() for module in op.modules}
"""Leaf module class -> operation."""

FUNCTIONS: dict[Callable[..., Any] | str, tuple[Op, Names]] = {
    function: (op, names) for op in OPS.values() for function, names in op.functions.items()
}
"""Function or method name -> operation and the names of its positional arguments."""


def _find_in_place_twins() -> dict[Callable[..., Any] | str, Callable[..., Any] | str]:
    """By torch's naming ``relu_`` is ``relu``, written into its first argument."""
    twins: dict[Callable[..., Any] | str, Callable[..., Any] | str] = {}
    for function in FUNCTIONS:
        if isinstance(function, str):
            if callable(getattr(Tensor, function + "_", None)):
                twins[function + "_"] = function
            continue
        for namespace in (torch, F):
            if callable(twin := vars(namespace).get(f"{getattr(function, '__name__', '')}_")):
                twins.setdefault(twin, function)
    return twins


IN_PLACE = _find_in_place_twins()
"""Function or method that changes its first argument -> the same that returns a new tensor."""

KIND_GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(op.kind for op in OPS.values() if op.group == group)
    for group in dict.fromkeys(op.group for op in OPS.values() if op.group is not None)
}
"""Name of a group -> the kinds of calls in it."""


def find_op(kind: str) -> Op:
    """The operation of a kind, that of calls without a rule among them."""
    return {CONSTANT.kind: CONSTANT, UNSUPPORTED.kind: UNSUPPORTED}.get(kind) or OPS[kind]


# There is one object for each operation, so it is copied and pickled by its kind; it holds functions that pickle cannot
# find. This is the one side effect of an import in the package: a method of Op, in core, would have to find operations
# in this file, which core must not import. Only Op is concerned, and whoever has an operation has imported this.
copyreg.pickle(Op, lambda op: (find_op, (op.kind,)))
