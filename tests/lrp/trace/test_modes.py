"""Arguments that are a module's training flag."""

from __future__ import annotations

import torch.nn.functional as F

from tests.lrp.trace.test_build import Counts
from tests.oracles.nets import Calls, conv
from tw_seg.lrp.trace.build import trace
from tw_seg.lrp.trace.modes import follow_modes


def test_flags_follow_their_module() -> None:
    net = Calls(lambda s, x: s.n(s.c(x)), c=conv(), n=Counts())
    evaluation, training = follow_modes(trace(net, False), trace(net, True))
    for graph in (evaluation, training):
        (norm,) = [c for c in graph.calls if c.kind == "batch_norm"]
        assert norm.options["training"].path == "n"
    fixed = Calls(lambda s, x: F.dropout(s.c(x), 0.5, True), c=conv())
    for graph in follow_modes(trace(fixed, False), trace(fixed, True)):
        assert [c.options["training"] for c in graph.calls if c.kind == "dropout"] == [True]
