"""From a traced classifier to the list of its calls: which kind of operation each is, and what carries relevance."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from tw_seg.errors import TraceError, UnsupportedOpError
from tw_seg.lrp.core.graph import Call, Graph, Mode, Ref, map_leaves, refs
from tw_seg.lrp.ops import FUNCTIONS, MODULES
from tw_seg.lrp.ops.arithmetic import GATES
from tw_seg.lrp.ops.linear import WEIGHTED
from tw_seg.lrp.ops.shape import TUPLES
from tw_seg.lrp.trace.tracer import IN_PLACE_OPERATORS, symbolic_trace

CustomRule = Callable[..., Tensor | tuple[Tensor | None, ...]]
"""``rule(c, inputs, output, module)``: see ``docs/custom_rule.md``."""

CustomRules = Mapping[type[nn.Module] | Callable[..., Any] | str, CustomRule]
"""Module class, function or method name -> the user's rule."""

_MODULE_OPTIONS = (
    "stride", "padding", "output_padding", "dilation", "groups", "kernel_size", "ceil_mode", "count_include_pad",
    "divisor_override", "output_size", "negative_slope", "p", "eps", "inplace", "normalized_shape", "num_groups",
    "approximate", "alpha", "min_val", "max_val", "beta", "threshold", "dim", "size", "scale_factor", "mode",
    "align_corners", "recompute_scale_factor",
)  # fmt: skip

_IN_PLACE_OPERATORS = (*IN_PLACE_OPERATORS.values(), operator.setitem)
_NUMPY_NAMES = {"axis": "dim", "keepdims": "keepdim", "x": "input", "x2": "other", "tensors": "input"}

_SHAPES = frozenset({"size", "dim", "numel", "stride", "ndimension", "get_device", "is_floating_point", "len"})
_SHAPE_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "is_cuda"})
_VALUES = frozenset(
    "new_zeros new_ones new_full new_empty new_tensor zeros_like ones_like full_like empty_like rand_like randn_like "
    "detach eq ne lt le gt ge isnan isinf argmax argmin argsort".split()
)
"""Calls whose result carries no relevance: made from the shape of a value, or a choice by it."""

_STATISTICS = frozenset({"norm", "vector_norm", "linalg_norm", "linalg_vector_norm", "var", "std", "rsqrt", "sqrt"})
"""Scales to normalise by: held constant, as the statistics of every normalisation are."""

_VIEWS = frozenset(
    "reshape squeeze unsqueeze permute transpose movedim expand split unbind part getitem select narrow cast windows "
    "dropout dropout1d dropout2d dropout3d".split()
)
"""Kinds whose value may share the memory of their input."""

_NONNEGATIVE = frozenset("relu relu6 sigmoid hardsigmoid softmax square abs exp softplus".split())
_KEEPS_SIGN = frozenset(
    "max_pool adaptive_max_pool avg_pool adaptive_avg_pool mean sum amax max dropout dropout1d dropout2d dropout3d "
    "reshape squeeze unsqueeze identity cast permute transpose movedim expand repeat repeat_interleave roll flip split "
    "unbind part getitem select narrow index_select pixel_shuffle pixel_unshuffle channel_shuffle unfold fold windows "
    "cat stack add mul relu leaky_relu hardswish silu gelu".split()
)

_TENSORS = ("input", "other", "tensor1", "tensor2")
_SIGNAL_ONLY = ("div", "pow", "masked_fill")
"""Kinds of which only the first operand receives relevance."""


