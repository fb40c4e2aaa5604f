"""The fuzzer finds what it should find, and in a short run over every reader it finds nothing."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from random import Random

import pytest
from hypothesis import strategies as st

from experiments.fuzz import __main__ as fuzz
from experiments.fuzz.changes import change
from experiments.fuzz.targets import TARGETS, Target
from tw_seg.errors import DataError


def raise_foreign(root: Path) -> None:
    if (root / "input").read_text(errors="replace") != "valid":
        raise KeyError("foreign")


def raise_nameless(root: Path) -> None:
    if (root / "input").read_text(errors="replace") != "valid":
        raise DataError("something is wrong")


def raise_named(root: Path) -> None:
    if (root / "input").read_text(errors="replace") != "valid":
        raise DataError(f"{root / 'input'}: something is wrong")


def hang(root: Path) -> None:
    while (root / "input").read_text(errors="replace") != "valid":
        pass


def crash(root: Path) -> None:
    if (root / "input").read_text(errors="replace") != "valid":
        os.kill(os.getpid(), signal.SIGSEGV)


def eat(root: Path) -> None:
    if (root / "input").read_text(errors="replace") != "valid":
        bytearray(2**33)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (raise_foreign, "KeyError at .*test_fuzz.py"),
        (raise_nameless, "an error that does not name the file: something is wrong"),
        (hang, "more than 10 s"),
        (crash, "the process ended with 11"),
        (eat, "MemoryError at .*test_fuzz.py"),
        (raise_named, None),
    ],
)
def test_failures_are_found(read, message, monkeypatch, tmp_path):
    monkeypatch.setattr(fuzz, "SECONDS", 0.3)
    target = Target(lambda root: (root / "input").write_text("valid"), read, st.binary(min_size=1))
    tried, refused, failures = fuzz.fuzz("a reader", target, 6, 0, tmp_path / "kept")
    assert tried == 6
    if message is None:
        assert not failures and refused >= 3  # a change may change nothing
    else:
        (found,) = failures
        assert re.search(message, found) and not refused


def test_changes_are_the_same_for_a_seed_and_many():
    content = b'{"names": ["a", "b"], "size": 12}'
    made = [change(content, b"other", Random(number)) for number in range(200)]
    assert made == [change(content, b"other", Random(number)) for number in range(200)]
    assert len(set(made)) > 100


def test_a_short_run_finds_nothing(capsys):
    assert fuzz.main(["--inputs", "300"]) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in TARGETS) and " 0 failures" in said.splitlines()[-1]
