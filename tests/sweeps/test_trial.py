from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from threading import Event, Timer

import pytest

from tw_seg.errors import SweepError
from tw_seg.sweeps.trial import Stopped, read_metrics, run_trial


def calls(folder):
    return (folder / "calls.txt").read_text().split()


def test_a_trial_gives_the_best_validation_and_the_test(make_sweep, environment, tmp_path):
    sweep, folder = make_sweep(), tmp_path / "trial"
    run_trial(sweep.build_command({"x": 3}), folder, Event(), environment=environment)
    assert calls(folder) == ["new"]
    assert read_metrics(folder, "val/miou", maximise=True) == {"val/miou": 3.0, "test/miou": 6.0}
    assert read_metrics(folder, "val/miou", maximise=False) == {"val/miou": -9.0, "test/miou": 6.0}
    assert read_metrics(folder, "test/miou", maximise=True) == {"test/miou": 6.0}
    with pytest.raises(SweepError, match="metric val/dice was not logged .*; there are test/miou, val/miou"):
        read_metrics(folder, "val/dice", maximise=True)


def test_a_trial_that_fails_says_what_it_printed(make_sweep, environment, tmp_path):
    with pytest.raises(SweepError, match="exit status 1: thirteen is unlucky"):
        run_trial(make_sweep().build_command({"x": 13}), tmp_path / "trial", Event(), environment=environment)


def test_a_command_that_does_not_exist_fails(environment, tmp_path):
    with pytest.raises(SweepError, match="no-such-program"):
        run_trial(["no-such-program"], tmp_path / "trial", Event(), environment=environment)


def test_a_stopped_trial_ends_and_goes_on_from_its_checkpoint(make_sweep, environment, tmp_path):
    sweep, folder, stopping = make_sweep(), tmp_path / "trial", Event()
    folder.mkdir()
    (folder / "half.txt").touch()  # of a trial that was killed before its first checkpoint

    def stop_when_it_has_begun():
        while not (folder / "checkpoints" / "last.ckpt").exists():
            time.sleep(0.05)
        stopping.set()

    timer = Timer(0, stop_when_it_has_begun)
    timer.start()
    with pytest.raises(Stopped):
        run_trial(sweep.build_command({"x": 99}), folder, stopping, environment=environment)
    timer.join()
    assert not (folder / "half.txt").exists()
    run_trial(sweep.build_command({"x": 99}), folder, Event(), environment=environment)
    assert calls(folder) == ["new", "last"]


@pytest.mark.skipif(os.name != "posix", reason="processes of POSIX")
def test_a_trial_ends_when_its_sweep_is_killed(environment, tmp_path):
    """No orphan goes on writing into the folder of a trial that is run again."""
    note = tmp_path / "pid"
    sleeper = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    supervised = [sys.executable, "-m", "tw_seg.sweeps.supervise", sys.executable, "-c", sleeper]
    starter = f"import subprocess; subprocess.run({supervised!r})"
    parent = subprocess.Popen([sys.executable, "-c", starter], env=environment)
    while not (note.exists() and note.read_text()):
        time.sleep(0.05)
    child = int(note.read_text())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    for _ in range(200):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the trial outlived its sweep")