def trace(
    classifier: nn.Module,
    training: bool,
    *,
    image_shape: tuple[int, int, int] | None = None,
    custom_rules: CustomRules | None = None,
) -> Graph:
    """Trace a classifier and say what kind of operation each call is. Nothing is computed.

    Args:
        classifier: Maps (N, C, H, W) to (N, K) without control flow on values.
        training: Whether to trace the path that it takes in training mode.
        image_shape: (C, H, W) of the images, for a forward that branches on sizes; ``None``: its usual one.
        custom_rules: Rules of the user for module classes, functions or methods; they come first.

    Raises:
        TraceError: If torch.fx cannot trace it.
        UnsupportedOpError: Listing every call that has no relevance rule.
    """
    rules = dict(custom_rules or {})
    parameters = list(inspect.signature(classifier.forward).parameters.values())
    # The other arguments keep their defaults, so that the classifier may branch on them.
    defaults = {p.name: p.default for p in parameters[1:] if isinstance(p.default, (bool, int, float, type(None)))}
    traced = symbolic_trace(
        classifier,
        training=training,
        image_shape=image_shape,
        known_functions={key for key in (*FUNCTIONS, *rules) if callable(key) and not isinstance(key, type)},
        leaves=tuple(key for key in rules if isinstance(key, type)),
        defaults=defaults,
    )
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    builder = _Builder(dict(classifier.named_modules()), inputs[0].name, rules)
    output = ""
    for node in traced.graph.nodes:
        if node.op == "output":
            result = node.args[0]
            if isinstance(result, fx.Node) and isinstance(result.target, type) and issubclass(result.target, tuple):
                result = result.args  # a named tuple
            if isinstance(result, (tuple, list)) and result:  # auxiliary heads in training: the logits come first
                result = result[0]
            if not isinstance(result, fx.Node):
                raise TraceError(f"the classifier must return logits, or a tuple that begins with them, not {result}")
            output = builder.rename(result)
        else:
            builder.add(node)
    live = _live(builder.calls, output, builder.changes)
    calls = [call for call in builder.calls if call.name in live]
    reached = _reached(calls, output)
    problems = [p for name, p in builder.problems.items() if name in reached or name in builder.changes]
    if problems:
        raise UnsupportedOpError(
            f"{type(classifier).__name__} has {len(problems)} call(s) without a relevance rule:\n  "
            + "\n  ".join(problems)
            + "\nReplace them in the classifier, or give them a rule of your own: "
            "HeatmapDecoder(classifier, custom_rules={TheirClassOrFunction: rule}), see docs/custom_rule.md."
        )
    return Graph(_annotate(calls), inputs[0].name, output, traced.specialised)


