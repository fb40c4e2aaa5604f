"""Every operation that has a relevance rule: which calls it stands for, how it runs, how relevance passes it."""

from __future__ import annotations

from torch import nn

from tw_seg.lrp.ops import activation, arithmetic, attention, custom, linear, norm, pool, shape
from tw_seg.lrp.ops.op import Functions, Op

_FAMILIES = (linear, activation, arithmetic, attention, shape, norm, pool, custom)

MODULES: dict[type[nn.Module], str] = {}
"""Leaf module class -> kind of call."""

FUNCTIONS: Functions = {}
"""Function or method name -> kind of call and the names of its positional arguments."""

OPS: dict[str, Op] = {}
"""Kind of call -> its operation."""

for _family in _FAMILIES:
    MODULES.update(getattr(_family, "MODULES", {}))
    FUNCTIONS.update(_family.FUNCTIONS)
    OPS.update(_family.OPS)

__all__ = ["FUNCTIONS", "MODULES", "OPS"]
