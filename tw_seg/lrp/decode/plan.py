"""What is decided about a decode before any image is seen: one plan for each mode of the classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from tw_seg.errors import InputError
from tw_seg.lrp.composite import Composite
from tw_seg.lrp.core.graph import CONSTANT, Call, Graph, refs
from tw_seg.lrp.core.rule import InputRule, Rule
from tw_seg.lrp.trace.build import CustomRules, refuse_unsupported, trace
from tw_seg.lrp.trace.compare import compare
from tw_seg.lrp.trace.modes import follow_modes
from tw_seg.lrp.trace.state import BuildState, find_mode

Mode = bool | tuple[bool, ...]
"""The training flag of a classifier, or of each of its modules where they differ."""


@dataclass(frozen=True)
class Plan:
    """How to decode in one mode.

    Attributes:
        graph: The calls.
        calls: The same by name.
        readouts: Names of the calls that are read.
        wanted: The calls between the logits and the read-outs: those whose coefficient is needed.
        rules: The rule of each call by its name.
        input_rule: Rule of the linear calls that read the images; ``None``: as every other call.
        heatmap: What is summed over channels: relevance, or the coefficient as it is.
        last_uses: For each call, the activations that neither a later call nor a decode looks at.
    """

    graph: Graph
    calls: Mapping[str, Call]
    readouts: tuple[str, ...]
    wanted: frozenset[str]
    rules: Mapping[str, Rule]
    input_rule: InputRule | None
    heatmap: Literal["relevance", "coefficient"]
    last_uses: Mapping[str, tuple[str, ...]]

    def decoded_calls(self) -> list[Call]:
        """The calls through which coefficients pass on their way to a read-out."""
        return [call for call in self.graph.calls if any(name in self.wanted for name in call.inputs)]


def make_plan(graph: Graph, composite: Composite, read_out: tuple[str | float, ...]) -> Plan:
    """Decide what a decode of a graph computes and keeps.

    Raises:
        InputError: For a read-out that is not there.
    """
    calls = {call.name: call for call in graph.calls}
    readouts = resolve_readouts(graph, read_out)
    rules, wanted = composite.rules(graph.calls), graph.downstream(readouts) & graph.upstream()
    plan = Plan(graph, calls, readouts, wanted, rules, composite.input, composite.heatmap, {})
    looked_at = _find_values(plan) | {graph.output, *readouts}
    return replace(plan, last_uses=graph.last_uses(looked_at))


def _find_values(plan: Plan) -> frozenset[str]:
    """Names of the activations that a decode looks at, not only at their shapes."""
    found: set[str] = set()
    for call in plan.decoded_calls():
        reads, rule = call.op.reads, plan.rules[call.name]
        before = plan.calls[call.norm_before].inputs if call.norm_before else ()
        reads_images = plan.input_rule is not None and plan.graph.input in (*call.inputs, *before)
        if reads is None or reads_images:
            found |= {call.name, *call.inputs, *refs((call.args, call.kwargs, call.options))}
            found |= {name for name in (call.norm,) if name}
        else:
            found.update(reads(rule, call, plan.calls))
    return frozenset(found)


def resolve_readouts(graph: Graph, places: tuple[str | float, ...]) -> tuple[str, ...]:
    """Names of the calls that are read.

    Raises:
        InputError: For a place that is not in the graph, that is named more than once, or for none at all.
    """
    try:
        found = tuple(graph.readout(place) for place in places)
    except KeyError as error:
        paths = sorted({c.path.split(".")[0] for c in graph.calls if c.op is not CONSTANT and c.path})
        raise InputError(
            f"read_out {error.args[0]!r} is neither 'input', a module, a call nor a fraction from 0 to 1 of the "
            f"classifier; its top-level modules are {', '.join(paths)}"
        ) from None
    if not found or len(set(found)) != len(found):
        raise InputError(f"read_out must name at least one place and each only once, got {places}")
    return found


def order_towards_images(plan: Plan) -> tuple[int, ...]:
    """Indices of the read-outs from the one that is next to the logits to the one that is next to the images."""
    place = {call.name: number for number, call in enumerate(plan.graph.calls)}
    return tuple(sorted(range(len(plan.readouts)), key=lambda i: place.get(plan.readouts[i], -1), reverse=True))


def count_image_axes(graph: Graph) -> int | None:
    """Number of axes of the images, where a layer with a kernel reads them; ``None``: it is not known."""
    kernels = [
        c.options.get("kernel_size") for c in graph.calls if graph.input in c.inputs and c.fx_op == "call_module"
    ]
    return next((2 + len(kernel) for kernel in kernels if isinstance(kernel, tuple)), None)


def check_logits(logits: Tensor) -> None:
    """Check that a classifier returned logits (N, K).

    Raises:
        InputError: If it did not.
    """
    if logits.ndim != 2 or not logits.shape[1]:
        raise InputError(f"the classifier must return logits of shape (N, K), it returned {tuple(logits.shape)}")


class Plans:
    """The plans of one classifier: for both modes and, where its forward branches on sizes, for each image shape.

    Attributes:
        composite: Which rule for which call.
        read_out: The places that are read.
        classes: Number of logits, once the classifier has been run.
        are_log_probabilities: Whether these were logarithms of probabilities that sum to 1.
    """

    def __init__(
        self, composite: Composite, read_out: tuple[str | float, ...], custom_rules: CustomRules | None
    ) -> None:
        """Start without any plan."""
        self.composite = composite
        self.read_out = read_out
        self.classes: int | None = None
        self.are_log_probabilities = False
        self._custom_rules = custom_rules
        self._known: dict[tuple[Mode, tuple[int, ...] | None], Plan] = {}
        self._state: BuildState | None = None
        self._hooks_unseen = False  # whether it could not be run to see what they do, and can be perhaps now
        self._not_compared: list[Plan] = []  # those whose trace is still to be compared with the classifier

    def make(self, classifier: nn.Module, shape: tuple[int, ...], *, before_images: bool = False) -> tuple[Plan, Plan]:
        """Trace a classifier at an image shape (C, H, W): in training mode it may take another path.

        Args:
            classifier: The classifier.
            shape: The shape.
            before_images: Whether no images have been seen yet.

        Returns:
            The plans of evaluation mode and of training mode.
        """
        assert len(shape) == 3
        self._state = self._state or BuildState(classifier)
        graphs = [trace(classifier, mode, image_shape=shape, custom_rules=self._custom_rules) for mode in (False, True)]
        evaluation, training = (make_plan(g, self.composite, self.read_out) for g in follow_modes(*graphs))
        refuse_unsupported(classifier, ((plan.graph, plan.wanted) for plan in (evaluation, training)))
        for mode, plan in ((False, evaluation), (True, training)):
            self._compare(classifier, plan, mode, shape)
        self._hooks_unseen = before_images and self._state.has_hooks and bool(self._not_compared)
        return evaluation, training

    def make_for_own_modes(self, classifier: nn.Module, shape: tuple[int, ...]) -> Plan:
        """Trace a classifier some of whose modules are in training mode and others not, as when a part is frozen.

        Args:
            classifier: The classifier.
            shape: The shape (C, H, W) of images.
        """
        assert len(shape) == 3
        graph = trace(classifier, None, image_shape=shape, custom_rules=self._custom_rules)
        plan = make_plan(graph, self.composite, self.read_out)
        refuse_unsupported(classifier, [(plan.graph, plan.wanted)])
        self._compare(classifier, plan, None, shape)
        return plan

    def _compare(self, classifier: nn.Module, plan: Plan, training: bool | None, shape: tuple[int, ...]) -> None:
        wanted = frozenset[str]() if training else plan.wanted
        logits = compare(classifier, plan.graph, training, shape, wanted)
        if logits is None:
            self._not_compared.append(plan)
            return
        check_logits(logits)
        self.classes = logits.shape[1]
        self.are_log_probabilities = self.classes > 1 and bool(logits.logsumexp(1).abs().max() < 1e-4)

    def compare_late(self, classifier: nn.Module, plan: Plan, shape: tuple[int, ...]) -> None:
        """Compare a trace that could not be compared when it was made, as on the device ``meta``, at real images.

        Raises:
            TraceError: Naming the first module whose output differs.
        """
        late = [other for other in self._not_compared if other is plan]
        if late and not torch.compiler.is_compiling():
            compare(classifier, plan.graph, None, shape)
            self._not_compared = [other for other in self._not_compared if other is not plan]

    def add(self, shape: tuple[int, ...], plans: Mapping[Mode, Plan]) -> None:
        """Use plans that were made at an image shape, for it alone where the forward branches on sizes."""
        for mode, plan in plans.items():
            self._known[mode, shape if plan.graph.specialised else None] = plan

    def find_mode(self, classifier: nn.Module) -> Mode:
        """The present mode of the classifier. Plans of one that was built otherwise are forgotten.

        A compiler sees the flag of the classifier alone.
        """
        if torch.compiler.is_compiling() or self._state is None:
            return classifier.training
        if self._hooks_unseen or not self._state.holds():
            self._known.clear()
            self._not_compared.clear()
            self._state, self._hooks_unseen = BuildState(classifier), False
        return find_mode(self._state.modules)

    def find(self, mode: Mode, shape: tuple[int, ...]) -> Plan | None:
        """The plan of a mode for images of a shape (C, H, W), if there is one.

        Raises:
            InputError: If there is none while a compiler runs, which cannot trace.
        """
        for key in ((mode, None), (mode, shape)):
            if key in self._known:
                return self._known[key]
        if torch.compiler.is_compiling():
            raise InputError(
                f"the classifier's forward branches on sizes and was not traced for images {shape} yet: run the "
                "decoder once on such images, or give image_size, before you compile or export it"
            )
        return None

    def find_graph(self, graph: Graph) -> Plan:
        """The plan of a graph.

        Raises:
            InputError: For a graph of another decoder.
        """
        plan = next((plan for plan in self._known.values() if plan.graph is graph), None)
        if plan is None:
            raise InputError("the tape was recorded by another decoder: use the one that is to decode it")
        return plan
