"""Every example runs, and does what its first line says."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
ELSEWHERE = {"onnx_consumer.py"}  # tests/export/test_export.py


def run(name: str, capsys: pytest.CaptureFixture[str]) -> list[float]:
    """The numbers that an example prints."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a reader of an example sees warnings, and they are not errors
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return [float(number) for number in re.findall(r"(?<![\w.])\d+\.\d+(?:e-?\d+)?", capsys.readouterr().out)]


def test_a_plain_loop_teaches_where_objects_are(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = run("plain_loop.py", capsys)
    assert numbers[-1] > 0.8 > 0.5 > numbers[1]


def test_a_lightning_module_of_your_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("lightning_module.py", capsys)[0] > 0.6


def test_a_penalty_makes_a_classifier_ignore_a_confounder(capsys: pytest.CaptureFixture[str]) -> None:
    without, penalised = run("ignore_a_confounder.py", capsys)
    assert penalised > 0.9 > 0.75 > without


def test_a_vision_transformer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("vision_transformer.py", capsys)[0] > 0


def test_members_of_an_ensemble_look_at_different_things(capsys: pytest.CaptureFixture[str]) -> None:
    alone, together = run("diverse_ensemble.py", capsys)
    assert together < 0.1 < 0.5 < alone


def test_no_example_is_forgotten() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(path.name in text for path in EXAMPLES.glob("*.py"))
    assert all((EXAMPLES / name).is_file() for name in ELSEWHERE)
