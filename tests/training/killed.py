"""Runs `tw-seg fit`, kills it at a file that it touches, and resumes it: what test_kills.py looks at.

python -m tests.training.killed FOLDER. Each run is a fork of this process, which has imported everything and computed
nothing: autograd's threads do not survive a fork.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tests.training.test_resume import CONFIG
from tw_seg.cli import lightning as lightning  # before the forks
from tw_seg.cli import main

SIGNALS = [signal.SIGKILL] * 4 + [signal.SIGTERM]
_WRITES = {"os.rename", "os.link", "os.mkdir", "os.remove"}  # as Python's audit events call them


def fit(folder: Path, name: str, *extra: str) -> int:
    trainer = "--trainer.max_epochs=2"
    callbacks = ["--trainer.callbacks=tests.training.tiny.LossTrace", f"--trainer.callbacks.path={folder / name}.trace"]
    config = str(folder / "config.yaml")
    return main(["fit", "--config", config, trainer, *callbacks, f"--run_dir={folder / name}", *extra])


def fork(work: Callable[[], int]) -> int:
    """Run something in a process of its own; returns its exit status, that of a signal negative."""
    child = os.fork()
    if child == 0:
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def watch(folder: Path, touched: Callable[[], None]) -> None:
    """Call ``touched`` before this process opens a file to write, renames, links or removes one below a folder."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        writes = event in _WRITES or (event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax")
        if writes and str(arguments[0]).startswith(f"{folder}{os.sep}"):
            touched()

    sys.addaudithook(hook)


def count(folder: Path, name: str) -> int:
    """Run to the end and count the moments at which it could have been killed."""
    reader, writer = os.pipe()

    def work() -> int:
        watch(folder / name, lambda: os.write(writer, b".") and None)
        return fit(folder, name)

    assert fork(work) == 0
    os.close(writer)
    return len(os.read(reader, 10**6))


def kill(folder: Path, name: str, moment: int, number: int) -> int:
    """Run until a moment, at which the process gets a signal."""
    left = [moment]

    def touched() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)

    def work() -> int:
        watch(folder / name, touched)
        return fit(folder, name)

    return fork(work)


def resume(folder: Path, name: str) -> int:
    run = folder / name
    if (run / "checkpoints" / "last.ckpt").exists():
        return fork(lambda: fit(folder, name, "--ckpt_path=last"))
    shutil.rmtree(run)  # as the message says
    (folder / f"{name}.trace").unlink(missing_ok=True)
    return fork(lambda: fit(folder, name))


def kill_and_resume(folder: Path) -> None:
    (folder / "config.yaml").write_text(CONFIG)
    moments = random.Random(0).sample(range(1, count(folder, "whole") + 1), len(SIGNALS))
    report = []
    for row, (moment, number) in enumerate(zip(moments, SIGNALS, strict=True)):
        name = f"run-{row}"
        status = kill(folder, name, moment, number)
        if (folder / name).exists():
            shutil.copytree(folder / name, folder / f"{name}-killed")
        else:
            (folder / name).mkdir()
        report.append((name, moment, number, status, resume(folder, name)))
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    kill_and_resume(Path(sys.argv[1]))
