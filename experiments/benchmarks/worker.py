"""One contender in a process of its own: it builds the model, warms up and then answers requests.

Requests are pairs of a word and its arguments; answers are ``("ok", result)`` or ``("failed", reason)``.
"""

from __future__ import annotations

import math
import os
import resource
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.case import Case
from experiments.benchmarks.contenders import TRAINING, Contender
from experiments.benchmarks.inference import INFERENCE
from experiments.benchmarks.memory import CpuMemory, CudaMemory, model_bytes
from experiments.benchmarks.profiling import profile_rows
from tw_seg.errors import InputError

MOST_STEPS = 50
"""Steps of a turn at most."""

MEMORY_SHARE = 0.9
"""Share of the memory available at its start that a worker may have: beyond it an allocation fails, in this process."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve(connection: Connection, name: str, case: Case, published: Path | None) -> None:
    """Answer requests until the other side is gone."""
    warnings.simplefilter("ignore")  # of the libraries compared; what matters comes back as a reason
    worker = Worker(name, case, published)
    while True:
        try:
            word, args = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("ok", getattr(worker, word)(*args)))
        except Exception as error:
            connection.send(("failed", reason(error)))


def reason(error: Exception) -> str:
    """One line that says why there is no result."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]


class Worker:
    """The requests, one method each."""

    def __init__(self, name: str, case: Case, published: Path | None) -> None:
        self.name, self.case, self.published = name, case, published
        self.memory = CudaMemory() if case.device == "cuda" else CpuMemory()
        self.contender: Contender | None = None
        self.base = 0

    def build(self) -> dict[str, Any]:
        """Build the model with its gradients and the optimizer's state; what it takes up."""
        torch.set_num_threads(cores())
        if self.case.device == "cpu":
            _limit_memory()
        _set_precision(self.case)
        _load_libraries(self.case.device)
        contenders = TRAINING if self.case.part == "training" else INFERENCE
        torch.manual_seed(0)
        self.contender = contenders[self.name](self.case, self.published)
        self.memory.settle()
        self.memory.synchronize()
        self.base = self.memory.now()
        size = model_bytes(self.contender.model, self.contender.optimizer)
        return {"model_bytes": size, "base_bytes": self.base, "measure": self.memory.how}

    def heatmaps(self) -> np.ndarray | None:
        """Heatmaps of the labelled images in evaluation mode, float32."""
        made = self._made().heatmaps
        return None if made is None else made().float().cpu().numpy()

    def warm_up(self) -> float:
        """Seconds of the first run, in which libraries choose algorithms and code is compiled."""
        seconds = self._timed(1)
        self.memory.settle()
        return seconds

    def turn(self, least_seconds: float, about: float) -> dict[str, Any]:
        """Seconds of one run and the peak memory above the model.

        Args:
            least_seconds: Runs are repeated until about so many seconds are filled.
            about: Seconds that one run takes, as far as is known.
        """
        steps = max(1, min(MOST_STEPS, math.ceil(least_seconds / max(about, 1e-6))))
        if self.case.device == "cuda":
            self._made().run()  # fills the allocator's cache, which was handed back for the others
        self.memory.synchronize()
        self.memory.reset()
        seconds = self._timed(steps) / steps
        peak = self.memory.peak() - self.base
        self.memory.settle()
        return {"seconds": seconds, "peak_bytes": peak, "steps": steps}

    def profile(self, rows: int) -> list[dict[str, Any]]:
        """Where the time of one run goes."""
        return profile_rows(self._made().run, self.case.device, rows)

    def _made(self) -> Contender:
        if self.contender is None:
            raise InputError("the worker was asked to run before it was asked to build")
        return self.contender

    def _timed(self, steps: int) -> float:
        run: Callable[[], object] = self._made().run
        self.memory.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            run()
        self.memory.synchronize()
        return time.perf_counter() - start


def _limit_memory() -> None:
    """Let an allocation beyond the machine's memory fail, instead of having the kernel end some process."""
    if not Path("/proc/meminfo").is_file():
        return
    rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    available = next(int(row[1]) * 1024 for row in rows if row[0] == "MemAvailable:")
    resource.setrlimit(resource.RLIMIT_DATA, (int(MEMORY_SHARE * available), resource.RLIM_INFINITY))


def _set_precision(case: Case) -> None:
    if case.precision not in ("fp32", "tf32", "bf16"):
        raise InputError(f"precision must be 'fp32', 'tf32' or 'bf16', got {case.precision!r}")
    tf32 = case.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def _load_libraries(device: str) -> None:
    """A small training step: what libraries allocate for themselves is not to be counted as a contender's."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 2))
    net.to(device)(torch.zeros(2, 3, 8, 8, device=device)).sum().backward()
    torch.optim.AdamW(net.parameters()).step()
