"""BatchNorms alone, fused into the call before or after them, by running statistics and by those of the batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.lrp.ops.harness import SIZES, Case, check, spellings


def held(y, n):
    """A BatchNorm by the statistics of the batch, which are held constant."""
    dims = [0, *range(2, y.ndim)]
    shape = (1, -1, *[1] * (y.ndim - 2))
    mean, var = (v.detach().view(shape) for v in (y.mean(dims), y.var(dims, unbiased=False)))
    result = (y - mean) / torch.sqrt(var + n.eps)
    return result if n.weight is None else result * n.weight.view(shape) + n.bias.view(shape)


def norms(dims: int, module) -> dict[str, Case]:
    transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims]

    def modules():
        return {"n": module(4, eps=0.1), "t": transposed(4, 6, 3, 2, groups=2), "m": module(6)}

    def make(body, surrogate=None, training=False):
        return Case(body, surrogate, SIZES[dims], modules, training)

    return {
        f"batch_norm{dims}d fused": make(lambda s, x: s.n(s.a(x))),
        f"batch_norm{dims}d alone": make(lambda s, x: s.n(F.relu(s.a(x)))),
        f"batch_norm{dims}d first": make(lambda s, x: s.t(s.n(F.relu(s.a(x))))),
        f"batch_norm{dims}d grouped transposed": make(lambda s, x: F.relu(s.m(s.t(s.n(s.a(x)))))),
        f"batch_norm{dims}d training": make(
            lambda s, x: F.relu(s.m(s.t(F.relu(s.n(s.a(x)))))),
            lambda s, x: F.relu(held(s.t(F.relu(held(s.a(x), s.n))), s.m)),
            True,
        ),
        f"batch_norm{dims}d training alone": make(
            lambda s, x: s.t(s.n(F.relu(s.a(x)))), lambda s, x: s.t(held(F.relu(s.a(x)), s.n)), True
        ),
    }


NORMS = {
    **norms(1, nn.BatchNorm1d),
    **norms(2, nn.BatchNorm2d),
    **norms(3, nn.BatchNorm3d),
    **spellings(
        "batch_norm function",
        lambda s, x: F.batch_norm(s.a(x), s.n.running_mean, s.n.running_var),
        lambda s, x: F.batch_norm(s.a(x), s.n.running_mean, s.n.running_var, s.n.weight, s.n.bias, False, 0.1, 0.5),
        lambda s, x: F.batch_norm(s.a(x), s.n.running_mean, s.n.running_var, weight=s.n.weight, training=s.training),
        modules=lambda: {"n": nn.BatchNorm2d(4)},
    ),
    "batch_norm function training": Case(
        lambda s, x: F.batch_norm(s.a(x), None, None, s.n.weight, s.n.bias, True),
        lambda s, x: held(s.a(x), s.n), training=True, modules=lambda: {"n": nn.BatchNorm2d(4)},
    ),
    "batch_norm of no statistics": Case(
        lambda s, x: s.n(s.a(x)), lambda s, x: held(s.a(x), s.n), training=True,
        modules=lambda: {"n": nn.BatchNorm2d(4, affine=False, track_running_stats=False)},
    ),
    "batch_norm before a same convolution": Case(
        lambda s, x: s.c(s.n(F.relu(s.a(x)))),
        modules=lambda: {"n": nn.BatchNorm2d(4), "c": nn.Conv2d(4, 6, 4, padding="same", groups=2)},
    ),
    "batch_norm of features": Case(
        lambda s, x: s.n(s.l(s.a(x).flatten(1))), modules=lambda: {"l": nn.Linear(192, 5), "n": nn.BatchNorm1d(5)}
    ),
    "batch_norm of tokens": Case(
        lambda s, x: s.n(s.l(s.a(x).flatten(2))), modules=lambda: {"l": nn.Linear(48, 5), "n": nn.BatchNorm1d(4)}
    ),
    "batch_norm, then a linear layer on tokens": Case(
        lambda s, x: s.l(s.n(F.relu(s.a(x)).flatten(2))),
        modules=lambda: {"l": nn.Linear(48, 5), "n": nn.BatchNorm1d(4)},
    ),
}  # fmt: skip

CASES = {**NORMS}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")  # torch's advice
def test_batch_norm(name: str) -> None:
    check(CASES[name])
