"""``tw-seg sweep``: every run that a W&B sweep file describes, on this machine, without a server.

In the run directory there are::

    study.db            the trials: what waits, runs, ended or failed (unless `--storage` says where)
    trials/0/ ...       the run directory of each trial, with what it printed in log.txt
    results.csv         a line for each trial;  results.md: the tables
    score.png ...       the pictures of a grid
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from tw_seg.arguments import check_counts
from tw_seg.cli import COMMANDS
from tw_seg.errors import InputError
from tw_seg.sweeps.definition import Sweep, read_sweep
from tw_seg.sweeps.plots import draw_results
from tw_seg.sweeps.study import TrialQueue, is_queued
from tw_seg.sweeps.table import write_results
from tw_seg.sweeps.trial import read_metrics, run_trial

SWEEPS = Path("sweeps")
_DESCRIPTION = f"""tw-seg sweep: {COMMANDS["sweep"].summary}. Every trial is a process of its
own; one that was killed is run again, from its last checkpoint, when the same command is given again. Several machines
share the trials of one sweep with --storage. The exit status is 1 if a trial failed, 130 if it was stopped by
Ctrl-C or SIGTERM. Example: tw-seg sweep experiments/sweeps/label_budget_tiny.yaml --jobs 2"""


def run_sweep(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: The arguments, ``sweep`` first.

    Returns:
        Exit status: 0, or 1 if a trial failed.

    Raises:
        TwSegError: For a wrong argument, a wrong file, or a storage that cannot be opened.
        KeyboardInterrupt: Ctrl-C or SIGTERM stopped it; says that it goes on.
        SystemExit: After ``--help``, and for arguments that do not parse.
    """
    given = create_parser().parse_args(args[1:])
    check_counts(1, jobs=given.jobs)
    if not 0 <= given.seed < 2**32:  # what NumPy's generators take
        raise InputError(f"seed must be a whole number from 0 to 2**32 - 1, got {given.seed}")
    try:
        return _run(given)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on") from None


def _run(given: Namespace) -> int:
    sweep = read_sweep(Path(given.file))
    folder = (SWEEPS / sweep.name if given.run_dir is None else Path(given.run_dir)).absolute()
    storage = given.storage or f"sqlite:///{folder / 'study.db'}"
    if given.report_only and not is_queued(sweep, storage):
        raise InputError(f"nothing was run yet in {given.storage or folder}: leave out --report_only to begin")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made a folder ({error.strerror}): give another --run_dir") from error
    queue = TrialQueue(sweep, storage, seed=given.seed)
    if given.retry_failed:
        queue.retry_failed()
    try:
        if not given.report_only:
            _work(queue, folder, given.jobs)
    finally:
        trials = queue.list_trials()
        write_results(sweep, trials, folder)
        draw_results(sweep, trials, folder)
    print((folder / "results.md").read_text(encoding="utf-8"))
    print(f"run directory: {folder}")
    return 1 if any(trial.state == "failed" for trial in trials) else 0


def create_parser() -> ArgumentParser:
    """The parser of the command's arguments."""
    result = ArgumentParser("tw-seg sweep", description=_DESCRIPTION)
    add = result.add_argument
    add("file", help="a sweep file of W&B: method, metric, parameters, command")
    add(
        "--run_dir",
        metavar="FOLDER",
        help="folder for all that is written; by default sweeps/<name>, which it goes on with",
    )
    add("--jobs", type=int, default=1, metavar="N", help="trials at the same time")
    add(
        "--storage",
        metavar="URL",
        help="data base of the trials: postgresql://..., mysql://...; by default study.db in run_dir",
    )
    add("--seed", type=int, default=0, metavar="N", help="seed of random and Bayesian draws")
    add("--retry_failed", action="store_true", help="run the trials that failed once more")
    add("--report_only", action="store_true", help="write tables and pictures of what there is, run nothing")
    return result


def _work(queue: TrialQueue, folder: Path, jobs: int) -> None:
    """Run what waits, some at a time, with a progress bar over all trials; Ctrl-C ends them, to be run again."""
    stopping = threading.Event()
    environment = _make_environment(queue.sweep, jobs)

    def run(number: int, values: dict[str, Any]) -> dict[str, float]:
        place = folder / "trials" / str(number)
        run_trial(queue.sweep.build_command(values), place, stopping, environment=environment)
        return read_metrics(place, queue.sweep.metric, maximise=queue.sweep.maximise)

    with ThreadPoolExecutor(jobs) as pool:
        workers = [pool.submit(queue.work, run, stopping) for _ in range(jobs)]
        try:
            _show_progress(queue, folder, workers)
            for worker in workers:
                worker.result()
        finally:
            stopping.set()


def _show_progress(queue: TrialQueue, folder: Path, workers: Sequence[Any]) -> None:
    """A progress bar until all workers end; tables are written after each trial."""
    with tqdm(total=len(queue.list_trials()), unit="trial", desc=queue.sweep.name) as bar:
        while True:
            running = not all(worker.done() for worker in workers)
            trials = queue.list_trials()
            ended = sum(trial.state in ("complete", "failed") for trial in trials)
            if ended != bar.n:
                bar.update(ended - bar.n)
                failed = sum(trial.state == "failed" for trial in trials)
                bar.set_postfix({"failed": failed} if failed else {})
                write_results(queue.sweep, trials, folder)
            if not running:
                return
            threading.Event().wait(1.0)


def _make_environment(sweep: Sweep, jobs: int) -> dict[str, str]:
    """Variables of a trial: W&B offline, one group, and the cores shared among the jobs; what is set stays.

    Programs of this Python's environment, such as ``tw-seg``, are found although it is not activated.
    """
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    defaults = {"WANDB_MODE": "offline", "WANDB_RUN_GROUP": sweep.name, "OMP_NUM_THREADS": threads}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**defaults, **os.environ, "PATH": path}
