"""One trial: a process of its own, in a folder of its own, from which its metrics are read."""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Event

from tw_seg.errors import SweepError
from tw_seg.sweeps.supervise import GRACE_SECONDS

_LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
_LOG = "log.txt"
_SHOWN = 1000  # characters of a log, in an error


class Stopped(Exception):  # noqa: N818 (it is no error)
    """The trial was ended because the sweep stops; it will be run again."""


def run_trial(command: Sequence[str], folder: Path, stopping: Event, *, environment: Mapping[str, str]) -> None:
    """Run the command of a trial to its end, from its last checkpoint if the folder holds one.

    Args:
        command: Its words. ``--run_dir`` is added, and ``--ckpt_path last`` where there is a checkpoint.
        folder: The trial's run directory; what the command prints goes to ``log.txt`` in it.
        stopping: Ends the trial when it is set.
        environment: Variables for the process.

    Raises:
        SweepError: The command cannot be started or its exit status is not 0; with the end of what it printed.
        Stopped: ``stopping`` was set.
    """
    resumed = (folder / _LAST_CHECKPOINT).is_file()
    if folder.exists() and not resumed:
        shutil.rmtree(folder)  # of a trial that was killed before its first checkpoint
    folder.mkdir(parents=True, exist_ok=True)
    words = [*command, f"--run_dir={folder}", *(["--ckpt_path=last"] if resumed else [])]
    with open(folder / _LOG, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tw_seg.sweeps.supervise", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which then ends its trials
        )
        while process.poll() is None:
            if stopping.wait(0.2):
                _end(process)
                raise Stopped
    if process.returncode:
        raise SweepError(f"exit status {process.returncode}: {_read_end(folder / _LOG)}")


def read_metrics(folder: Path, metric: str, *, maximise: bool) -> dict[str, float]:
    """The metrics of a trial: of its best validation, and of its test.

    Args:
        folder: Its run directory.
        metric: The metric by which the best validation is chosen, such as ``val/miou``.
        maximise: Whether more of it is better.

    Returns:
        Every number that was logged beside the best value of ``metric``, and all of ``test/``, by name.

    Raises:
        SweepError: ``metric`` was not logged, or never was a number.
    """
    rows = [row for path in sorted(folder.glob("metrics/*/metrics.csv")) for row in _read_rows(path)]
    scored = [row for row in rows if metric in row]
    if not scored:
        names = sorted({name for row in rows for name in row if "/" in name})
        raise SweepError(
            f"metric {metric} was not logged in {folder / 'metrics'}; there are {', '.join(names) or 'none'}"
        )
    best = max(scored, key=lambda row: row[metric] if maximise else -row[metric])
    tested = [row for row in rows if any(name.startswith("test/") for name in row)]
    return {name: value for row in (best, *tested) for name, value in row.items() if "/" in name}


def _read_rows(path: Path) -> list[dict[str, float]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = [{name: _to_number(text) for name, text in row.items()} for row in csv.DictReader(file)]
    return [{name: value for name, value in row.items() if math.isfinite(value)} for row in rows]


def _to_number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=GRACE_SECONDS + 5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read_end(path: Path) -> str:
    """The last lines of a log: what follows the last return of a progress bar."""
    text = path.read_text(encoding="utf-8", errors="replace").rstrip()
    lines = [line.rpartition("\r")[2] for line in text.splitlines()[-20:]]
    return "\n".join(lines)[-_SHOWN:]
