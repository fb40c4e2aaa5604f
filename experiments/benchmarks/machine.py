"""What machine and software a result belongs to."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.worker import cores


def machine() -> dict[str, Any]:
    """Processor, cores, memory, device, versions and date."""
    cuda = torch.cuda.is_available()
    return {
        "cpu": _proc("cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory": _proc("meminfo", "MemTotal"),
        "device": torch.cuda.get_device_name() if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _proc(file: str, key: str) -> str | None:
    """The first value of a key in a file of /proc."""
    path = Path("/proc") / file
    if not path.is_file():
        return None
    rows = (line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line)
    return next((value.strip() for name, value in rows if name.strip() == key), None)
