"""Runs a command that ends when the process that started it has gone, also if that was killed.

python -m tw_seg.sweeps.supervise COMMAND ...
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

GRACE_SECONDS = 10.0
"""How long a command may take to end after SIGTERM."""


def supervise(command: Sequence[str]) -> int:
    """Run a command to its end, or until SIGTERM arrives or the parent has gone; returns its exit status."""
    parent = os.getppid()
    child = subprocess.Popen(command)
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    while True:
        try:
            return child.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if stopped or os.getppid() != parent:
                return _end(child)


def _end(child: subprocess.Popen[bytes]) -> int:
    child.terminate()
    try:
        return child.wait(timeout=GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1:]))
