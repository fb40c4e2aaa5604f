from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing

import optuna
import pytest

from tw_seg.errors import InputError, SweepError
from tw_seg.sweeps.study import HEARTBEAT_SECONDS, TrialQueue, is_queued
from tw_seg.sweeps.trial import Stopped


@pytest.fixture
def address(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


def square(number, values):
    return {"val/miou": float(values["x"]) ** 2, "other": 1.0}


def states(queue):
    return [trial.state for trial in queue.list_trials()]


def test_every_point_is_run_once_and_kept(make_sweep, address):
    queue = TrialQueue(make_sweep("{x: {values: [1, 2, 3]}, y: {value: a}}"), address)
    assert states(queue) == ["waiting"] * 3
    queue.work(square, threading.Event())
    assert [(t.number, t.state, t.values, t.metrics) for t in queue.list_trials()] == [
        (n, "complete", {"x": n + 1, "y": "a"}, {"val/miou": (n + 1.0) ** 2, "other": 1.0}) for n in range(3)
    ]
    again = TrialQueue(make_sweep("{x: {values: [1, 2, 3]}, y: {value: a}}"), address)
    again.work(lambda *_: pytest.fail("run again"), threading.Event())


def test_values_keep_their_types(make_sweep, address):
    queue = TrialQueue(make_sweep("{x: {values: [1, 1.0, true, '1', null, [1, 2], {a: 1}]}}"), address)
    seen = []
    queue.work(lambda number, values: seen.append(values["x"]) or {"val/miou": 0.0}, threading.Event())
    assert [(type(x), x) for x in seen] == [(type(x), x) for x in (1, 1.0, True, "1", None, [1, 2], {"a": 1})]


def test_a_failed_trial_is_noted_and_runs_again_when_asked(make_sweep, address):
    queue = TrialQueue(make_sweep(), address)

    def fail(number, values):
        if values["x"] == 2:
            raise SweepError("out of luck")
        return square(number, values)

    queue.work(fail, threading.Event())
    assert states(queue) == ["complete", "failed", "complete"]
    assert queue.list_trials()[1].error == "out of luck"
    queue.work(square, threading.Event())
    assert states(queue) == ["complete", "failed", "complete"]
    queue.retry_failed()
    queue.work(square, threading.Event())
    trial = queue.list_trials()[1]
    assert (trial.number, trial.state, trial.values, trial.error) == (1, "complete", {"x": 2}, "")


def test_a_stopped_trial_waits_again(make_sweep, address):
    queue, stopping = TrialQueue(make_sweep(), address), threading.Event()

    def stop(number, values):
        stopping.set()
        raise Stopped

    queue.work(stop, stopping)
    assert states(queue) == ["waiting"] * 3
    queue.work(square, threading.Event())
    assert states(queue) == ["complete"] * 3


WORKER = """
import os, pathlib, sys, threading, time
from tw_seg.sweeps.definition import read_sweep
from tw_seg.sweeps.study import TrialQueue
folder = pathlib.Path(sys.argv[1])
queue = TrialQueue(read_sweep(folder / "sweep.yaml"), f"sqlite:///{folder / 'study.db'}", silent_seconds=6)

def run(number, values):
    with open(folder / "ran.txt", "a") as file:
        file.write(f"{number} {values['x']}\\n")
    (folder / f"running-{os.getpid()}").touch()
    time.sleep(float(sys.argv[2]))
    return {"val/miou": 1.0}

queue.work(run, threading.Event())
"""


def start_worker(tmp_path, environment, seconds: float):
    return subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), str(seconds)], env=environment)


def read_runs(tmp_path):
    return [line.split() for line in (tmp_path / "ran.txt").read_text().splitlines()]


