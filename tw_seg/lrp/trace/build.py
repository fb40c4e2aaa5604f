"""From a traced classifier to the list of its calls: which operation each is, and what carries relevance."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Container, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from tw_seg.errors import TraceError, UnsupportedOpError
from tw_seg.lrp.core.graph import CONSTANT, UNSUPPORTED, Call, Graph, Ref, map_leaves, refs
from tw_seg.lrp.ops import FUNCTIONS, IN_PLACE, MODULES
from tw_seg.lrp.ops.constants import CONSTANT_ATTRIBUTES, CONSTANT_FUNCTIONS, STATISTICS, hold_constant
from tw_seg.lrp.ops.custom import CUSTOM
from tw_seg.lrp.ops.op import NUMPY_NAMES, Known, bind
from tw_seg.lrp.trace.accept import describe_output
from tw_seg.lrp.trace.aliasing import Aliases, find_live
from tw_seg.lrp.trace.annotate import annotate
from tw_seg.lrp.trace.examples import default_image_shape
from tw_seg.lrp.trace.hooks import HookCall, find_changing
from tw_seg.lrp.trace.tracer import symbolic_trace

CustomRule = Callable[..., Tensor | tuple[Tensor | None, ...]]
"""``rule(c, inputs, output, module)``: see ``docs/custom_rule.md``."""

CustomRules = Mapping[type[nn.Module] | Callable[..., Any] | str, CustomRule]
"""Module class, function or method name -> the user's rule."""


def trace(
    classifier: nn.Module,
    training: bool | None,
    *,
    image_shape: tuple[int, int, int] | None = None,
    custom_rules: CustomRules | None = None,
) -> Graph:
    """Trace a classifier and say what kind of operation each call is. Nothing is computed but by its hooks.

    A call without a relevance rule is listed in the graph's ``unsupported``: see `refuse_unsupported`.

    Args:
        classifier: Maps (N, C, H, W) to (N, K) without control flow on values.
        training: Whether to trace the path that it takes in training mode; ``None``: that of its modules' own modes.
        image_shape: (C, H, W) of the images, for a forward that branches on sizes; ``None``: its usual one.
        custom_rules: Rules of the user for module classes, functions or methods; they come first.

    Raises:
        TraceError: If torch.fx cannot trace it, or if the run would compute something else than the classifier.
    """
    rules = dict(custom_rules or {})
    image_shape = image_shape or default_image_shape(classifier)
    parameters = list(inspect.signature(classifier.forward).parameters.values())
    # The other arguments keep their defaults, so that the classifier may branch on them.
    defaults = {p.name: p.default for p in parameters[1:] if isinstance(p.default, (bool, int, float, type(None)))}
    traced = symbolic_trace(
        classifier,
        training=training,
        image_shape=image_shape,
        known_functions=(*FUNCTIONS, hold_constant),
        rules=tuple(rules),
        changing_hooks=find_changing(classifier, training, image_shape),
        defaults=defaults,
    )
    builder, output = _build(traced.graph, classifier, rules)
    reached = _find_reached(builder.calls, output)
    if constants := builder.statistics - reached:  # a divisor, a scale: no relevance asks for its rule
        builder, output = _build(traced.graph, classifier, rules, constants)
    live = find_live(builder.calls, output, builder.aliases.changes)
    calls = [call for call in builder.calls if call.name in live]
    problems = {name: text for name, text in builder.problems.items() if name in live}
    if output not in builder.relevant:
        raise TraceError(_describe_independence(classifier, calls, builder.relevant))
    return Graph(
        annotate(calls),
        builder.images,
        output,
        traced.specialised,
        problems,
        frozenset(builder.faults & live),
        traced.asks_for_gradients,
    )


def _build(
    graph: fx.Graph, classifier: nn.Module, rules: dict[Any, CustomRule], constants: Set[str] = frozenset()
) -> tuple[_Builder, str]:
    """The calls of a traced forward, and the name of the one that makes the logits.

    Args:
        graph: The trace.
        classifier: The classifier.
        rules: The user's rules.
        constants: Names of statistics that carry no relevance.
    """
    images = next(node.name for node in graph.nodes if node.op == "placeholder")
    builder = _Builder(dict(classifier.named_modules()), images, rules, constants)
    output = ""
    others: list[fx.Node] = []
    for node in graph.nodes:
        if node.op == "output":
            result = node.args[0]
            if isinstance(result, fx.Node) and isinstance(result.target, type) and issubclass(result.target, tuple):
                result = result.args  # a named tuple
            if isinstance(result, (tuple, list)) and result:  # auxiliary heads in training: the logits come first
                result, others = result[0], [node for node in result[1:] if isinstance(node, fx.Node)]
            if (problem := describe_output(result)) is not None:
                raise TraceError(problem)
            output = builder.find_present(result)
        else:
            builder.add(node)
    if _is_followed_by_weights(builder.calls, output, {builder.find_present(node) for node in others}):
        raise TraceError(
            f"{type(classifier).__name__} returns several tensors, and layers with weights compute a later one "
            f"from the first, {output!r}: the first is taken for the logits, and these look like features. Return "
            "the logits alone, or first"
        )
    return builder, output


