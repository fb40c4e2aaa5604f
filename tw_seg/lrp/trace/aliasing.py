"""Which values share memory, and which changes in place a run that makes every change out of place can follow."""

from __future__ import annotations

import operator
from collections.abc import Container, Mapping, Sequence

from torch import nn

from tw_seg.lrp.core.graph import CONSTANT, Call, Memory, Ref, refs
from tw_seg.lrp.ops import FUNCTIONS
from tw_seg.lrp.ops.constants import CONSTANT_VIEWS
from tw_seg.lrp.trace.tracer import IN_PLACE_OPERATORS

_IN_PLACE_OPERATORS = (*IN_PLACE_OPERATORS.values(), operator.setitem)


class Aliases:
    """What is known of the memory of the values so far.

    Attributes:
        renamed: Value that was changed in place -> the call that made its present value.
        stale: Values that changed with another one of the same memory, which no longer can be read.
        changes: Calls that change the classifier's own parameters or buffers.
    """

    def __init__(self, modules: Mapping[str, nn.Module], relevant: Container[str]) -> None:
        """Begin without values.

        Args:
            modules: The classifier's modules by path.
            relevant: Names of the values that carry relevance.
        """
        self.renamed: dict[str, str] = {}
        self.stale: set[str] = set()
        self.changes: set[str] = set()
        self._modules = modules
        self._relevant = relevant
        self._attributes: dict[str, str] = {}  # get_attr call -> dotted name
        # Value -> (memory, view): values of one memory change together, those of one view are equal.
        self._memory: dict[str, tuple[str, str]] = {}

    def record(self, call: Call) -> str:
        """Note where a call's value lies and what it changes in place; returns why that cannot be followed, or ""."""
        if call.fx_op == "get_attr":
            self._attributes[call.name] = str(call.target)
        first = next(iter((*call.args, *call.kwargs.values())), None)
        source = first.name if isinstance(first, Ref) else next(iter(call.inputs), "")
        memory, view = self._memory.get(source, (source, source))
        problem = ""
        if source and self.changes_in_place(call):
            if call.op is CONSTANT and source not in self._relevant and memory not in self._relevant:
                # It runs in place, as the classifier does it.
                if memory in self._attributes:
                    self.changes.add(call.name)
            else:
                if call.op is CONSTANT:
                    problem = f"changes {source!r} in place by {call.target}"
                self._rename(call, source, memory, view)
                if memory in self._attributes:
                    self.changes.add(call.name)
                    problem = f"changes {self._attributes[memory]!r} by the images"
        elif call.op.memory is Memory.SHARED or _is_constant_view(call):
            view = call.name  # may share the input's memory, may be a copy: dropout does in evaluation mode
        elif call.op.memory is Memory.NEW:
            memory = view = call.name
        self._memory[call.name] = (memory, view)
        return problem

    def _rename(self, call: Call, source: str, memory: str, view: str) -> None:
        """Let those that read a value after its change see the new one."""
        for name, (other_memory, other_view) in self._memory.items():
            if other_memory == memory and other_view != view:
                self.stale.add(name)
        same = {name for name, (_, v) in self._memory.items() if v == view} | {source}
        self.renamed.update({name: call.name for name in same})
        self.renamed.update({old: call.name for old, new in self.renamed.items() if new in same})

    def changes_in_place(self, call: Call) -> bool:
        """Whether a call changes its first argument."""
        if call.fx_op == "call_module":
            return bool(getattr(self._modules[call.target], "inplace", False))
        if call.fx_op == "call_function" and call.target in _IN_PLACE_OPERATORS:
            return True
        marked = _is_marked(call) and call.fx_op != "get_attr"
        return marked or call.kwargs.get("inplace") is True or call.options.get("inplace") is True


def find_live(calls: Sequence[Call], output: str, changes: set[str]) -> set[str]:
    """Names of the calls that the output, or the classifier's own state, depends on.

    Args:
        calls: All calls in their order.
        output: Name of the logits.
        changes: Names of the calls that change the classifier's own state.
    """
    memory: dict[str, str] = {}  # call -> the value whose memory it may share
    for call in calls:
        first = call.args[0].name if call.args and isinstance(call.args[0], Ref) else ""
        shares = bool(first) and (_may_view(call) or _writes(call))
        memory[call.name] = memory.get(first, first) if shares else call.name
    live = {output, *changes}
    written = {memory.get(name, name) for name in live}
    for call in reversed(calls):
        # What writes into memory that is read later matters, though nobody reads its own result.
        if call.name in live or (call.op is CONSTANT and _writes(call) and memory[call.name] in written):
            sources = refs((call.args, call.kwargs))
            live.update((call.name, *sources))
            written.update(memory.get(name, name) for name in (call.name, *sources))
    return live


def _is_constant_view(call: Call) -> bool:
    """Whether the value of a call that carries no relevance may share its input's memory."""
    if call.target is getattr:
        return call.args[1] in CONSTANT_VIEWS
    return call.fx_op in ("call_function", "call_method") and call.spelling in CONSTANT_VIEWS


def _may_view(call: Call) -> bool:
    """Whether a call's value may lie in the memory of its first argument, also where it carries no relevance."""
    op = FUNCTIONS[call.target][0] if call.target in FUNCTIONS else call.op
    return op.memory is not Memory.NEW or call.target is getattr or _is_constant_view(call)


def _writes(call: Call) -> bool:
    """Whether a call without readers still matters: it changes its first argument."""
    return call.fx_op != "get_attr" and (call.target in _IN_PLACE_OPERATORS or _is_marked(call))


def _is_marked(call: Call) -> bool:
    """Whether torch's naming says that it changes its first argument."""
    return call.spelling.endswith("_") and not call.spelling.endswith("__")
