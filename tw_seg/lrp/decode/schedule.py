"""What a decode may take, and how it is cut into pieces for that: samples and classes at once, which are recomputed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tw_seg.arguments import is_number
from tw_seg.errors import InputError
from tw_seg.lrp.core.backward import Backward
from tw_seg.memory import is_out_of_memory

_FRESH_PAGES = 32 * 2**20
"""Bytes from which on the C library maps every block anew (glibc's largest M_MMAP_THRESHOLD).

Touching fresh pages takes longer than the arithmetic: an elementwise product of 44 MB took 17 ms, of 22 MB 0.8 ms.
"""

_AT_LEAST = 4
"""Pairs at once even where they need fresh pages: each piece reads all weights and adds to their gradients.

A step of ResNet-50 with 11 pairs of 512 x 512 px took 16.5 s one at a time, 13.2 s by two, 12.0 s by four, 14.9 s
at once.
"""

_RECOMPUTED_ON_CPU, _RECOMPUTED = _FRESH_PAGES // 2, 128 * 2**20
"""Bytes of the largest coefficient of a piece that is recomputed, there and elsewhere: all that a decode keeps.

On 2 cores, ResNet-50, 15 rather than 31 pairs at once took 1.07 times as long in 0.85 of the memory.
"""

_LIVE = 4
"""Coefficients of the largest size that live at once: both branches of a residual block, one of them in a product."""


@dataclass(frozen=True)
class Schedule:
    """Trades the memory of a decode against its time. Heatmaps and gradients stay the same but for rounding.

    Only a ``gradient_threshold`` above 0 changes gradients. What is recomputed cannot be differentiated twice.

    Attributes:
        chunk_size: Classes decoded at once; ``None``: as many as ``memory_budget`` allows and, on a CPU, as keep
            within reusable memory; fewer where they are recomputed.
        recompute: Recompute each chunk in the backward pass instead of keeping its activations: memory does not
            grow with the number of classes, at the cost of one more decode.
        memory_budget: Memory in GiB that a decode may take besides the classifier's own activations, ``None`` for
            any. It sets the chunk size, and recomputes the chunks whose activations do not fit. An aim, not a limit:
            one pair at least is decoded at once. Not together with ``chunk_size``.
        gradient_threshold: Train in two phases: decode without a graph, and in the backward pass decode again only
            the (sample, class) pairs whose largest absolute loss gradient exceeds this share of the largest of all.
            0.0 is exact; `tw_seg.lrp.conservation.thresholds.measure_gradient_threshold` reports the error of
            others. Not together with ``recompute``.

    Raises:
        InputError: For values of another type, numbers outside of their range, and those that exclude each other.
    """

    chunk_size: int | None = None
    recompute: bool = False
    memory_budget: float | None = None
    gradient_threshold: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        chunk_size, memory_budget, threshold = self.chunk_size, self.memory_budget, self.gradient_threshold
        if not isinstance(self.recompute, bool):
            raise InputError(f"recompute must be True or False, got {self.recompute!r}")
        if chunk_size is not None and not (isinstance(chunk_size, int) and _is_number(chunk_size, 0, math.inf)):
            raise InputError(
                "chunk_size must be a whole number of classes, at least 1, or None to have it chosen, got "
                f"{chunk_size!r}"
            )
        if memory_budget is not None and (chunk_size is not None or not _is_number(memory_budget, 0, math.inf)):
            raise InputError(
                f"memory_budget must be a number of GiB > 0, and chunk_size be left out, got {memory_budget!r} and "
                f"chunk_size={chunk_size!r}"
            )
        if threshold is not None and (self.recompute or not (_is_number(threshold, -1, 1) and threshold >= 0)):
            raise InputError(
                f"gradient_threshold must be within 0..1, and recompute be left out as it recomputes anyway, got "
                f"{threshold!r} and recompute={self.recompute!r}"
            )


def _is_number(value: Any, low: float, high: float) -> bool:
    """Whether a value is a number between two others that are excluded."""
    return is_number(value) and bool(low < value < high)


def create_schedule(schedule: Schedule | Mapping[str, Any] | None) -> Schedule:
    """The schedule that is given as such, by the names of its numbers, or not at all.

    Raises:
        InputError: For a name that a schedule does not have, and as `Schedule`.
    """
    if isinstance(schedule, Schedule):
        return schedule
    known = [field.name for field in fields(Schedule)]
    if not isinstance(schedule, (Mapping, type(None))) or (unknown := sorted(set(schedule or ()) - set(known))):
        what = repr(schedule) if not isinstance(schedule, Mapping) else ", ".join(map(repr, unknown))
        raise InputError(f"schedule must hold no other names than {', '.join(known)}, got {what}")
    return Schedule(**schedule or {})


@dataclass(frozen=True)
class Piece:
    """Samples and classes that are decoded together, and whether they are recomputed in the backward pass."""

    samples: slice
    classes: slice
    recompute: bool


def cut_pieces(samples: int, classes: int, pairs: int, keep: float) -> list[Piece]:
    """Cut ``samples`` x ``classes`` into even pieces.

    Args:
        samples: Number of samples S.
        classes: Number of classes K' of each.
        pairs: (sample, class) pairs in a piece, at most; 1 at least.
        keep: Pairs whose activations are kept for the backward pass, the first ones; the others are recomputed.

    Examples:
        >>> [(p.classes.start, p.classes.stop, p.recompute) for p in cut_pieces(2, 5, 4, 4)]
        [(0, 1, False), (1, 3, True), (3, 5, True)]
    """
    pieces = []
    for some in _even_groups(samples, min(pairs, samples)):
        number = some.stop - some.start
        for group in _even_groups(classes, max(pairs // number, 1)):
            keep -= number * (group.stop - group.start)
            pieces.append(Piece(some, group, keep < 0))
    return pieces


def _even_groups(total: int, size: int) -> list[slice]:
    """As few groups of at most ``size`` as there can be, even but for one."""
    number = -(-total // size)
    ends = [total * (i + 1) // number for i in range(number)]
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


class GraphMemory:
    """Bytes that the decode of one pair keeps for its backward pass, measured once for each graph and image shape."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self._known: dict[tuple[Any, ...], int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy, also a pickled one, knows nothing: its graphs are others, which may have the numbers of old ones."""
        return {"_known": {}}

    def measure_pair(self, backward: Backward, decode: Callable[[Backward, Tensor], object]) -> int:
        """What one more class of a sample takes.

        Args:
            backward: The pass.
            decode: ``decode(backward, classes)``: decodes classes (K',) of every sample.
        """
        tape = backward.tape
        trained = tuple(p.requires_grad for p in (*tape.classifier.parameters(), *backward.weights.values()))
        key = (id(tape.graph), *tape.images.shape[1:], tape.logits.dtype, trained)
        if key not in self._known:
            first = torch.zeros(2, dtype=torch.int64, device=tape.images.device)
            sample = backward.for_samples(first[:1] if backward.samples is None else backward.samples[:1])
            one, two = (_measure_graph(partial(decode, sample.renew(), first[:n])) for n in (1, 2))
            self._known[key] = max(two - one, 1)
        return self._known[key]


def _measure_graph(decode: Callable[[], object]) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass of a decode."""
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # so that no two storages have the same address

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        held.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = decode()
    del result
    return sum(sizes.values())


def choose_pairs(
    schedule: Schedule, backward: Backward, classes: int, measure_pair: Callable[[], int]
) -> tuple[int, float]:
    """(sample, class) pairs to decode at once, and pairs whose activations to keep for the backward pass.

    Args:
        schedule: What a decode may take.
        backward: The pass, over S samples.
        classes: Number of classes of each.
        measure_pair: Bytes that the decode of one pair keeps for its backward pass.
    """
    every = backward.size * classes
    keep = 0.0 if schedule.recompute else math.inf
    if schedule.chunk_size is not None:
        of_each = backward.size if classes > 1 else backward.tape.images.shape[0]
        return schedule.chunk_size * of_each, keep
    if schedule.memory_budget is not None:
        one = measure_pair() if torch.is_grad_enabled() else 0
        pairs, keep = fit_budget(schedule.memory_budget * 2**30, one, backward)
        return pairs, min(keep, every)
    recomputes = schedule.recompute or schedule.gradient_threshold is not None
    most = count_recomputed_pairs(backward) if recomputes else count_pairs_in_reused_memory(backward)
    return int(min(most, every)), keep


@contextmanager
def name_budget(schedule: Schedule | None) -> Iterator[None]:
    """Say of a decode that finds no memory which number of its schedule decides about that.

    Args:
        schedule: Of the decode; ``None`` where it is not known.

    Raises:
        RuntimeError: torch's own error, of the same type, with that addition; likewise a ``MemoryError``.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        given = None if schedule is None else schedule.memory_budget
        remedy = (
            'give the decoder a memory_budget in GiB, such as schedule={"memory_budget": 0.5}'
            if given is None
            else f"memory_budget={given} is more GiB than there are: make it smaller"
        )
        remedy += ", or a smaller one" if schedule is None else ""
        raise type(error)(f"{error}\nA decode ran out of memory: {remedy}, or decode fewer images at once") from error


def measure_largest_coefficient(backward: Backward) -> int:
    """Bytes of the largest coefficient for one pair."""
    images = max(backward.tape.images.shape[0], 1)
    return max(value.numel() * value.element_size() // images for value in _decoded_values(backward).values())


def count_pairs_in_reused_memory(backward: Backward) -> float:
    """Pairs at once for which the largest coefficient can use the same memory over and over; infinite if any number."""
    if backward.tape.images.device.type != "cpu":
        return float("inf")
    return max(_FRESH_PAGES // (measure_largest_coefficient(backward) + 1), _AT_LEAST)


def count_recomputed_pairs(backward: Backward) -> int:
    """Pairs at once in pieces that are recomputed: enough to keep the device busy, however many there are in all."""
    size = _RECOMPUTED_ON_CPU if backward.tape.images.is_cpu else _RECOMPUTED
    return max(size // (measure_largest_coefficient(backward) + 1), 1)


def fit_budget(budget: float, graph_pair: float, backward: Backward) -> tuple[int, float]:
    """Pairs at once, and pairs that can be kept, within a memory budget.

    Args:
        budget: Bytes.
        graph_pair: Bytes that one pair's decode keeps for its backward pass; 0 without a graph.
        backward: The pass.

    Returns:
        Pairs at once: they take at most half of the budget where pairs are recomputed, as what is left keeps
        others from being recomputed; and pairs to keep. At least one at once: a budget is an aim, not a limit.
    """
    one = graph_pair + _LIVE * measure_largest_coefficient(backward)
    share = budget / 2 if graph_pair else budget
    pairs = int(max(min(share // one, count_pairs_in_reused_memory(backward)), 1))
    return pairs, max(budget - pairs * one, 0) / graph_pair if graph_pair else 0


def _decoded_values(backward: Backward) -> Mapping[str, Tensor]:
    """Recorded values whose coefficients a decode makes."""
    found = {}
    for call in backward.tape.graph.calls:
        if any(name in backward.wanted for name in call.inputs):
            for name in (call.name, *call.inputs):
                if name in backward.wanted and isinstance(backward.tape.values[name], Tensor):
                    found[name] = backward.tape.values[name]
    return found or {name: backward.tape.values[name] for name in backward.readouts}