class _Builder:
    """Turns fx nodes into calls."""

    def __init__(self, modules: dict[str, nn.Module], images: str, rules: dict[Any, CustomRule]) -> None:
        self.modules = modules
        self.rules = rules
        self.calls: list[Call] = []
        self.kinds: dict[str, Call] = {}
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
        if node.target is torch._assert:
            self.changes.add(node.name)  # it has no readers, and must run
        sources = [self.rename(n) for n in node.all_input_nodes]
        if any(name in self.relevant for name in sources) and not _constant(node):
            self.relevant.add(node.name)
            if node.op == "call_module":
                call = self._module(call, self.modules[str(node.target)])
            else:
                call = self._function(call)
        for name in sources:
            if name in self.stale:
                call = self._unsupported(call, f"reads {name!r} after a change in place that it shares (clone it)")
        call = self._remember(call, args, kwargs)
        self.calls.append(call)
        self.kinds[call.name] = call

    def _ref(self, value: Any) -> Any:
        return Ref(self.rename(value)) if isinstance(value, fx.Node) else value

    def _known(self, value: Any) -> bool:
        return isinstance(value, Ref) and value.name in self.relevant

    def _module(self, call: Call, module: nn.Module) -> Call:
        kind = parametrize.type_before_parametrizations(module)
        arguments = [*call.args, *call.kwargs.values()]
        inputs = tuple(a.name for a in arguments if self._known(a))
        if kind in self.rules:
            return replace(call, kind="custom", inputs=inputs, options={"rule": self.rules[kind]})
        if kind not in MODULES:
            return self._unsupported(call, type(module).__name__)
        if getattr(module, "padding_mode", "zeros") != "zeros":
            return self._unsupported(call, f"{type(module).__name__}(padding_mode={module.padding_mode!r})")
        options = {name: getattr(module, name) for name in _MODULE_OPTIONS if hasattr(module, name)}
        # A parametrized weight is not looked at: that alone can change buffers (spectral_norm).
        weighted = parametrize.is_parametrized(module, "weight") or getattr(module, "weight", None) is not None
        weight = f"{call.path}.weight" if weighted else None
        return replace(call, kind=MODULES[kind], inputs=inputs[:1], options=options, weight=weight)

    def _function(self, call: Call) -> Call:
        name = _name(call)
        known = [r for r in refs((call.args, call.kwargs)) if r in self.relevant]
        if call.target in self.rules:
            return replace(call, kind="custom", inputs=tuple(known), options={"rule": self.rules[call.target]})
        if call.target in (getattr, operator.getitem) and known and known[0] in self.problems:
            return replace(call, kind="unsupported", inputs=tuple(known))  # a part of what is listed already
        if call.target is getattr and self._is_tuple(call.args[0]):  # max(...).values
            index = ("values", "indices").index(str(call.args[1]))
            return replace(call, kind="part", inputs=tuple(known), options={"index": index})
        entry = FUNCTIONS.get(call.target)
        if entry is None or "out" in call.kwargs:
            return self._unsupported(call, str(name))
        kind, names = entry
        named = {_NUMPY_NAMES.get(key, key): value for key, value in call.kwargs.items()}
        options = {**dict(zip(names, call.args, strict=False)), **named}
        call = replace(call, kind=kind, options=options)
        if kind == "getitem" and self._is_tuple(options["input"]):
            if not isinstance(options["index"], int):
                return self._unsupported(call, f"{name} of several parts at once")
            return replace(call, kind="part", inputs=(options["input"].name,))
        if kind in ("cat", "stack"):
            parts = options["input"]
            if not isinstance(parts, (tuple, list)):
                return self._unsupported(call, f"{name} of a list that is not written out")
            return replace(call, inputs=tuple(p.name for p in parts if self._known(p)))
        if kind == "einsum":
            return replace(call, inputs=tuple(known))
        inputs = tuple(options[n].name for n in _TENSORS if self._known(options.get(n)))
        if kind in _SIGNAL_ONLY:
            if not self._known(options.get("input")):
                return self._unsupported(call, f"{name} of a constant by a value that depends on the images")
            inputs = inputs[:1]
        if kind == "pow" and not isinstance(options.get("exponent"), (int, float)):
            return self._unsupported(call, f"{name} with an exponent that is no number")
        if kind == "mul":
            inputs = self._signal(inputs)
        if kind == "addcmul" and all(self._known(options[n]) for n in ("tensor1", "tensor2")):
            return self._unsupported(call, f"{name} of three values that depend on the images")
        if kind == "max" and isinstance(options.get("dim"), Ref):  # of two tensors
            pair = (options["input"], options["dim"])
            return self._function(replace(call, op="call_function", target=torch.maximum, args=pair, kwargs={}))
        if kind in ("mean", "sum", "amax", "max") and options.get("dim") is None:
            return self._unsupported(call, f"{name} over every axis")
        weights = [options.get(n) for n in ("weight", "bias", "running_mean", "running_var")]
        if any(self._known(w) for w in weights):
            return self._unsupported(call, f"{name} with weights that depend on the images")
        weight = self.attributes.get(weights[0].name) if isinstance(weights[0], Ref) else None
        if not inputs:
            return self._unsupported(call, f"{name} of arguments that depend on the images")
        return replace(call, inputs=inputs, weight=weight)

    def _is_tuple(self, value: Any) -> bool:
        return isinstance(value, Ref) and value.name in self.kinds and self.kinds[value.name].kind in TUPLES

    def _signal(self, inputs: tuple[str, ...]) -> tuple[str, ...]:
        """The factors of a product that receive relevance: not the one that comes from a gate."""
        if len(inputs) != 2:
            return inputs
        gates = [self._from_gate(name) for name in inputs]
        return inputs if gates[0] == gates[1] else (inputs[gates.index(False)],)

    def _from_gate(self, name: str) -> bool:
        call = self.kinds.get(name)
        while call is not None and len(call.inputs) == 1 and (call.kind in _VIEWS or call.kind in _GATE_PATH):
            call = self.kinds.get(call.inputs[0])
        return call is not None and call.kind in GATES

    def _unsupported(self, call: Call, what: str) -> Call:
        self.problems[call.name] = f"{call.path or '(root)'}: {what} ({call.op} {call.name!r})"
        known = tuple(r for r in refs((call.args, call.kwargs)) if r in self.relevant)
        return replace(call, kind="unsupported", inputs=known)

    def _remember(self, call: Call, args: Any, kwargs: Any) -> Call:
        """Keep account of values that share memory, and of those that an in-place call changes."""
        values = [*args, *kwargs.values()]
        source = values[0].name if values and isinstance(values[0], Ref) else ""
        memory, view = self.memory.get(source, (source, source))
        if source and self._changes_in_place(call):
            if call.kind == "constant" and (source in self.relevant or memory in self.relevant):
                call = self._unsupported(call, f"changes {source!r} in place by {call.target}")
            if call.kind == "constant":  # it runs in place, as the classifier does it
                self.memory[call.name] = (memory, view)
                if memory in self.attributes:
                    self.changes.add(call.name)
                return call
            for name, (other_memory, other_view) in list(self.memory.items()):
                if other_memory == memory and other_view != view:
                    self.stale.add(name)
            same = {name for name, (_, v) in self.memory.items() if v == view} | {source}
            self.renamed.update({name: call.name for name in same})
            self.renamed.update({old: call.name for old, new in self.renamed.items() if new in same})
            if memory in self.attributes:
                self.changes.add(call.name)
                call = self._unsupported(call, f"changes {self.attributes[memory]!r} by the images")
        elif call.kind == "identity" and call.target not in ("clone", torch.clone, "contiguous"):
            pass  # the input itself
        elif call.kind in _VIEWS or _may_share(call):
            view = call.name  # may share the input's memory, may be a copy: dropout does in evaluation mode
        else:
            memory = view = call.name
        self.memory[call.name] = (memory, view)
        return call

    def _changes_in_place(self, call: Call) -> bool:
        if call.op == "call_module":
            return bool(getattr(self.modules[call.target], "inplace", False))
        if call.op == "call_function" and call.target in _IN_PLACE_OPERATORS:
            return True
        name = _name(call)
        marked = name.endswith("_") and not name.endswith("__") and call.op != "get_attr"
        return marked or call.kwargs.get("inplace") is True or call.options.get("inplace") is True


