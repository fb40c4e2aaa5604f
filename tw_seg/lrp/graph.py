"""The classifier as a list of calls: torch.fx traces it once, tables say what kind of operation each call is.

A call is one execution: a ReLU module used four times is four calls. To support an operation of one's own, add
it to these tables (its kind) and, for a new kind, to ``tape.FORWARD`` and ``propagate.ADJOINT``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from tw_seg.errors import TraceError, UnsupportedOpError

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_AVG_POOL = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
_MAX_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_ADD = ("input", "other", "alpha")
_ACTIVATION = ("input", "inplace")

MODULES: dict[type[nn.Module], str] = {
    nn.Conv1d: "conv",
    nn.Conv2d: "conv",
    nn.Conv3d: "conv",
    nn.Linear: "linear",
    nn.BatchNorm1d: "batch_norm",
    nn.BatchNorm2d: "batch_norm",
    nn.BatchNorm3d: "batch_norm",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.MaxPool2d: "max_pool2d",
    nn.AvgPool2d: "avg_pool2d",
    nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d",
    nn.AdaptiveMaxPool2d: "adaptive_max_pool2d",
    nn.Dropout: "dropout",
    nn.Dropout2d: "dropout2d",
    nn.Flatten: "reshape",
    nn.Unflatten: "reshape",
    nn.Identity: "identity",
}
"""Leaf module class -> kind of call."""

FUNCTIONS: dict[Callable[..., Any] | str, tuple[str, tuple[str, ...]]] = {
    F.conv1d: ("conv", _CONV),
    F.conv2d: ("conv", _CONV),
    F.conv3d: ("conv", _CONV),
    F.linear: ("linear", ("input", "weight", "bias")),
    F.batch_norm: ("batch_norm", _NORM),
    F.relu: ("relu", _ACTIVATION),
    F.relu_: ("relu", _ACTIVATION),
    torch.relu: ("relu", _ACTIVATION),
    torch.relu_: ("relu", _ACTIVATION),
    "relu": ("relu", _ACTIVATION),
    "relu_": ("relu", _ACTIVATION),
    F.relu6: ("relu6", _ACTIVATION),
    F.leaky_relu: ("leaky_relu", ("input", "negative_slope", "inplace")),
    F.max_pool2d: ("max_pool2d", _MAX_POOL),
    torch.max_pool2d: ("max_pool2d", _MAX_POOL[:6]),
    F.avg_pool2d: ("avg_pool2d", _AVG_POOL),
    F.adaptive_avg_pool2d: ("adaptive_avg_pool2d", ("input", "output_size")),
    F.adaptive_max_pool2d: ("adaptive_max_pool2d", ("input", "output_size", "return_indices")),
    torch.mean: ("mean", ("input", "dim", "keepdim")),
    "mean": ("mean", ("input", "dim", "keepdim")),
    F.dropout: ("dropout", ("input", "p", "training", "inplace")),
    F.dropout2d: ("dropout2d", ("input", "p", "training", "inplace")),
    operator.add: ("add", _ADD),
    operator.iadd: ("add", _ADD),
    torch.add: ("add", _ADD),
    "add": ("add", _ADD),
    "add_": ("add", _ADD),
    torch.cat: ("cat", ("input", "dim")),
    torch.concat: ("cat", ("input", "dim")),
    torch.flatten: ("reshape", ("input",)),
    torch.reshape: ("reshape", ("input",)),
    torch.squeeze: ("reshape", ("input",)),
    torch.unsqueeze: ("reshape", ("input",)),
    "flatten": ("reshape", ("input",)),
    "reshape": ("reshape", ("input",)),
    "view": ("reshape", ("input",)),
    "squeeze": ("reshape", ("input",)),
    "unsqueeze": ("reshape", ("input",)),
    "contiguous": ("identity", ("input",)),
    "clone": ("identity", ("input",)),
}
"""Function or method name -> kind of call and the names of its positional arguments."""

_MODULE_OPTIONS = (
    "stride", "padding", "dilation", "groups", "kernel_size", "ceil_mode", "count_include_pad", "divisor_override",
    "output_size", "negative_slope", "p", "eps", "inplace",
)  # fmt: skip

_IN_PLACE = (F.relu_, torch.relu_, "relu_", operator.iadd, "add_")
_SHAPE_METHODS = ("size", "dim", "numel", "stride")
_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")


@dataclass(frozen=True)
class Ref:
    """The value of an earlier call."""

    name: str


@dataclass(frozen=True)
class Call:
    """One execution of one operation.

    Attributes:
        name: Unique name of the call (the fx node's).
        path: Path of the module it happens in, e.g. ``"layer1.0.conv1"``; for messages and for read-outs.
        kind: Key into ``tape.FORWARD`` and ``propagate.ADJOINT``, ``"constant"`` for values that carry no relevance.
        op: ``"call_module"``, ``"call_function"``, ``"call_method"`` or ``"get_attr"``.
        target: Module path, function, method name or attribute path.
        args: Positional arguments; values of earlier calls are ``Ref``.
        kwargs: Keyword arguments, likewise.
        inputs: Names of the calls whose activations are this call's inputs and receive its relevance.
        options: Numbers by name (stride, padding ...) and, for a functional call, ``Ref`` to weights.
        norm: Name of the BatchNorm call that is fused into this linear call, if any.
    """

    name: str
    path: str
    kind: str
    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    norm: str | None = None


@dataclass(frozen=True)
class Graph:
    """Calls in the order of execution.

    Attributes:
        calls: Every call, constants included.
        input: Name of the images.
        output: Name of the logits.
    """

    calls: tuple[Call, ...]
    input: str
    output: str

    def readout(self, name: str) -> str:
        """The call whose output is read for ``name``: ``"input"``, a call, or the last call inside a module.

        Raises:
            KeyError: If there is no such call or module.
        """
        if name == "input":
            return self.input
        relevant = [call for call in self.calls if call.kind != "constant"]
        for call in relevant:
            if call.name == name:
                return name
        inside = [call.name for call in relevant if call.path == name or call.path.startswith(name + ".")]
        if not inside:
            raise KeyError(name)
        return inside[-1]

    def downstream(self, starts: tuple[str, ...]) -> frozenset[str]:
        """The calls ``starts`` and all that depend on their activations."""
        reached = set(starts)
        for call in self.calls:
            if any(name in reached for name in call.inputs):
                reached.add(call.name)
        return frozenset(reached)


@contextmanager
def training_mode(module: nn.Module, mode: bool) -> Iterator[None]:
    """Put every submodule into one mode, and back into its own afterwards."""
    flags = [(m, m.training) for m in module.modules()]
    try:
        for m, _ in flags:
            m.training = mode
        yield
    finally:
        for m, flag in flags:
            m.training = flag


def trace(classifier: nn.Module, training: bool) -> Graph:
    """Trace a classifier and say what kind of operation each call is. Nothing is computed.

    Args:
        classifier: Maps (N, C, H, W) to (N, K) without control flow on values.
        training: Whether to trace the path that it takes in training mode.

    Raises:
        TraceError: If torch.fx cannot trace it.
        UnsupportedOpError: Listing every call that has no relevance rule.
    """
    try:
        with training_mode(classifier, training):
            fx_graph = fx.Tracer().trace(classifier)
    except Exception as error:
        raise TraceError(
            f"torch.fx cannot trace {type(classifier).__name__}: {error}. The classifier's forward must not branch "
            "on tensor values; move such code into a function decorated with torch.fx.wrap, or pass a part that traces"
        ) from error
    modules = dict(classifier.named_modules())
    inputs = [node for node in fx_graph.nodes if node.op == "placeholder"]
    required = [node for node in inputs if not node.args]
    if len(required) > 1 or not inputs:
        raise TraceError(f"the classifier must take one argument (images), it takes {[n.target for n in inputs]}")
    builder = _Builder(modules, inputs[0].name)
    output = ""
    for node in fx_graph.nodes:
        if node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise TraceError(f"the classifier must return one tensor of logits, it returns {node.args[0]}")
            output = builder.rename(node.args[0])
        else:
            builder.add(node)
    live = _live(builder.calls, output)
    problems = [p for name, p in builder.problems.items() if name in live]
    if problems:
        raise UnsupportedOpError(
            f"{type(classifier).__name__} has {len(problems)} call(s) without a relevance rule:\n  "
            + "\n  ".join(problems)
            + "\nReplace them in the classifier, or add a rule (tw_seg/lrp/graph.py says where)."
        )
    return Graph(_fuse_norms([c for c in builder.calls if c.name in live]), inputs[0].name, output)


class _Builder:
    """Turns fx nodes into calls."""

    def __init__(self, modules: dict[str, nn.Module], images: str) -> None:
        self.modules = modules
        self.calls: list[Call] = []
        self.problems: dict[str, str] = {}
        self.relevant = {images}
        self.alias: dict[str, str] = {}

    def rename(self, node: fx.Node) -> str:
        return self.alias.get(node.name, node.name)

    def add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            return  # the images, or an optional argument that keeps its default
        args, kwargs = (fx.map_arg(value, lambda n: Ref(self.rename(n))) for value in (node.args, node.kwargs))
        stack = list((node.meta.get("nn_module_stack") or {"": None}).keys())
        path = str(node.target) if node.op == "call_module" else str(stack[-1])
        call = Call(node.name, path, "constant", node.op, node.target, tuple(args), dict(kwargs), ())
        if not any(self.rename(n) in self.relevant for n in node.all_input_nodes) or _is_shape(node):
            self.calls.append(call)
            return
        self.relevant.add(node.name)
        if node.op == "call_module":
            call = self._module(call, self.modules[str(node.target)])
        else:
            call = self._function(call)
        # Everything is run out of place; what comes after an in-place call must see its result.
        if (call.options.get("inplace") or node.target in _IN_PLACE) and call.inputs:
            for old, new in list(self.alias.items()):
                if new == call.inputs[0]:
                    self.alias[old] = node.name
            self.alias[call.inputs[0]] = node.name
        self.calls.append(call)

    def _module(self, call: Call, module: nn.Module) -> Call:
        kind = MODULES.get(type(module))
        if kind is None:
            return self._unsupported(call, type(module).__name__)
        if getattr(module, "padding_mode", "zeros") != "zeros":
            return self._unsupported(call, f"{type(module).__name__}(padding_mode={module.padding_mode!r})")
        options = {name: getattr(module, name) for name in _MODULE_OPTIONS if hasattr(module, name)}
        return replace(call, kind=kind, inputs=(call.args[0].name,), options=options)

    def _function(self, call: Call) -> Call:
        entry = FUNCTIONS.get(call.target)
        name = call.target if isinstance(call.target, str) else getattr(call.target, "__name__", str(call.target))
        if entry is None:
            return self._unsupported(call, str(name))
        kind, names = entry
        options = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
        options["input"] = options.get("input", options.get("tensors"))
        sources = options["input"] if kind == "cat" else (options["input"], options.get("other"))
        inputs = tuple(s.name for s in sources if isinstance(s, Ref) and s.name in self.relevant)
        if kind in ("conv", "linear", "batch_norm"):
            weights = [options.get(n) for n in ("weight", "bias", "running_mean", "running_var")]
            if any(isinstance(w, Ref) and w.name in self.relevant for w in weights):
                return self._unsupported(call, f"{name} with weights that depend on the images")
        return replace(call, kind=kind, inputs=inputs, options=options)

    def _unsupported(self, call: Call, what: str) -> Call:
        self.problems[call.name] = f"{call.path or '(root)'}: {what} ({call.op} {call.name!r})"
        refs: list[str] = []
        fx.node.map_aggregate((call.args, call.kwargs), lambda a: refs.append(a.name) if isinstance(a, Ref) else None)
        return replace(call, kind="unsupported", inputs=tuple(r for r in refs if r in self.relevant))


def _is_shape(node: fx.Node) -> bool:
    """Whether a node yields numbers (a size), not an activation."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def _live(calls: list[Call], output: str) -> set[str]:
    """Names of the calls that the output depends on."""
    live = {output}
    for call in reversed(calls):
        if call.name in live:
            fx.node.map_aggregate(
                (call.args, call.kwargs), lambda a: live.add(a.name) if isinstance(a, Ref) else None
            )
    return live


def _fuse_norms(calls: list[Call]) -> tuple[Call, ...]:
    """Note on each linear call the BatchNorm that is the only reader of its output."""
    readers: dict[str, list[Call]] = {}
    for call in calls:
        for name in call.inputs:
            readers.setdefault(name, []).append(call)
    fused = {
        call.name: readers[call.name][0].name
        for call in calls
        if call.kind in ("conv", "linear")
        and len(readers.get(call.name, [])) == 1
        and readers[call.name][0].kind == "batch_norm"
    }
    return tuple(replace(call, norm=fused.get(call.name)) for call in calls)