def refuse_unsupported(classifier: nn.Module, graphs: Iterable[tuple[Graph, frozenset[str]]]) -> None:
    """Refuse calls that have no rule and need one, of all graphs at once.

    Args:
        classifier: The classifier.
        graphs: Graphs of it, each with the names of the activations whose relevance is needed.

    Raises:
        UnsupportedOpError: Listing every such call.
    """
    found: dict[str, None] = {}
    for graph, wanted in graphs:
        reached = graph.upstream()
        for call in graph.calls:
            if call.name in graph.unsupported and (
                call.name in graph.unfollowed or (call.name in reached and not wanted.isdisjoint(call.inputs))
            ):
                found[graph.unsupported[call.name]] = None
    if found:
        raise UnsupportedOpError(
            f"{type(classifier).__name__} has {len(found)} call(s) without a relevance rule:\n  "
            + "\n  ".join(found)
            + "\nReplace them in the classifier, or give them a custom rule: "
            "HeatmapDecoder(classifier, custom_rules={TheirClassOrFunction: rule}), see docs/custom_rule.md."
        )


def _describe_independence(classifier: nn.Module, calls: Iterable[Call], relevant: Container[str]) -> str:
    """Why no relevance leaves the logits, and what to do."""
    followed = (call for call in calls if any(name in relevant for name in refs((call.args, call.kwargs))))
    ends = [call for call in followed if call.name not in relevant]
    text = f"the logits of {type(classifier).__name__} do not depend on its images"
    if not ends:
        return f"{text}: return what is computed from them"
    spelled = (str(call.args[1]) if call.target is getattr else call.spelling for call in ends)
    where = ", ".join(f"{word} at {call.place} ({call.name!r})" for word, call in zip(spelled, ends, strict=True))
    return (
        f"{text} through operations that relevance follows, only through {where}: heatmaps would be 0. Leave these "
        "out on the way to the logits, such as detach(), or return the scores from before them"
    )


def _is_followed_by_weights(calls: Iterable[Call], start: str, ends: set[str]) -> bool:
    """Whether one of some values is computed from another one through a layer with weights."""
    direct: set[str] = {start}
    weighted: set[str] = set()
    for call in calls:
        if not weighted.isdisjoint(call.inputs) or (call.op.weighted and not direct.isdisjoint(call.inputs)):
            weighted.add(call.name)
        elif not direct.isdisjoint(call.inputs):
            direct.add(call.name)
    return not weighted.isdisjoint(ends)


