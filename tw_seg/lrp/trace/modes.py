"""Arguments that are a module's training flag: one module may be frozen in a net that is in training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tw_seg.lrp.core.graph import Call, Graph, Mode


def follow_modes(evaluation: Graph, training: Graph) -> tuple[Graph, Graph]:
    """Let arguments that are a module's training flag follow the module: it may be frozen in a training net.

    Args:
        evaluation: The trace in evaluation mode.
        training: The trace in training mode.

    Returns:
        Both, with such arguments replaced by `Mode`.
    """
    others = {call.name: call for call in training.calls}
    found: dict[str, Call] = {}
    for call in evaluation.calls:
        other = others.get(call.name)
        if other is None or other.target != call.target or call.fx_op != "call_function":
            continue
        changed: dict[str, Any] = {
            part: _pair_modes(getattr(call, part), getattr(other, part), call.path)
            for part in ("args", "kwargs", "options")
        }
        found[call.name] = replace(call, **{part: pair[0] for part, pair in changed.items()})
        others[call.name] = replace(other, **{part: pair[1] for part, pair in changed.items()})
    return (
        replace(evaluation, calls=tuple(found.get(call.name, call) for call in evaluation.calls)),
        replace(training, calls=tuple(others[call.name] for call in training.calls)),
    )


def _pair_modes(off: Any, on: Any, path: str) -> tuple[Any, Any]:
    """Two sets of arguments, with a flag that is False in the first and True in the second replaced."""
    if isinstance(off, dict) and isinstance(on, dict) and off.keys() == on.keys():
        pairs = {key: _pair_modes(off[key], on[key], path) for key in off}
        return {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}
    if isinstance(off, tuple) and isinstance(on, tuple) and len(off) == len(on):
        both = [_pair_modes(a, b, path) for a, b in zip(off, on, strict=True)]
        return tuple(pair[0] for pair in both), tuple(pair[1] for pair in both)
    return (Mode(path), Mode(path)) if off is False and on is True else (off, on)
