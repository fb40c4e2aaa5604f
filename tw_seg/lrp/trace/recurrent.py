"""Recurrent layers written out step by step; relevance goes to what a gate lets through, and none to the gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.errors import TraceError
from tw_seg.lrp.trace.rewriting import hold

State = tuple[Tensor, ...]
"""What a step hands on to the next one: its output, and the cell of an LSTM."""

Step = Callable[[Tensor, Tensor, State], State]
"""From the projections of the input and of the last output, and the last state, to the next state."""


def _step_lstm(x: Tensor, h: Tensor, state: State) -> State:
    enter, forget, value, leave = (x + h).chunk(4, -1)
    cell = state[1] * _gate(forget) + torch.tanh(value) * _gate(enter)
    return torch.tanh(cell) * _gate(leave), cell


def _step_gru(x: Tensor, h: Tensor, state: State) -> State:
    (x_reset, x_keep, x_value), (h_reset, h_keep, h_value) = (list(part.chunk(3, -1)) for part in (x, h))
    value = torch.tanh(x_value + h_value * _gate(x_reset + h_reset))
    kept = _gate(x_keep + h_keep)
    return (value * (1 - kept) + state[0] * kept,)


def _gate(value: Tensor) -> Tensor:
    gate: Tensor = hold(torch.sigmoid(value))
    return gate


_STEPS: dict[str, Step] = {
    "LSTM": _step_lstm,
    "GRU": _step_gru,
    "RNN_TANH": lambda x, h, state: (torch.tanh(x + h),),
    "RNN_RELU": lambda x, h, state: (torch.relu(x + h),),
}


def _run_layers(module: nn.RNNBase, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
    """``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``."""
    if input.dim() != 3:
        raise TraceError(f"{type(module).__name__} needs a batch of sequences of 3 axes, got a single sequence")
    sequence = input if module.batch_first else input.transpose(0, 1)
    given = None if hx is None else [s.unbind(0) for s in (hx if module.mode == "LSTM" else (hx,))]
    last: list[State] = []
    for layer in range(module.num_layers):
        if layer and module.dropout:
            sequence = F.dropout(sequence, module.dropout, training=module.training)
        results = []
        for turn in (False, True)[: 1 + module.bidirectional]:
            ends = f"_l{layer}{'_reverse' * turn}"
            state = _start(module, sequence) if given is None else tuple(s[len(last)] for s in given)
            steps = list(_project(module, "ih", ends, sequence).unbind(1))
            outputs = []
            for x in reversed(steps) if turn else steps:
                state = _STEPS[module.mode](x, _project(module, "hh", ends, state[0]), state)
                if module.proj_size:
                    state = (F.linear(state[0], getattr(module, f"weight_hr{ends}")), *state[1:])
                outputs.append(state[0])
            results.append(torch.stack(outputs[::-1] if turn else outputs, 1))
            last.append(state)
        sequence = torch.cat(results, -1) if module.bidirectional else results[0]
    states = tuple(torch.stack(parts, 0) for parts in zip(*last, strict=True))
    return sequence if module.batch_first else sequence.transpose(0, 1), states if len(states) > 1 else states[0]


def _start(module: Any, sequence: Tensor) -> State:
    sizes = (getattr(module, "proj_size", 0) or module.hidden_size, module.hidden_size)
    return tuple(sequence.new_zeros(sequence.shape[0], size) for size in sizes)


def _project(module: Any, which: str, ends: str, value: Tensor) -> Tensor:
    bias = getattr(module, f"bias_{which}{ends}") if module.bias else None
    return F.linear(value, getattr(module, f"weight_{which}{ends}"), bias)


def _run_cell(module: Any, input: Tensor, hx: Any = None) -> Any:
    """``nn.LSTMCell``, ``nn.GRUCell`` and ``nn.RNNCell``."""
    if input.dim() != 2:
        raise TraceError(f"{type(module).__name__} needs a batch of values of 2 axes, got a single one")
    kind = type(module).__name__.removesuffix("Cell")
    step = _STEPS[f"RNN_{module.nonlinearity.upper()}" if isinstance(module, nn.RNNCell) else kind]
    state = _start(module, input) if hx is None else hx if isinstance(module, nn.LSTMCell) else (hx,)
    state = step(_project(module, "ih", "", input), _project(module, "hh", "", state[0]), state)
    return state if isinstance(module, nn.LSTMCell) else state[0]


RECURRENT_MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), _run_layers),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), _run_cell),
}
"""Module class of torch -> its forward step by step."""
