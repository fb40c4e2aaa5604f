"""One forward run of the classifier that records every call's output and what its adjoint needs later.

The run computes what the classifier computes, in-place operations out of place. Only three kinds keep more
than their output: max pools their winners, dropout its noise, BatchNorm the scale of the statistics it used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tw_seg.errors import UnsupportedOpError
from tw_seg.lrp.graph import Call, Graph, Mode, Ref, map_leaves


class Tape:
    """Values of one forward run.

    Attributes:
        values: Output of each call by name, the images included.
        saved: What a call's adjoint needs besides its input and output (winners, noise, BatchNorm scale).
        weights: The weights of this run that a parametrization computed.
    """

    def __init__(self, classifier: nn.Module, graph: Graph, images: Tensor) -> None:
        """Run the classifier on ``images`` (N, C, H, W): no more state changes than in its own forward.

        Raises:
            UnsupportedOpError: If a call moves the batch away from the first axis.
        """
        self.modules: Mapping[str, nn.Module] = dict(classifier.named_modules())
        self.classifier = classifier
        self.graph = graph
        self.values: dict[str, Any] = {graph.input: images}
        self.saved: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        for call in graph.calls:
            forward = FORWARD.get(call.kind)
            value = self.values[call.name] = forward(self, call) if forward else self.run(call)
            if call.inputs and not torch.compiler.is_compiling() and value.shape[0] != images.shape[0]:
                raise UnsupportedOpError(
                    f"{call.path or '(root)'}: {call.kind} ({call.name!r}) turns {images.shape[0]} images "
                    f"into {tuple(value.shape)}; every activation must keep one row per image"
                )

    @property
    def logits(self) -> Tensor:
        """The classifier's output (N, K)."""
        logits = self.values[self.graph.output]
        assert isinstance(logits, Tensor)
        return logits

    def resolve(self, value: Any) -> Any:
        """Replace references by the values of the calls they name."""
        return map_leaves(value, self._resolve)

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.values[value.name]
        return self.modules[value.path].training if isinstance(value, Mode) else value

    def run(self, call: Call) -> Any:
        """Run a call as the classifier would."""
        args, kwargs = self.resolve(call.args), self.resolve(call.kwargs)
        if call.op == "call_module":
            module = self.modules[call.target]
            if not parametrize.is_parametrized(module, "weight"):
                return module(*args, **kwargs)
            with parametrize.cached():  # another look would compute it anew: spectral_norm goes one step on
                value = module(*args, **kwargs)
                weight = module.weight
                assert isinstance(weight, Tensor)
                self.weights[call.name] = weight
            return value
        if call.op == "call_method":
            return getattr(args[0], call.target)(*args[1:], **kwargs)
        if call.op == "get_attr":
            return attribute(self.classifier, call.target)
        return call.target(*args, **kwargs)

    def number(self, call: Call, name: str, default: float) -> float:
        """A number that may change between runs, such as a dropout rate: the module's present one."""
        value = getattr(self.modules[call.target], name) if call.op == "call_module" else call.options.get(name)
        return default if value is None else value

    def parameter(self, call: Call, name: str) -> Tensor | None:
        """A parameter or buffer of a call: the module's own, or the argument of a functional call."""
        if name == "weight" and call.name in self.weights:
            return self.weights[call.name]
        if call.op == "call_module":
            value = getattr(self.modules[call.target], name, None)
        else:
            value = self.resolve(call.options.get(name))
        assert value is None or isinstance(value, Tensor)
        return value


def attribute(root: nn.Module, path: str) -> Any:
    """The attribute at a dotted path."""
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _activation(function: Callable[..., Tensor], *names: str) -> Callable[[Tape, Call], Tensor]:
    def forward(tape: Tape, call: Call) -> Tensor:
        return function(tape.values[call.inputs[0]], *(call.options[n] for n in names if n in call.options))

    return forward


def _max_pool2d(tape: Tape, call: Call) -> Tensor:
    o = call.options
    value, tape.saved[call.name] = F.max_pool2d(
        tape.values[call.inputs[0]],
        o["kernel_size"],
        o.get("stride"),
        o.get("padding", 0),
        o.get("dilation", 1),
        ceil_mode=o.get("ceil_mode", False),
        return_indices=True,
    )
    return value


def _adaptive_max_pool2d(tape: Tape, call: Call) -> Tensor:
    value, tape.saved[call.name] = F.adaptive_max_pool2d(
        tape.values[call.inputs[0]], call.options["output_size"], return_indices=True
    )
    return value


def _dropout(function: Callable[..., Tensor]) -> Callable[[Tape, Call], Tensor]:
    def forward(tape: Tape, call: Call) -> Tensor:
        value: Tensor = tape.values[call.inputs[0]]
        module = tape.modules.get(call.target) if call.op == "call_module" else None
        training = module.training if module is not None else tape.resolve(call.options.get("training", True))
        if not training:
            return value
        # The same draw as the module's own, kept so that relevance follows the units that were kept.
        noise = function(torch.ones_like(value), tape.number(call, "p", 0.5), True)
        tape.saved[call.name] = noise
        return value * noise

    return forward


def batch_statistics(tape: Tape, call: Call) -> bool:
    """Whether a BatchNorm call normalises with the batch's statistics or with the running ones."""
    if call.op != "call_module":
        return bool(tape.resolve(call.options.get("training", False)))
    # torch's own rule: in training, or when none are kept
    kept = any(tape.parameter(call, name) is not None for name in ("running_mean", "running_var"))
    return tape.modules[call.target].training or not kept


def _batch_norm(tape: Tape, call: Call) -> Tensor:
    value: Tensor = tape.values[call.inputs[0]]
    var = tape.parameter(call, "running_var")
    if batch_statistics(tape, call):
        # As torch does: statistics of half-precision activations are float32.
        half = value.dtype in (torch.float16, torch.bfloat16)
        var = (value.float() if half else value).var([0, *range(2, value.ndim)], unbiased=False)
    assert var is not None
    scale = torch.rsqrt(var + tape.number(call, "eps", 1e-5))
    result: Tensor = tape.run(call)
    tape.saved[call.name] = scale
    return result


def _add(tape: Tape, call: Call) -> Tensor:
    return torch.add(
        tape.resolve(call.options["input"]),
        tape.resolve(call.options["other"]),
        alpha=call.options.get("alpha", 1),
    )


FORWARD: dict[str, Callable[[Tape, Call], Tensor]] = {
    "relu": _activation(F.relu),
    "relu6": _activation(F.relu6),
    "leaky_relu": _activation(F.leaky_relu, "negative_slope"),
    "max_pool2d": _max_pool2d,
    "adaptive_max_pool2d": _adaptive_max_pool2d,
    "dropout": _dropout(F.dropout),
    "dropout2d": _dropout(F.dropout2d),
    "batch_norm": _batch_norm,
    "add": _add,
}
"""Kinds that do more in the forward run than call their target."""
