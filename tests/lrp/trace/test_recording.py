"""Torch's functions and methods record themselves while a classifier is traced, and only then."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.oracles.nets import Calls, conv
from tw_seg.lrp.core.graph import Graph
from tw_seg.lrp.trace.build import trace


def graph_of(function, **modules) -> Graph:
    return trace(Calls(function, **modules), False)


def test_tracing_leaves_torch_as_it_was() -> None:
    """While a forward is traced, torch's functions and methods are replaced; what Python notes of types stays, too."""
    namespaces = (torch, F, torch.linalg, torch.Tensor, torch.autocast)
    before = [dict(vars(namespace)) for namespace in namespaces]
    graph_of(lambda s, x: s.c(x)[:, torch.arange(4)], c=conv())
    for namespace, names in zip(namespaces, before, strict=True):
        assert vars(namespace).keys() == names.keys()
        assert all(vars(namespace)[name] is value for name, value in names.items())
    scalars = list(torch.tensor([2, 0]))
    assert torch.arange(6).view(2, 3)[:, scalars].tolist() == [[2, 0], [5, 3]]  # raises if a tensor is a sequence
