"""The trials of a sweep in a data base, from which processes on any machine take them one by one.

Every trial waits in the data base from the beginning, a point of a grid or of a random draw with its values. To take
one is a single step of the data base, so no two processes run the same. A process says every few seconds that it still
runs its trial; one that has fallen silent waits again for whoever comes next.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, create_engine, event, inspect, make_url
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError
from sqlalchemy.pool import NullPool

from tw_seg.errors import InputError, SweepError
from tw_seg.sweeps.definition import Parameter, Sweep
from tw_seg.sweeps.trial import Stopped

HEARTBEAT_SECONDS = 5
SILENT_SECONDS = 60
"""A trial whose process has said nothing for so long is run again."""

_QUEUE_SECONDS = 30.0  # for another process to fill the queue
_DEFINITION, _QUEUED, _POINT, _METRICS, _ERROR = "definition", "queued", "point", "metrics", "error"

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial as the data base has it.

    Attributes:
        number: Its number, that of the first attempt.
        state: ``waiting``, ``running``, ``complete`` or ``failed``.
        values: Value of each parameter; empty while they are not chosen.
        metrics: What it measured.
        error: Why it failed.
        seconds: How long the last attempt took.
    """

    number: int
    state: str
    values: dict[str, Any]
    metrics: dict[str, float]
    error: str
    seconds: float


