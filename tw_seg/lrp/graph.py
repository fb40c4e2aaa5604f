"""The classifier as a list of calls: torch.fx traces it once, tables say what kind of operation each is.

A call is one execution: a ReLU module used four times is four calls. To support an operation of one's own,
add it to these tables (its kind) and, for a new kind, to ``tape.FORWARD`` and ``propagate.ADJOINT``.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize

from tw_seg.errors import TraceError, UnsupportedOpError

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_AVG_POOL = (
    "input",
    "kernel_size",
    "stride",
    "padding",
    "ceil_mode",
    "count_include_pad",
    "divisor_override",
)
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
    "stride", "padding", "dilation", "groups", "kernel_size", "ceil_mode", "count_include_pad",
    "divisor_override", "output_size", "negative_slope", "p", "eps", "inplace",
)  # fmt: skip

_IN_PLACE_OPERATORS = {
    "__iadd__": operator.iadd,
    "__isub__": operator.isub,
    "__imul__": operator.imul,
    "__itruediv__": operator.itruediv,
}
_NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim", "x": "input", "x2": "other", "tensors": "input"}
_SHAPE_METHODS = ("size", "dim", "numel", "stride")
_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")


@dataclass(frozen=True)
class Ref:
    """The value of an earlier call."""

    name: str


@dataclass(frozen=True)
class Mode:
    """The training flag of a module at the time of the run, where the classifier passes it as an argument."""

    path: str


@dataclass(frozen=True)
class Call:
    """One execution of one operation.

    Attributes:
        name: Unique name of the call (the fx node's).
        path: Path of the module it happens in, e.g. ``"layer1.0.conv1"``; for messages and for read-outs.
        kind: Key into ``tape.FORWARD`` and ``propagate.ADJOINT``, ``"constant"`` for values that carry no
            relevance.
        op: ``"call_module"``, ``"call_function"``, ``"call_method"`` or ``"get_attr"``.
        target: Module path, function, method name or attribute path.
        args: Positional arguments; values of earlier calls are ``Ref``.
        kwargs: Keyword arguments, likewise.
        inputs: Names of the calls whose activations are this call's inputs and receive its relevance.
        options: Numbers by name (stride, padding ...) and, for a functional call, ``Ref`` to weights.
        weight: Dotted name of its weight in the classifier; ``None`` if it has none or computes it.
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
    weight: str | None = None
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
        """The call whose output is read for ``name``: ``"input"``, the last call inside a module, or a call.

        Raises:
            KeyError: If there is no such call or module.
        """
        if name == "input":
            return self.input
        relevant = [call for call in self.calls if call.kind != "constant"]
        inside = [call.name for call in relevant if call.path == name or call.path.startswith(name + ".")]
        inside = inside or [call.name for call in relevant if call.name == name]
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


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to every leaf of nested arguments; the containers of the result are plain ones."""
    if isinstance(value, dict):
        return {key: map_leaves(item, function) for key, item in value.items()}
    if isinstance(value, list):
        return [map_leaves(item, function) for item in value]
    if isinstance(value, tuple):
        return tuple(map_leaves(item, function) for item in value)
    if isinstance(value, slice):
        return slice(*(map_leaves(item, function) for item in (value.start, value.stop, value.step)))
    return function(value)


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


class _Proxy(fx.Proxy):
    """A traced value whose in-place operators stay so: torch.fx itself records ``x += y`` as ``x + y``."""


def _in_place(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name, _function in _IN_PLACE_OPERATORS.items():
    setattr(_Proxy, _name, _in_place(_function))


class _Tracer(fx.Tracer):
    # A buffer that the classifier's forward changes must change in each run, not once while tracing.
    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def trace(classifier: nn.Module, training: bool) -> Graph:
    """Trace a classifier and say what kind of operation each call is. Nothing is computed.

    Args:
        classifier: Maps (N, C, H, W) to (N, K) without control flow on values.
        training: Whether to trace the path that it takes in training mode.

    Raises:
        TraceError: If torch.fx cannot trace it.
        UnsupportedOpError: Listing every call that has no relevance rule.
    """
    parameters = list(inspect.signature(classifier.forward).parameters.values())
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
    if len(required) > 1 or not parameters:
        names = [p.name for p in parameters]
        raise TraceError(f"the classifier must take one argument (images), it takes {names}")
    # The other arguments keep their defaults, so that the classifier may branch on them.
    defaults = {p.name: p.default for p in parameters[1:] if isinstance(p.default, (bool, int, float, type(None)))}
    try:
        with training_mode(classifier, training):
            fx_graph = _Tracer().trace(classifier, defaults)
    except Exception as error:
        raise TraceError(
            f"torch.fx cannot trace {type(classifier).__name__}: {error}. The classifier's forward must not "
            "branch on tensor values; move such code into a function decorated with torch.fx.wrap, or pass a "
            "part that traces"
        ) from error
    modules = dict(classifier.named_modules())
    inputs = [node for node in fx_graph.nodes if node.op == "placeholder"]
    builder = _Builder(modules, inputs[0].name)
    output = ""
    for node in fx_graph.nodes:
        if node.op == "output":
            if not isinstance(node.args[0], fx.Node):
                raise TraceError(f"the classifier must return one tensor of logits, it returns {node.args[0]}")
            output = builder.rename(node.args[0])
        else:
            builder.add(node)
    live = _live(builder.calls, output, builder.changes)
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
        self.attributes: dict[str, str] = {}  # get_attr call -> dotted name
        # In-place calls are run out of place: what reads the old value afterwards must see the new one.
        self.renamed: dict[str, str] = {}
        # Value -> (memory, view): values of one memory change together, those of one view are equal.
        self.memory: dict[str, tuple[str, str]] = {}
        self.stale: set[str] = set()
        self.changes: set[str] = set()  # calls that change the classifier's own parameters or buffers

    def rename(self, node: fx.Node) -> str:
        return self.renamed.get(node.name, node.name)

    def add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            return  # the images, or an optional argument that keeps its default
        args, kwargs = map_leaves(node.args, self._ref), map_leaves(node.kwargs, self._ref)
        stack = list((node.meta.get("nn_module_stack") or {"": None}).keys())
        path = str(node.target) if node.op == "call_module" else str(stack[-1]).partition("@")[0]  # "@2": 2nd call
        call = Call(node.name, path, "constant", node.op, node.target, tuple(args), dict(kwargs), ())
        if node.op == "get_attr":
            self.attributes[node.name] = str(node.target)
        sources = [self.rename(n) for n in node.all_input_nodes]
        if any(name in self.relevant for name in sources) and not _is_shape(node):
            self.relevant.add(node.name)
            if node.op == "call_module":
                call = self._module(call, self.modules[str(node.target)])
            else:
                call = self._function(call)
        for name in sources:
            if name in self.stale:
                call = self._unsupported(call, f"reads {name!r} after a change in place that it shares (clone it)")
        self.calls.append(self._remember(call, args, kwargs))

    def _ref(self, value: Any) -> Any:
        return Ref(self.rename(value)) if isinstance(value, fx.Node) else value

    def _module(self, call: Call, module: nn.Module) -> Call:
        kind = MODULES.get(parametrize.type_before_parametrizations(module))
        if kind is None:
            return self._unsupported(call, type(module).__name__)
        if getattr(module, "padding_mode", "zeros") != "zeros":
            return self._unsupported(call, f"{type(module).__name__}(padding_mode={module.padding_mode!r})")
        options = {name: getattr(module, name) for name in _MODULE_OPTIONS if hasattr(module, name)}
        # A parametrized weight is not looked at: that alone can change buffers (spectral_norm).
        weighted = parametrize.is_parametrized(module, "weight") or getattr(module, "weight", None) is not None
        weight = f"{call.path}.weight" if weighted else None
        inputs = [*call.args, *call.kwargs.values()]
        return replace(call, kind=kind, inputs=(inputs[0].name,), options=options, weight=weight)

    def _function(self, call: Call) -> Call:
        entry = FUNCTIONS.get(call.target)
        name = call.target if isinstance(call.target, str) else getattr(call.target, "__name__", str(call.target))
        if entry is None or "out" in call.kwargs:
            return self._unsupported(call, str(name))
        kind, names = entry
        named = {_NUMPY_NAMES.get(key, key): value for key, value in call.kwargs.items()}
        options = {**dict(zip(names, call.args, strict=False)), **named}
        sources = options["input"] if kind == "cat" else (options["input"], options.get("other"))
        inputs = tuple(s.name for s in sources if isinstance(s, Ref) and s.name in self.relevant)
        weight = None
        if kind in ("conv", "linear", "batch_norm"):
            weights = [options.get(n) for n in ("weight", "bias", "running_mean", "running_var")]
            if any(isinstance(w, Ref) and w.name in self.relevant for w in weights):
                return self._unsupported(call, f"{name} with weights that depend on the images")
            weight = self.attributes.get(weights[0].name) if isinstance(weights[0], Ref) else None
        if kind == "mean" and options.get("dim") is None:
            return self._unsupported(call, f"{name} over every axis")
        return replace(call, kind=kind, inputs=inputs, options=options, weight=weight)

    def _unsupported(self, call: Call, what: str) -> Call:
        self.problems[call.name] = f"{call.path or '(root)'}: {what} ({call.op} {call.name!r})"
        return replace(call, kind="unsupported", inputs=tuple(r for r in _refs(call) if r in self.relevant))

    def _remember(self, call: Call, args: Any, kwargs: Any) -> Call:
        """Keep account of values that share memory, and of those that an in-place call changes."""
        values = [*args, *kwargs.values()]
        source = values[0].name if values and isinstance(values[0], Ref) else ""
        memory, view = self.memory.get(source, (source, source))
        if source and self._changes_in_place(call):
            for name, (other_memory, other_view) in list(self.memory.items()):
                if other_memory == memory and other_view != view:
                    self.stale.add(name)
            same = {name for name, (_, v) in self.memory.items() if v == view} | {source}
            self.renamed.update({name: call.name for name in same})
            self.renamed.update({old: call.name for old, new in self.renamed.items() if new in same})
            if memory in self.attributes:
                self.changes.add(call.name)
                if call.kind != "constant":
                    call = self._unsupported(call, f"changes {self.attributes[memory]!r} by the images")
        elif call.kind == "identity" and call.target != "clone":
            pass  # the input itself
        elif call.kind in ("reshape", "dropout", "dropout2d"):
            view = call.name  # may share the input's memory, may be a copy: dropout does in evaluation mode
        else:
            memory = view = call.name
        self.memory[call.name] = (memory, view)
        return call

    def _changes_in_place(self, call: Call) -> bool:
        if call.op == "call_module":
            return bool(getattr(self.modules[call.target], "inplace", False))
        if call.op == "call_function" and call.target in _IN_PLACE_OPERATORS.values():
            return True
        name = call.target if isinstance(call.target, str) else getattr(call.target, "__name__", "")
        marked = name.endswith("_") and not name.endswith("__") and call.op != "get_attr"
        return marked or call.kwargs.get("inplace") is True or call.options.get("inplace") is True


def _refs(call: Call) -> list[str]:
    """Names of all values that a call reads."""
    names: list[str] = []
    map_leaves((call.args, call.kwargs), lambda a: names.append(a.name) if isinstance(a, Ref) else None)
    return names


def _is_shape(node: fx.Node) -> bool:
    """Whether a node yields numbers (a size), not an activation."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def _live(calls: list[Call], output: str, changes: set[str]) -> set[str]:
    """Names of the calls that the output, or the classifier's own state, depends on."""
    live = {output, *changes}
    for call in reversed(calls):
        if call.name in live:
            live.update(_refs(call))
    return live


def follow_modes(evaluation: Graph, training: Graph) -> tuple[Graph, Graph]:
    """Let arguments that are a module's training flag follow the module: it may be frozen in a training net.

    Args:
        evaluation: The trace in evaluation mode.
        training: The trace in training mode.

    Returns:
        Both, with such arguments replaced by :class:`Mode`.
    """
    others = {call.name: call for call in training.calls}
    found: dict[str, Call] = {}
    for call in evaluation.calls:
        other = others.get(call.name)
        if other is None or other.target != call.target or call.op != "call_function":
            continue
        changed: dict[str, Any] = {
            part: _modes(getattr(call, part), getattr(other, part), call.path) for part in ("args", "kwargs", "options")
        }
        found[call.name] = replace(call, **{part: pair[0] for part, pair in changed.items()})
        others[call.name] = replace(other, **{part: pair[1] for part, pair in changed.items()})
    return (
        replace(evaluation, calls=tuple(found.get(call.name, call) for call in evaluation.calls)),
        replace(training, calls=tuple(others[call.name] for call in training.calls)),
    )


def _modes(off: Any, on: Any, path: str) -> tuple[Any, Any]:
    """Two sets of arguments, with a flag that is False in the first and True in the second replaced."""
    if isinstance(off, dict) and isinstance(on, dict) and off.keys() == on.keys():
        pairs = {key: _modes(off[key], on[key], path) for key in off}
        return {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}
    if isinstance(off, tuple) and isinstance(on, tuple) and len(off) == len(on):
        both = [_modes(a, b, path) for a, b in zip(off, on, strict=True)]
        return tuple(pair[0] for pair in both), tuple(pair[1] for pair in both)
    return (Mode(path), Mode(path)) if off is False and on is True else (off, on)


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
