"""The dispatcher of ``tw-seg``: what it answers by itself, and how fast."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tw_seg.cli import COMMANDS, error_message, main
from tw_seg.errors import DataError, TwSegError
from tw_seg.version import __version__

ROOT = Path(__file__).resolve().parents[2]


def stopped(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """Exit status, output, errors."""
    try:
        status: object = main(arguments)
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_every_command(option, capsys):
    status, out, err = stopped([option], capsys)
    assert (status, err) == (0, "")
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", out, re.MULTILINE)


def test_version(capsys):
    assert stopped(["--version"], capsys) == (0, f"tw-seg {__version__}\n", "")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
    assert project["scripts"] == {"tw-seg": "tw_seg.cli:main"}


def test_without_a_command_it_says_which_there_are(capsys):
    status, out, err = stopped([], capsys)
    assert (status, out) == (2, "") and "completion" in err


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [("fitt", "; did you mean fit?"), ("prdict", "; did you mean predict?"), ("--hlep", "; did you mean --help?")],
)
def test_a_mistyped_command(mistyped, meant, capsys):
    status, out, err = stopped([mistyped, "--config", "a.yaml"], capsys)
    assert (status, out) == (2, "")
    assert err.startswith(f"tw-seg: error: unknown command {mistyped!r}{meant}") and err.count("\n") == 1


def test_a_command_that_is_like_no_other(capsys):
    status, _, err = stopped(["xyz"], capsys)
    assert status == 2 and "did you mean" not in err and all(name in err for name in COMMANDS)


def test_an_error_in_a_worker_is_one_line():
    text = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in f\ntw_seg.errors.DataError: masks/a.png: cannot read the mask; draw it again\n'
    )
    assert error_message(DataError(text)) == "masks/a.png: cannot read the mask; draw it again"
    assert error_message(TwSegError("two\nlines")) == "two\nlines"


# What an answer may import: nothing that takes long, whatever the machine.
ANSWERS = [
    ["--help"],
    ["--version"],
    ["fit", "--help"],
    ["fitt"],
    ["explain", "--help"],
    ["reliability", "fit", "--help"],
]


def test_answers_import_no_torch():
    script = (
        "import sys\nfrom tw_seg.cli import main\n"
        f"for arguments in {ANSWERS}:\n"
        "    try:\n        main(arguments)\n    except SystemExit:\n        pass\n"
        "slow = {'torch', 'numpy', 'pytorch_lightning', 'jsonargparse', 'shtab', 'tw_seg.types'} & sys.modules.keys()\n"
        "sys.exit(f'imported: {slow}' if slow else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def cpu_seconds(arguments: list[str]) -> float:
    before = os.times()
    subprocess.run([sys.executable, "-m", "tw_seg", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fit", "--help"]])
def test_answers_take_less_than_half_a_second(arguments):
    assert min(cpu_seconds(arguments) for _ in range(3)) < 0.5


@pytest.mark.slow
def test_all_help_has_that_of_every_command(capsys):
    status, out, _ = stopped(["--help-all"], capsys)
    assert status == 0
    for name in COMMANDS:
        assert f"==== tw-seg {name} ====" in out
    for option in ("--trainer.benchmark", "--composite_kwargs", "{bash,zsh"):
        assert option in out
