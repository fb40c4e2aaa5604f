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
from tw_seg.sweeps.study import TrialQueue


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
    assert main(["sweep", "sweep.yaml", "--seed=-1"]) == 2
    assert "seed must be a whole number from 0" in capsys.readouterr().err
    assert not Path("sweeps").exists()


@pytest.mark.parametrize("place", ["sweep.yaml", "sweep.yaml/x", "/dev/null/x"])
def test_a_folder_that_cannot_be_made_is_named(make_sweep, capsys, place):  # noqa: F811
    make_sweep()
    assert main(["sweep", "sweep.yaml", f"--run_dir={place}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("tw-seg: error: ") and f"{place} cannot be made a folder" in message


def test_a_report_of_what_there_is_runs_nothing(make_sweep, capsys):  # noqa: F811
    sweep, folder = make_sweep(), Path("there").absolute()
    assert main(["sweep", "sweep.yaml", "--report_only", "--run_dir=there"]) == 2
    assert f"nothing was run yet in {folder}" in capsys.readouterr().err
    assert not folder.exists()
    folder.mkdir()
    TrialQueue(sweep, f"sqlite:///{folder / 'study.db'}")
    assert main(["sweep", "sweep.yaml", "--report_only", "--run_dir=there"]) == 0
    assert "3 trials: 3 waiting" in capsys.readouterr().out
    assert not Path("there/trials").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_stopped_goes_on_where_it_was(make_sweep, environment, number, monkeypatch):  # noqa: F811
    make_sweep("{x: {values: [99, 2]}}")
    program = (
        "import signal, sys, tw_seg.sweeps.study as s; s.SILENT_SECONDS = 6; from tw_seg.cli import main;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # nohup leaves it ignored
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "sweep", "sweep.yaml"]
    with open("err.txt", "w") as errors:
        process = subprocess.Popen(command, env=environment, stderr=errors)
    while not Path("sweeps/numbers/trials/0/checkpoints/last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    process.wait(timeout=60)
    if number != signal.SIGKILL:
        shown = Path("err.txt").read_text()
        assert process.returncode == 130 and "Traceback" not in shown
        assert shown.endswith("tw-seg: stopped; the same command goes on\n")
        assert "2 trials: 2 waiting" in Path("sweeps/numbers/results.md").read_text()
    monkeypatch.setattr("tw_seg.sweeps.study.SILENT_SECONDS", 6)
    assert main(["sweep", "sweep.yaml"]) == 0
    assert (read_calls(0), read_calls(1)) == (["new", "last"], ["new"])


def test_the_error_of_another_sweep_in_the_folder_names_the_remedy(make_sweep):  # noqa: F811
    from tw_seg.cli.sweep import run_sweep

    sweep = make_sweep()
    Path("sweeps/numbers").mkdir(parents=True)
    TrialQueue(sweep, f"sqlite:///{Path('sweeps/numbers/study.db').absolute()}")
    make_sweep("{x: {values: [4]}}")
    with pytest.raises(InputError, match="give the sweep another name, or another --run_dir"):
        run_sweep(["sweep", "sweep.yaml"])