class _Builder:
    """Turns fx nodes into calls."""

    def __init__(
        self, modules: dict[str, nn.Module], images: str, rules: dict[Any, CustomRule], constants: Set[str]
    ) -> None:
        self.modules = modules
        self.images = images
        self.constants = constants
        self.statistics: set[str] = set()
        self.rules = rules
        self.named: dict[str, Call] = {}
        self.problems: dict[str, str] = {}
        self.faults: set[str] = set()  # calls that a run cannot follow, whether relevance passes them or not
        self.relevant = {images}
        self.known = Known(self.named, self.relevant)
        self.aliases = Aliases(modules, self.relevant)

    @property
    def calls(self) -> list[Call]:
        """The calls so far, in their order."""
        return list(self.named.values())

    def find_present(self, node: fx.Node) -> str:
        """The call that made the present value of a node, which a change in place may have replaced."""
        return self.aliases.renamed.get(node.name, node.name)

    def add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            return  # the images, or an optional argument that keeps its default
        args, kwargs = map_leaves(node.args, self._refer), map_leaves(node.kwargs, self._refer)
        stack = list((node.meta.get("nn_module_stack") or {"": None}).keys())
        path = str(node.target) if node.op == "call_module" else str(stack[-1]).partition("@")[0]  # "@2": 2nd call
        call = Call(node.name, path, CONSTANT, node.op, node.target, tuple(args), dict(kwargs), ())
        if node.target is torch._assert or isinstance(node.target, HookCall):
            self.aliases.changes.add(node.name)  # it has no readers, and must run
        if call.spelling in STATISTICS:
            self.statistics.add(call.name)
        sources = [self.find_present(n) for n in node.all_input_nodes]
        if not any(name in self.relevant for name in sources) or call.name in self.constants or _is_constant(call):
            call = replace(call, parameter=self._find_parameter(call))
        else:
            self.relevant.add(node.name)
            call = self._bind_module(call) if node.op == "call_module" else self._bind_function(call)
        for name in sources:
            if name in self.aliases.stale:
                call = self._refuse(call, f"reads {name!r} after a change in place that it shares (clone it)")
                self.faults.add(call.name)
        if problem := self.aliases.record(call):
            call = self._refuse(call, problem)
            self.faults.add(call.name)
        if call.op is UNSUPPORTED and self.aliases.changes_in_place(call):
            self.faults.add(call.name)  # a run makes changes out of place, which needs to know the operation
        arguments = dict.fromkeys(refs((call.args, call.kwargs, call.options)))
        constants = tuple(name for name in arguments if name not in self.relevant)
        self.named[call.name] = replace(call, constants=constants)

    def _refer(self, value: Any) -> Any:
        return Ref(self.find_present(value)) if isinstance(value, fx.Node) else value

    def _find_parameter(self, call: Call) -> str | None:
        """The parameter or buffer that the value of a constant call is, or is a rearrangement of."""
        if call.fx_op == "get_attr":
            return str(call.target)
        source = call.args[0] if call.args else None
        rearranges = call.fx_op != "call_module" and call.target in FUNCTIONS and FUNCTIONS[call.target][0].rearranges
        return self.named[source.name].parameter if rearranges and isinstance(source, Ref) else None

    def _bind_module(self, call: Call) -> Call:
        module = self.modules[call.target]
        kind = parametrize.type_before_parametrizations(module)
        inputs = tuple(a.name for a in (*call.args, *call.kwargs.values()) if self.known.is_relevant(a))
        if kind in self.rules:
            return replace(call, op=CUSTOM, inputs=inputs, options={"rule": self.rules[kind]})
        if kind not in MODULES:
            return self._refuse(call, type(module).__name__)
        op = MODULES[kind]
        for name, value in op.only.items():
            if (found := getattr(module, name, value)) != value:
                return self._refuse(call, f"{type(module).__name__}({name}={found!r})")
        options = {name: getattr(module, name) for name in op.options if hasattr(module, name)}
        # A parametrized weight is not looked at: that alone can change buffers (spectral_norm).
        weighted = parametrize.is_parametrized(module, "weight") or getattr(module, "weight", None) is not None
        weight = f"{call.path}.weight" if weighted else None
        return replace(call, op=op, inputs=inputs[:1], options=options, weight=weight)

    def _bind_function(self, call: Call) -> Call:
        known = tuple(name for name in refs((call.args, call.kwargs)) if name in self.relevant)
        if call.target in self.rules:
            return replace(call, op=CUSTOM, inputs=known, options={"rule": self.rules[call.target]})
        if call.target in (getattr, operator.getitem) and known and known[0] in self.problems:
            return replace(call, op=UNSUPPORTED, inputs=known)  # a part of what is listed already
        in_place = call.target in IN_PLACE
        if in_place:
            call = replace(call, target=IN_PLACE[call.target])
        if call.target not in FUNCTIONS or call.kwargs.get("out") is not None:
            return self._refuse(call, call.spelling)
        op, names = FUNCTIONS[call.target]
        named = {NUMPY_NAMES.get(key, key): value for key, value in call.kwargs.items()}
        options = {**dict(zip(names, call.args, strict=False)), **named}
        call = replace(call, op=op, options={**options, "inplace": True} if in_place else options)
        bound = (op.bind or bind)(call, self.known)
        return self._refuse(call, bound) if isinstance(bound, str) else bound

    def _refuse(self, call: Call, what: str) -> Call:
        self.problems[call.name] = f"{call.place}: {what} ({call.fx_op} {call.name!r})"
        known = tuple(name for name in refs((call.args, call.kwargs)) if name in self.relevant)
        return replace(call, op=UNSUPPORTED, inputs=known)


def _is_constant(call: Call) -> bool:
    """Whether the value of a call carries no relevance: a size, a choice, a statistic to normalise by."""
    if isinstance(call.target, HookCall):
        return True
    if call.fx_op == "call_function" and call.target is getattr:
        return call.args[1] in CONSTANT_ATTRIBUTES
    return call.fx_op in ("call_method", "call_function") and call.spelling in CONSTANT_FUNCTIONS


def _find_reached(calls: Sequence[Call], output: str) -> set[str]:
    """Names of the calls that relevance reaches from the output."""
    reached = {output}
    for call in reversed(calls):
        if call.name in reached:
            reached.update(call.inputs)
    return reached
