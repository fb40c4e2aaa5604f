"""Every way of writing an operation that a declaration derives: of torch, of torch.nn.functional, methods, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.lrp.ops.harness import Body, Case, build, check, close
from tests.lrp.ops.test_arithmetic import two
from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.core.graph import Op
from tw_seg.lrp.ops import FUNCTIONS, IN_PLACE

Arguments = Callable[[Any, Tensor], tuple[Any, ...]]

ARGUMENTS: dict[str, Arguments] = {
    **dict.fromkeys(("add", "sub", "subtract", "maximum", "minimum"), lambda s, x: (s.b(x),)),
    **dict.fromkeys(("mul", "multiply", "div", "divide", "true_divide"), lambda s, x: (s.p + 3,)),
    **dict.fromkeys(("neg", "negative", "positive", "contiguous", "clone"), lambda s, x: ()),
    **dict.fromkeys(("relu", "relu6", "selu", "silu", "mish", "hardswish"), lambda s, x: ()),
    **dict.fromkeys(("sigmoid", "special_expit", "exp", "softplus", "tanh"), lambda s, x: ()),
    **dict.fromkeys(("abs", "absolute", "square", "elu", "celu", "gelu", "leaky_relu"), lambda s, x: ()),
    **dict.fromkeys(("clamp", "clip", "hardtanh"), lambda s, x: (-0.3, 0.4)),
    "clamp_min": lambda s, x: (-0.3,),
    "clamp_max": lambda s, x: (0.4,),
    "prelu": lambda s, x: (s.slope,),
    "pow": lambda s, x: (2,),
    "addcmul": lambda s, x: (s.b(x), s.p),
    **dict.fromkeys(("sum", "mean", "amax"), lambda s, x: ((1, 3),)),
    **dict.fromkeys(("softmax", "special_softmax"), lambda s, x: (1,)),
    **dict.fromkeys(("matmul", "linalg_matmul"), lambda s, x: (s.square,)),
    "flatten": lambda s, x: (1, 2),
    **dict.fromkeys(("reshape", "view"), lambda s, x: ((-1, 8, 3, 8),)),
    "unflatten": lambda s, x: (1, (2, 2)),
    **dict.fromkeys(("squeeze", "unsqueeze"), lambda s, x: (1,)),
    "permute": lambda s, x: ((0, 2, 3, 1),),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "movedim", "moveaxis"), lambda s, x: (1, 3)),
    **dict.fromkeys(("expand", "broadcast_to"), lambda s, x: ((3, -1, 4, 6, 8),)),
    **dict.fromkeys(("repeat", "tile"), lambda s, x: ((1, 2, 1, 3),)),
    "repeat_interleave": lambda s, x: (2, 1),
    "roll": lambda s, x: (2, 3),
    "flip": lambda s, x: ((1, 3),),
    "masked_fill": lambda s, x: (s.q > 0, 0.5),
    **dict.fromkeys(("select", "narrow"), lambda s, x: (1, 2)),
}
ARGUMENTS["narrow"] = lambda s, x: (1, 1, 2)
ARGUMENTS["expand"] = ARGUMENTS["broadcast_to"] = lambda s, x: ((3, x.shape[0], 4, 6, 8),)


def parameters() -> dict[str, Any]:
    return {**two(), "slope": nn.Parameter(torch.zeros(4)), "square": nn.Parameter(torch.zeros(8, 5))}


def write(key: Any, word: str) -> Body:
    """The operation by one of its forms; the batch comes first again behind those that put an axis before it."""

    def body(s: Any, x: Tensor) -> Tensor:
        y, rest = s.a(x), ARGUMENTS[word](s, x)
        y = getattr(y, key)(*rest) if isinstance(key, str) else key(y, *rest)
        return y.transpose(0, 1) if word in ("expand", "broadcast_to") else y

    return body


def find_surrogate(op: Op, body: Body) -> Body | None:
    if op.kind == "pow":
        return lambda s, x: (lambda y: y * y.detach())(s.a(x))
    if op.kind == "sigmoid" or op.group != "activation" or not (op.conserves or op.kind == "clamp"):
        return None
    return lambda s, x: (lambda u, y: u * (y / u).detach())(s.a(x), body(s, x))


def describe(key: Any) -> str:
    owner = "Tensor" if isinstance(key, str) else (getattr(key, "__module__", None) or "torch").rpartition(".")[2]
    return f"{owner}.{key if isinstance(key, str) else key.__name__}"


CASES: dict[str, Case] = {}
for _key, (_op, _) in FUNCTIONS.items():
    _word = _key if isinstance(_key, str) else _key.__name__
    if _word in ARGUMENTS and getattr(_key, "__module__", "") not in ("_operator", "operator"):
        _body = write(_key, _word)
        _name = describe(_key)
        CASES[_name if _name not in CASES else f"{_name} of C"] = Case(
            _body, find_surrogate(_op, _body), modules=parameters
        )
CASES["Tensor.ravel"] = Case(lambda s, x: s.a(x).ravel().view(x.shape[0], -1))
CASES["torch.ravel"] = Case(lambda s, x: torch.ravel(s.a(x)).view(x.shape[0], -1))
CASES["torch.t"] = Case(lambda s, x: torch.t(torch.t(s.a(x).mean((2, 3)))))
CASES["Tensor.t"] = Case(lambda s, x: s.a(x).mean((2, 3)).t().t())


@pytest.mark.parametrize("name", CASES)
def test_a_form(name: str) -> None:
    check(CASES[name])


def in_place() -> dict[str, tuple[Any, Any, str]]:
    """Forms that change their first argument, with a case's arguments and in a shape that stays."""
    found = {}
    for twin, plain in IN_PLACE.items():
        word = plain if isinstance(plain, str) else plain.__name__
        if word in ARGUMENTS:
            found[f"{describe(plain)}_"] = (twin, plain, word)
    return found


TWINS = in_place()


@pytest.mark.parametrize("name", TWINS)
def test_an_in_place_twin_is_the_operation(name: str) -> None:
    """What reads the value after the change sees the new one; the run itself changes nothing that it keeps."""
    twin, plain, word = TWINS[name]

    def changed(s: Any, x: Tensor) -> Tensor:
        y = s.a(x)
        _ = getattr(y, twin)(*ARGUMENTS[word](s, x)) if isinstance(twin, str) else twin(y, *ARGUMENTS[word](s, x))
        return y * 2

    net, images = build(Case(changed, modules=parameters))
    found = HeatmapDecoder(net).eval()(images)
    close(found.logits, net(images))
    net.body = lambda s, x: write(plain, word)(s, x) * 2
    close(found.heatmaps, HeatmapDecoder(net).eval()(images).heatmaps)


def test_a_quotient_that_is_rounded_is_refused() -> None:
    """It was divided without rounding."""
    net, _ = build(Case(lambda s, x: torch.div(s.a(x), s.p + 3, rounding_mode="floor"), modules=two))
    with pytest.raises(UnsupportedOpError, match=r"div\(rounding_mode='floor'\)"):
        HeatmapDecoder(net)