class TrialQueue:
    """The trials of one sweep.

    Args:
        sweep: The sweep.
        storage: Address of its data base: ``sqlite:///study.db``, ``postgresql://...``.
        seed: Seed of random draws.
        silent_seconds: After how long without a sign a trial is run again; ``None``: `SILENT_SECONDS`.

    Raises:
        InputError: The data base cannot be opened, or holds another sweep of this name.
    """

    def __init__(self, sweep: Sweep, storage: str, *, seed: int = 0, silent_seconds: int | None = None) -> None:
        self.sweep, self.seed, self._address = sweep, seed, storage
        self._silent = SILENT_SECONDS if silent_seconds is None else silent_seconds
        definition = json.dumps({**dataclasses.asdict(sweep), "seed": seed}, sort_keys=True, default=str)
        direction = StudyDirection.MAXIMIZE if sweep.maximise else StudyDirection.MINIMIZE
        with _naming_storage(storage):
            opened = self._open()
            try:
                self._study = optuna.create_study(storage=opened, study_name=sweep.name, direction=direction)
                self._study.set_user_attr(_DEFINITION, definition)
            except optuna.exceptions.DuplicatedStudyError:
                self._study = optuna.load_study(study_name=sweep.name, storage=opened)
                self._check_definition(definition)
        self._fill()

    def _open(self) -> RDBStorage:
        """Open the data base; its tables may be made by another process this moment."""
        for _ in range(20):
            try:
                return self._connect()
            except (OperationalError, ProgrammingError, IntegrityError) as error:
                if not re.search("already exists|unique|duplicate|locked", str(error), re.IGNORECASE):
                    raise
                time.sleep(0.2)
        return self._connect()

    def _connect(self) -> RDBStorage:
        is_sqlite = self._address.startswith("sqlite")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # the heartbeat
            storage = RDBStorage(
                self._address,
                # Without a pool: a connection that nobody closes is a warning from Python 3.13 on.
                engine_kwargs={"connect_args": {"timeout": 60}, "poolclass": NullPool} if is_sqlite else {},
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=self._silent,
                heartbeat_stale_trial_callback=_let_wait_again,
            )
        if is_sqlite:
            # Python's driver begins a transaction at the first write: two processes could read that a trial waits, and
            # both take it.
            event.listen(storage.engine, "connect", _leave_transactions_to_us)
            event.listen(storage.engine, "begin", _lock)
            storage.engine.dispose()  # of connections that were opened before
        return storage

    def _check_definition(self, definition: str) -> None:
        deadline = time.monotonic() + _QUEUE_SECONDS
        while (found := self._study.user_attrs.get(_DEFINITION)) is None and time.monotonic() < deadline:
            time.sleep(0.1)  # another process has made it this moment
        if found is None:
            self._study.set_user_attr(_DEFINITION, definition)
        elif found != definition:
            old, new = json.loads(found), json.loads(definition)
            changed = ", ".join(key for key in new if old.get(key) != new[key])
            raise InputError(
                f"storage {self._address} holds a sweep {self.sweep.name!r} that differs in {changed}: give the sweep "
                "another name, or another --run_dir or --storage"
            )

    def _fill(self) -> None:
        """Let every trial wait in the data base; one process does it."""
        points = self._choose_points()
        deadline = time.monotonic() + _QUEUE_SECONDS
        while self._find_attempts() and _QUEUED not in self._study.user_attrs and time.monotonic() < deadline:
            time.sleep(0.1)  # another process is at it, or was killed at it
        if _QUEUED in self._study.user_attrs:
            return
        there = self._find_attempts()
        for number, point in enumerate(points):
            if number not in there:
                fixed = {name: _encode(self._get(name), value) for name, value in point.items()}
                self._study.enqueue_trial(fixed, user_attrs={_POINT: number})
        self._study.set_user_attr(_QUEUED, len(points))

    def _find_attempts(self) -> dict[int, FrozenTrial]:
        """The last attempt at each trial, by the trial's number."""
        attempts = self._study.get_trials(deepcopy=False)
        return {frozen.user_attrs[_POINT]: frozen for frozen in attempts if _POINT in frozen.user_attrs}

    def _choose_points(self) -> list[dict[str, Any]]:
        """The values of each trial; none where they depend on the results of earlier ones."""
        if self.sweep.method == "grid":
            return self.sweep.list_points()
        assert self.sweep.run_cap is not None
        if self.sweep.method == "bayes":
            return [{} for _ in range(self.sweep.run_cap)]
        draws = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=self.seed))
        return [self._suggest(draws.ask()) for _ in range(self.sweep.run_cap)]

    def _get(self, name: str) -> Parameter:
        return next(p for p in self.sweep.parameters if p.name == name)

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        return {p.name: _decode(p, _draw(trial, p)) for p in self.sweep.parameters}

    def list_trials(self) -> list[Trial]:
        """All trials, in the order of their numbers; of one that was run again the last attempt."""
        attempts = self._find_attempts()
        return [self._describe(number, attempts[number]) for number in sorted(attempts)]

    def _describe(self, number: int, frozen: FrozenTrial) -> Trial:
        states = {TrialState.WAITING: "waiting", TrialState.RUNNING: "running", TrialState.COMPLETE: "complete"}
        encoded = {**frozen.system_attrs.get("fixed_params", {}), **frozen.params}
        return Trial(
            number,
            states.get(frozen.state, "failed"),
            {p.name: _decode(p, encoded[p.name]) for p in self.sweep.parameters if p.name in encoded},
            dict(frozen.user_attrs.get(_METRICS, {})),
            str(frozen.user_attrs.get(_ERROR, "")),
            frozen.duration.total_seconds() if frozen.duration else 0.0,
        )

    def retry_failed(self) -> None:
        """Let every failed trial wait again."""
        for frozen in self._find_attempts().values():
            if frozen.state == TrialState.FAIL:
                _let_wait_again(self._study, frozen)

    def work(self, run: Callable[[int, dict[str, Any]], dict[str, float]], stopping: Event) -> None:
        """Take trials and run them, one after the other, until none waits and none can fall silent any more.

        Any number of threads and processes may do this at once.

        Args:
            run: Runs the trial of a number and its values; returns its metrics.
            stopping: Ends the work when it is set.

        Raises:
            SweepError: Never for a trial that fails: that is noted, and the next is taken.
        """
        storage = self._open()
        study = optuna.load_study(study_name=self.sweep.name, storage=storage)

        begun: list[int] = []  # Optuna's numbers of the trials

        def measure(trial: optuna.Trial) -> float:
            if _POINT not in trial.user_attrs:  # nothing waited any more
                raise optuna.TrialPruned
            begun.append(trial.number)
            number = trial.user_attrs[_POINT]
            # Another seed for each trial: two machines must not draw the same, nor two sweeps the same one trial later.
            mixed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
            study.sampler = optuna.samplers.TPESampler(seed=mixed, constant_liar=True)
            values = self._suggest(trial)
            try:
                metrics = run(number, values)
            except Stopped:
                _let_wait_again(study, _find(study, trial.number))
                raise
            except SweepError as error:
                trial.set_user_attr(_ERROR, str(error))
                raise
            trial.set_user_attr(_METRICS, metrics)
            return metrics[self.sweep.metric]

        while not stopping.is_set():
            _release_silent(study, storage, stopping)
            states = {trial.state for trial in study.get_trials(deepcopy=False) if _POINT in trial.user_attrs}
            if TrialState.WAITING in states:
                try:
                    study.optimize(measure, n_trials=1, catch=(SweepError, Stopped))
                except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                    # This machine slept, and another process has taken the trial over meanwhile.
                    if not begun or _find(study, begun[-1]).state == TrialState.RUNNING:
                        raise
            elif TrialState.RUNNING in states:
                stopping.wait(2.0)  # it may fall silent
            else:
                return


