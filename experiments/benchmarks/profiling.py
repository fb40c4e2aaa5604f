"""Where the time of a step goes, by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def profile_rows(run: Callable[[], object], device: str, rows: int) -> list[dict[str, Any]]:
    """The operations with the largest self time of one run.

    Returns:
        For each its name, calls, self time in milliseconds (of the device on CUDA) and share of the whole.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities) as profiler:
        run()
    attribute = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    events = [(event.key, event.count, float(getattr(event, attribute))) for event in profiler.key_averages()]
    total = sum(microseconds for _, _, microseconds in events)
    events.sort(key=lambda event: -event[2])
    return [
        {"name": name, "calls": calls, "self_ms": us / 1000, "share": us / total if total else 0.0}
        for name, calls, us in events[:rows]
    ]
