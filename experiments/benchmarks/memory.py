"""Peak memory of what a process does: resident memory on CPU, the allocator's on CUDA.

On CPU only anonymous memory counts (not the files of libraries, of which pages come in as they are used). The
kernel's own high-water mark is read, so that nothing has to be sampled.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"


class CpuMemory:
    """Resident memory; ``how`` says by which means."""

    def __init__(self) -> None:
        self.resettable = _try_reset()
        if self.resettable:
            self.how = "peak anonymous resident memory (VmHWM, reset before each turn)"
        elif STATUS.is_file():
            self.how = "peak anonymous resident memory (VmHWM since the start: the kernel forbids its reset)"
        else:
            self.how = "peak resident memory (ru_maxrss since the start)"

    def settle(self) -> None:
        """Give freed memory back, so that garbage does not hide the next peak."""
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)

    def reset(self) -> None:
        """Start a new peak."""
        self.settle()
        if self.resettable:
            CLEAR.write_text(RESET_PEAK)

    def now(self) -> int:
        """Bytes in use."""
        return _status()["RssAnon"] if STATUS.is_file() else _max_rss()

    def peak(self) -> int:
        """Largest number of bytes since the reset."""
        if not STATUS.is_file():
            return _max_rss()
        fields = _status()
        return fields["VmHWM"] - fields["RssFile"] - fields["RssShmem"]

    def synchronize(self) -> None:
        """Nothing runs behind the caller's back."""


class CudaMemory:
    """Memory of torch's CUDA allocator."""

    how = "torch.cuda.max_memory_allocated"

    def settle(self) -> None:
        """Give cached blocks back: another process computes next."""
        gc.collect()
        torch.cuda.empty_cache()

    def reset(self) -> None:
        """Start a new peak."""
        gc.collect()
        torch.cuda.reset_peak_memory_stats()

    def now(self) -> int:
        """Bytes in use."""
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Largest number of bytes since the reset."""
        return torch.cuda.max_memory_allocated()

    def synchronize(self) -> None:
        """Wait for the device."""
        torch.cuda.synchronize()


def model_bytes(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> int:
    """Bytes of weights, buffers, gradients and the optimizer's state."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    state = [] if optimizer is None else [v for s in optimizer.state.values() for v in s.values()]
    return _bytes([*model.parameters(), *model.buffers(), *gradients, *(v for v in state if isinstance(v, Tensor))])


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _try_reset() -> bool:
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def _status() -> dict[str, int]:
    """The memory fields of the process, in bytes."""
    rows = (line.split(":") for line in STATUS.read_text().splitlines())
    return {key: int(value.split()[0]) * 1024 for key, value in rows if value.strip().endswith("kB")}


def _max_rss() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