def _may_share(call: Call) -> bool:
    """Whether the value of a call that is no view of relevance may share its input's memory."""
    attribute = call.args[1] if call.target is getattr else ""
    return call.target in ("contiguous", "detach", torch.detach) or attribute == "data"


_GATE_PATH = ("identity", "interpolate", "repeat", "repeat_interleave")


def _constant(node: fx.Node) -> bool:
    """Whether the result of a node carries no relevance: a size, a choice, a statistic to normalise by."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _SHAPE_ATTRIBUTES
    if node.op not in ("call_method", "call_function"):
        return False
    name = _name(node)
    return name in _SHAPES or name in _VALUES or name in _STATISTICS


def _live(calls: list[Call], output: str, changes: set[str]) -> set[str]:
    """Names of the calls that the output, or the classifier's own state, depends on."""
    memory: dict[str, str] = {}  # call -> the value whose memory it may share
    for call in calls:
        first = call.args[0].name if call.args and isinstance(call.args[0], Ref) else ""
        shares = bool(first) and (_may_view(call) or _writes(call))
        memory[call.name] = memory.get(first, first) if shares else call.name
    live = {output, *changes}
    written = {memory.get(name, name) for name in live}
    for call in reversed(calls):
        # What writes into memory that is read later matters, though nobody reads its own result.
        if call.name in live or (call.kind == "constant" and _writes(call) and memory[call.name] in written):
            sources = refs((call.args, call.kwargs))
            live.update((call.name, *sources))
            written.update(memory.get(name, name) for name in (call.name, *sources))
    return live


def _name(call: Call | fx.Node) -> str:
    return call.target if isinstance(call.target, str) else str(getattr(call.target, "__name__", call.target))


def _may_view(call: Call) -> bool:
    """Whether a call's value may lie in the memory of its first argument, also where it carries no relevance."""
    kind = FUNCTIONS[call.target][0] if call.target in FUNCTIONS else ""
    return kind in _VIEWS or kind == "identity" or call.target is getattr or _name(call) == "detach"


def _writes(call: Call) -> bool:
    """Whether a call without readers still matters: it changes its first argument."""
    name = _name(call)
    return call.op != "get_attr" and (name == "setitem" or (name.endswith("_") and not name.endswith("__")))


def _reached(calls: list[Call], output: str) -> set[str]:
    """Names of the calls that relevance reaches from the output."""
    reached = {output}
    for call in reversed(calls):
        if call.name in reached:
            reached.update(call.inputs)
    return reached


def _annotate(calls: list[Call]) -> tuple[Call, ...]:
    """Note on each call its depth, the sign of its input and the BatchNorms that are fused into it."""
    readers: dict[str, list[Call]] = {}
    for call in calls:
        for name in call.inputs:
            readers.setdefault(name, []).append(call)
    nonnegative: set[str] = set()
    for call in calls:
        if call.kind in _NONNEGATIVE or (call.kind in _KEEPS_SIGN and _all_inputs(call, nonnegative)):
            nonnegative.add(call.name)
    steps = sum(call.kind in WEIGHTED for call in calls) - 1
    annotated, seen = [], 0
    named = {call.name: call for call in calls}
    for call in calls:
        after = readers.get(call.name, [])
        norm = norm_before = None
        if call.kind in WEIGHTED:
            if len(after) == 1 and after[0].kind == "batch_norm":
                norm = after[0].name
            before = named.get(call.inputs[0])
            if before is not None and before.kind == "batch_norm" and len(readers[before.name]) == 1:
                source = named.get(before.inputs[0])
                alone = source is None or source.kind not in WEIGHTED or len(readers[source.name]) > 1
                norm_before = before.name if alone else None  # the one before it comes first
            seen += 1
        annotated.append(
            replace(
                call,
                norm=norm,
                norm_before=norm_before,
                depth=max(seen - 1, 0) / steps if steps > 0 else float(seen),  # a single one is the head
                nonnegative=bool(call.inputs) and call.inputs[0] in nonnegative,
            )
        )
    return tuple(annotated)


def _all_inputs(call: Call, nonnegative: set[str]) -> bool:
    """Whether every tensor, and every factor or number added, that enters a call is known to be >= 0."""
    numbers = call.options.values() if call.kind in ("add", "mul", "avg_pool") else ()
    if any(isinstance(number, (int, float)) and number < 0 for number in numbers):
        return False
    tensors: Iterable[Any] = refs((call.args, call.kwargs)) if call.kind in ("cat", "stack", "add", "mul") else ()
    return bool(call.inputs) and all(name in nonnegative for name in (*call.inputs, *tensors))


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