def is_queued(sweep: Sweep, storage: str) -> bool:
    """Whether a data base holds the trials of a sweep. Nothing is made in it.

    Args:
        sweep: The sweep.
        storage: Address of the data base.

    Raises:
        InputError: It cannot be opened.
    """
    with _naming_storage(storage):
        url = make_url(storage)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            return False
        engine = create_engine(url)
        try:
            if not inspect(engine).has_table("studies"):
                return False
        finally:
            engine.dispose()
        studies = optuna.get_all_study_summaries(storage, include_best_trial=False)
        return any(study.study_name == sweep.name and _QUEUED in study.user_attrs for study in studies)


@contextmanager
def _naming_storage(storage: str) -> Iterator[None]:
    """Errors of SQLAlchemy and of the data base's driver as ours, which name the storage."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"storage {storage} cannot be opened ({type(error).__name__}: {reason})") from error


def _leave_transactions_to_us(connection: Any, record: object) -> None:
    connection.isolation_level = None


def _lock(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _release_silent(study: optuna.Study, storage: RDBStorage, stopping: Event) -> None:
    """Let trials wait again whose process has fallen silent.

    After a clock has jumped, or the machine slept, all of them seem to have: one that runs will say so in a moment.
    """
    if storage._get_stale_trial_ids(study._study_id) and not stopping.wait(HEARTBEAT_SECONDS + 1.0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)


def _find(study: optuna.Study, number: int) -> FrozenTrial:
    return next(frozen for frozen in study.get_trials() if frozen.number == number)


def _let_wait_again(study: optuna.Study, frozen: FrozenTrial) -> None:
    """Put a trial into the queue once more, with the values it had."""
    fixed = {**frozen.system_attrs.get("fixed_params", {}), **frozen.params}
    study.enqueue_trial(fixed, user_attrs={_POINT: frozen.user_attrs[_POINT]})


def _draw(trial: optuna.Trial, parameter: Parameter) -> Any:
    """The value of a parameter in a trial, as Optuna keeps it."""
    if parameter.values:
        return trial.suggest_categorical(parameter.name, list(dict.fromkeys(map(_to_json, parameter.values))))
    if parameter.integer:
        return trial.suggest_int(parameter.name, int(parameter.low), int(parameter.high))
    return trial.suggest_float(parameter.name, parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _encode(parameter: Parameter, value: Any) -> Any:
    return _to_json(value) if parameter.values else value


def _decode(parameter: Parameter, value: Any) -> Any:
    return json.loads(value) if parameter.values else value


def _to_json(value: Any) -> str:
    """One of several values as Optuna keeps it, so that 1, 1.0, True, "1" and lists stay what they are."""
    return json.dumps(value, sort_keys=True)
