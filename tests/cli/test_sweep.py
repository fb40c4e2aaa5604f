from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sweeps.conftest import environment, make_sweep  # noqa: F401 (fixtures)
from tw_seg.cli import main
from tw_seg.errors import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return tmp_path


def read_calls(number: int) -> list[str]:
    return Path("sweeps/numbers/trials", str(number), "calls.txt").read_text().split()


def test_a_failed_trial_makes_the_status_1_and_may_be_run_again(make_sweep, capsys):  # noqa: F811
    make_sweep("{x: {values: [1, 13]}}")
    assert main(["sweep", "sweep.yaml"]) == 1
    out = capsys.readouterr().out
    assert "2 trials: 1 complete, 1 failed" in out and "Trial 1 failed: exit status 1: thirteen is unlucky" in out
    assert main(["sweep", "sweep.yaml"]) == 1
    assert read_calls(1) == ["new"]
    assert main(["sweep", "sweep.yaml", "--retry_failed"]) == 1
    assert len(read_calls(1)) == 1 and len(read_calls(0)) == 1  # 1 began anew, it had no checkpoint


def test_wrong_arguments_are_refused(make_sweep, capsys):  # noqa: F811
    make_sweep()
    assert main(["sweep", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err
    assert main(["sweep", "sweep.yaml", "--jobs=0"]) == 2
    assert "jobs must be a whole number >= 1" in capsys.readouterr().err
    assert not Path("sweeps").exists()


def test_a_report_of_what_there_is_runs_nothing(make_sweep, capsys):  # noqa: F811
    make_sweep()
    assert main(["sweep", "sweep.yaml", "--report_only", "--run_dir=there"]) == 0
    assert "3 trials: 3 waiting" in capsys.readouterr().out
    assert not Path("there/trials").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_stopped_goes_on_where_it_was(make_sweep, environment, number, monkeypatch):  # noqa: F811
    make_sweep("{x: {values: [99, 2]}}")
    program = (
        "import sys, tw_seg.sweeps.study as s; s.SILENT_SECONDS = 6; from tw_seg.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "sweep", "sweep.yaml"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not Path("sweeps/numbers/trials/0/checkpoints/last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    process.wait(timeout=60)
    monkeypatch.setattr("tw_seg.sweeps.study.SILENT_SECONDS", 6)
    assert main(["sweep", "sweep.yaml"]) == 0
    assert (read_calls(0), read_calls(1)) == (["new", "last"], ["new"])


def test_the_error_of_another_sweep_in_the_folder_names_the_remedy(make_sweep):  # noqa: F811
    from tw_seg.cli.sweep import run_sweep

    make_sweep()
    assert main(["sweep", "sweep.yaml", "--report_only"]) == 0
    make_sweep("{x: {values: [4]}}")
    with pytest.raises(InputError, match="give the sweep another name, or another --run_dir"):
        run_sweep(["sweep", "sweep.yaml"])