@pytest.mark.parametrize("method", ["grid", "random", "bayes"])
def test_two_processes_never_run_the_same_trial(make_sweep, environment, tmp_path, method):
    parameters = "{x: {values: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}}" if method == "grid" else "{x: {min: 0.0, max: 1.0}}"
    make_sweep(parameters, method, "run_cap: 10\n")
    workers = [start_worker(tmp_path, environment, 0.05) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    runs = read_runs(tmp_path)
    assert sorted(int(number) for number, _ in runs) == list(range(10))
    assert len({value for _, value in runs}) == 10  # and no two drew the same


def test_a_trial_whose_process_was_killed_is_run_again(make_sweep, environment, tmp_path, address):
    sweep = make_sweep("{x: {values: [1, 2]}}")
    worker = start_worker(tmp_path, environment, 600)
    while not list(tmp_path.glob("running-*")):
        time.sleep(0.05)
    time.sleep(0.5)  # it has said once that it runs
    worker.kill()
    worker.wait()
    queue = TrialQueue(sweep, address, silent_seconds=6)
    assert sorted(states(queue)) == ["running", "waiting"]
    queue.work(square, threading.Event())
    assert [(t.state, t.values["x"]) for t in queue.list_trials()] == [("complete", 1), ("complete", 2)]
    assert Counter(number for number, _ in read_runs(tmp_path)) == {"0": 1}


def run_alone(queue, ran: list[int], sql: str, address: str) -> None:
    """Run the one trial in a thread; once it runs, change the data base and let another worker look for trials."""
    begun, end = threading.Event(), threading.Event()

    def run(number, values):
        ran.append(number)
        begun.set()
        end.wait(60)
        return {"val/miou": 1.0}

    worker = threading.Thread(target=queue.work, args=(run, threading.Event()))
    worker.start()
    begun.wait(60)
    time.sleep(0.5)  # it has said once that it runs
    with closing(sqlite3.connect(address.removeprefix("sqlite:///"), timeout=60)) as base, base:
        base.execute(sql)
    other = threading.Thread(target=queue.work, args=(run, threading.Event()))
    other.start()
    other.join(HEARTBEAT_SECONDS + 3.0)
    end.set()
    worker.join(60)
    other.join(60)


def test_a_clock_that_jumps_lets_no_trial_run_twice(make_sweep, address):
    """All signs of life are an hour old, as if the clock had been put forward between two of them."""
    queue, ran = TrialQueue(make_sweep("{x: {values: [1]}}"), address), []
    run_alone(queue, ran, "UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-1 hour')", address)
    assert ran == [0] and states(queue) == ["complete"]


def test_a_trial_that_was_taken_over_does_not_stop_the_sweep(make_sweep, address):
    """As when a machine slept for longer than a trial may be silent: another one has run it meanwhile."""
    queue, ran = TrialQueue(make_sweep("{x: {values: [1, 2]}}"), address), []

    def run(number, values):
        ran.append(number)
        if len(ran) == 1:
            study = optuna.load_study(study_name="numbers", storage=address)
            taken = next(trial for trial in study.trials if trial.state == optuna.trial.TrialState.RUNNING)
            study.tell(taken.number, state=optuna.trial.TrialState.FAIL)
        return square(number, values)

    queue.work(run, threading.Event())
    assert sorted(ran) == [0, 1]


def test_bayes_learns_from_earlier_trials(make_sweep, address):
    """The later half lies nearer to the best place than uniform draws do, whose mean distance is a quarter."""
    sweep = make_sweep("{x: {min: 0.0, max: 1.0}}", "bayes", "run_cap: 40\n")
    queue = TrialQueue(sweep, address)
    queue.work(lambda number, values: {"val/miou": -abs(values["x"] - 0.5)}, threading.Event())
    distances = [-trial.metrics["val/miou"] for trial in queue.list_trials()]
    assert sum(distances[20:]) / 20 < 0.5 * 0.25


def test_random_draws_are_those_of_the_seed(make_sweep, tmp_path):
    sweep = make_sweep("{x: {min: 1.0e-4, max: 1.0, distribution: log_uniform_values}}", "random", "run_cap: 200\n")
    draws = [
        [t.values["x"] for t in TrialQueue(sweep, f"sqlite:///{tmp_path / name}.db", seed=seed).list_trials()]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert draws[0] == draws[1] != draws[2]
    assert 60 < sum(x < 1e-2 for x in draws[0]) < 140  # half of them: 100 ± 5.7 standard deviations


def test_the_draws_of_two_seeds_share_nothing(make_sweep, tmp_path):
    """Ten draws are the start-up of TPE, which learns nothing yet: a uniform one for each seed and trial."""
    sweep = make_sweep("{x: {min: 0.0, max: 1.0}}", "bayes", "run_cap: 8\n")
    draws = []
    for seed in (0, 1):
        queue = TrialQueue(sweep, f"sqlite:///{tmp_path / str(seed)}.db", seed=seed)
        queue.work(square, threading.Event())
        draws.append({trial.values["x"] for trial in queue.list_trials()})
    assert len(draws[0] | draws[1]) == 16


def test_to_ask_whether_trials_are_queued_makes_nothing(make_sweep, tmp_path, address):
    sweep, study = make_sweep(), tmp_path / "study.db"
    assert not is_queued(sweep, address) and not study.exists()
    study.touch()
    assert not is_queued(sweep, address) and study.stat().st_size == 0
    optuna.create_study(storage=address, study_name="another")
    assert not is_queued(sweep, address)
    assert optuna.get_all_study_names(address) == ["another"]
    TrialQueue(sweep, address)
    assert is_queued(sweep, address)
    with pytest.raises(InputError, match="storage nonsense cannot be opened"):
        is_queued(sweep, "nonsense")


def test_another_definition_under_the_same_name_is_refused(make_sweep, address):
    TrialQueue(make_sweep(), address)
    with pytest.raises(
        InputError, match="holds a sweep 'numbers' that differs in parameters: give the sweep another name"
    ):
        TrialQueue(make_sweep("{x: {values: [1]}}"), address)
    with pytest.raises(InputError, match="differs in seed"):
        TrialQueue(make_sweep(), address, seed=1)


def test_a_queue_whose_maker_was_killed_is_filled(make_sweep, address, monkeypatch):
    monkeypatch.setattr("tw_seg.sweeps.study._QUEUE_SECONDS", 0.1)
    with monkeypatch.context() as patch:
        enqueue, made = optuna.Study.enqueue_trial, []

        def enqueue_one(study, *args, **kwargs):
            if made:
                raise KeyboardInterrupt
            made.append(enqueue(study, *args, **kwargs))

        patch.setattr(optuna.Study, "enqueue_trial", enqueue_one)
        with pytest.raises(KeyboardInterrupt):
            TrialQueue(make_sweep(), address)
    assert [t.values["x"] for t in TrialQueue(make_sweep(), address).list_trials()] == [1, 2, 3]


def test_a_storage_that_cannot_be_opened_is_named(make_sweep, tmp_path):
    with pytest.raises(InputError, match="storage sqlite:////nowhere/at/all/study.db cannot be opened"):
        TrialQueue(make_sweep(), "sqlite:////nowhere/at/all/study.db")
    with pytest.raises(InputError, match="storage nonsense cannot be opened"):
        TrialQueue(make_sweep(), "nonsense")
