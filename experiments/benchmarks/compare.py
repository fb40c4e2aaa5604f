"""Contenders side by side: a process for each, turns interleaved, so that only one computes at a time."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.case import Case
from experiments.benchmarks.worker import serve

REFERENCE = "ours"
SAME_HEATMAPS = ("double backpropagation", "captum input x gradient, per class")
"""Contenders whose heatmaps are mathematically ours: they are refused where they differ."""

TOLERANCE = {"fp32": 1e-3, "tf32": 5e-2, "bf16": 3e-1}
"""Largest deviation of theirs, relative to the norm of ours."""


@dataclass(frozen=True)
class Settings:
    """How long to measure.

    Attributes:
        repeats: Turns of each contender.
        least_seconds: A turn repeats a step until it has lasted so long.
        least_turns: Turns that each takes however long they last.
        budget_seconds: After these, a contender that has computed for longer takes no further turn.
        limit_seconds: A contender that needs longer for one request is stopped.
    """

    repeats: int
    least_seconds: float
    least_turns: int
    budget_seconds: float
    limit_seconds: float


class NoResult(Exception):
    """Why a contender has no result."""


class Remote:
    """A contender's process as seen from here.

    A server that has imported torch once forks a fresh process for each contender, which starts without waiting for
    imports and has its own heap, threads and device context.
    """

    def __init__(self, name: str, case: Case, published: Path | None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["experiments.benchmarks.worker"])
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, case, published), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, word: str, *args: Any, limit: float) -> Any:
        """The answer to a request.

        Raises:
            NoResult: If it failed, took longer than ``limit`` seconds or its process ended. It is over then.
        """
        try:
            self.connection.send((word, args))
            if not self.connection.poll(limit):
                raise NoResult(f"no answer within {limit:.0f} s")
            outcome, value = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            raise NoResult(_ending(self.process.exitcode)) from None
        if outcome == "failed":
            raise NoResult(value)
        return value

    def close(self) -> None:
        """End the process."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()


def compare(case: Case, names: Sequence[str], published: Path | None, *, settings: Settings) -> dict[str, Any]:
    """Measure contenders on a case.

    Returns:
        What JSON holds of it: ``case``, ``roofline`` and ``contenders``; for each its ``turns`` (number, seconds of
        one run, peak bytes above the model), bytes of the model, ``heatmaps`` (against ours) and ``failure``.
    """
    records: dict[str, dict[str, Any]] = {name: {"turns": [], "failure": None} for name in names}
    remotes: dict[str, Remote] = {}
    try:
        reference: np.ndarray | None = None
        for name in names:
            remotes[name] = Remote(name, case, published)
            try:
                maps = _prepare(remotes[name], records[name], settings)
                reference = maps if name == REFERENCE else reference
                _compare_heatmaps(name, case, maps, reference, records[name])
                records[name]["warm_up_seconds"] = remotes[name].ask("warm_up", limit=settings.limit_seconds)
            except NoResult as failure:
                _drop(remotes, name, records[name], str(failure))
        _take_turns(remotes, records, settings)
    finally:
        for remote in remotes.values():
            remote.close()
    return {"case": asdict(case), "roofline": case.roofline, "contenders": records}


def _prepare(remote: Remote, record: dict[str, Any], settings: Settings) -> np.ndarray | None:
    """Build the contender; its heatmaps."""
    record.update(remote.ask("build", limit=settings.limit_seconds))
    maps: np.ndarray | None = remote.ask("heatmaps", limit=settings.limit_seconds)
    return maps


def _compare_heatmaps(
    name: str, case: Case, maps: np.ndarray | None, reference: np.ndarray | None, record: dict[str, Any]
) -> None:
    if maps is None or reference is None or name == REFERENCE:
        return
    record["heatmaps"] = agreement(maps, reference)
    deviation, tolerance = record["heatmaps"]["deviation"], TOLERANCE[case.precision]
    if name in SAME_HEATMAPS and not deviation <= tolerance:
        raise NoResult(f"its heatmaps differ from ours by {deviation:.1e} of their norm, more than {tolerance:.0e}")


def agreement(maps: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Norm of the difference relative to the reference's, and the cosine between both."""
    a, b = maps.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    norms = np.linalg.norm(a), np.linalg.norm(b)
    deviation = float(np.linalg.norm(a - b) / norms[1])
    return {"deviation": deviation, "cosine": float(a @ b / (norms[0] * norms[1]))}


def _take_turns(remotes: dict[str, Remote], records: dict[str, dict[str, Any]], settings: Settings) -> None:
    spent = {name: records[name]["warm_up_seconds"] for name in remotes}
    about = dict(spent)
    for number in range(settings.repeats):
        for name in list(remotes):
            if number >= settings.least_turns and spent[name] > settings.budget_seconds:
                continue
            start = time.perf_counter()
            try:
                turn = remotes[name].ask("turn", settings.least_seconds, about[name], limit=settings.limit_seconds)
            except NoResult as failure:
                _drop(remotes, name, records[name], str(failure))
                continue
            spent[name] += time.perf_counter() - start
            about[name] = turn["seconds"]
            records[name]["turns"].append({"turn": number, **turn})


def _drop(remotes: dict[str, Remote], name: str, record: dict[str, Any], reason: str) -> None:
    record["failure"] = reason
    remotes.pop(name).close()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by signal {-code}" + (", probably out of memory" if code == -9 else "")
    return f"its process ended with exit status {code}"


def profile_one(name: str, case: Case, published: Path | None, *, rows: int, limit: float) -> dict[str, Any]:
    """The operations that take most of a contender's time: ``case``, ``contender``, ``rows`` and ``failure``."""
    record: dict[str, Any] = {"case": asdict(case), "contender": name, "rows": [], "failure": None}
    remote = Remote(name, case, published)
    try:
        remote.ask("build", limit=limit)
        remote.ask("warm_up", limit=limit)
        record["rows"] = remote.ask("profile", rows, limit=limit)
    except NoResult as failure:
        record["failure"] = str(failure)
    finally:
        remote.close()
    return record
