"""A folder that one process at a time writes to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tw_seg.errors import InputError

LOCK = ".lock"
WAIT_SECONDS = 10.0
"""Processes that read images outlive a killed run by up to five seconds, and hold its lock as long."""


@contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made; a process that ends or is killed lets go of it.

    Args:
        path: The folder. The lock is the file ``.lock`` in it, which may stay.

    Raises:
        InputError: Another process holds it.
        OSError: The folder cannot be made or written to.
    """
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(os.fspath(path / LOCK))
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        raise InputError(
            f"{path}: another process is writing there at this moment: wait for it, end it, or choose another folder; "
            f"if you are sure that there is none, delete {path / LOCK}"
        ) from None
    try:
        yield
    finally:
        lock.release()
