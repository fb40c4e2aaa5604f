from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import pytest
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from tw_seg.errors import InputError
from tw_seg.sweeps.definition import read_sweep

GRID = """
method: grid
metric: {name: val/miou, goal: maximize}
program: train.py
parameters:
  data.budget: {values: [5, 10, null]}
  model.lr: {value: 0.1}
  model:
    parameters:
      freeze: {values: [true, false]}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    return path


def test_a_grid_has_every_point_once_the_first_parameter_slowest(tmp_path):
    sweep = read_sweep(write(tmp_path, GRID))
    assert (sweep.name, sweep.method, sweep.metric, sweep.maximise) == ("file", "grid", "val/miou", True)
    expected = itertools.product([5, 10, None], [0.1], [True, False])
    assert [tuple(point.values()) for point in sweep.list_points()] == list(expected)
    assert sweep.varied == ["data.budget", "model.freeze"]
    capped = read_sweep(write(tmp_path, GRID + "run_cap: 4\n"))
    assert capped.list_points() == sweep.list_points()[:4]


@pytest.mark.parametrize(
    "command",
    [
        None,
        ["${env}", "${interpreter}", "${program}", "fit", "--config=a.yaml", "${args}"],
        ["${program}", "${args_no_hyphens}"],
        ["${program}", "${args_no_boolean_flags}", "--x"],
        ["${program}", "--json", "${args_json}", "${envvar:TW_SEG_TEST}/b", "${envvar:TW_SEG_NOT_SET}"],
    ],
)
def test_the_command_is_that_of_the_agent_of_wandb(tmp_path, monkeypatch, command):
    monkeypatch.setenv("TW_SEG_TEST", "from the environment")
    text = GRID if command is None else GRID + f"command: {command}\n"
    sweep = read_sweep(write(tmp_path, text))
    for point in sweep.list_points():
        macros = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
        macros |= {"program": ["train.py"], "interpreter": [sys.executable], "env": ["/usr/bin/env"]}
        expected = []
        for word in create_sweep_command(list(command) if command else None):
            known = word[:2] == "${" and word[2:-1] in macros
            expected += macros[word[2:-1]] if known else [word]
        assert sweep.build_command(point) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("{min: 1, max: 8}", {"low": 1, "high": 8, "integer": True}),
        ("{min: 0.0, max: 1.0}", {"low": 0.0, "high": 1.0}),
        ("{min: 0, max: 1, distribution: uniform}", {"low": 0.0, "high": 1.0}),
        ("{min: 0, max: 1, distribution: q_uniform, q: 0.25}", {"low": 0.0, "high": 1.0, "step": 0.25}),
        ("{min: 1.0e-4, max: 1.0e-2, distribution: log_uniform_values}", {"low": 1e-4, "high": 1e-2, "log": True}),
        ("{min: -9, max: 0, distribution: log_uniform}", {"low": math.exp(-9), "high": 1.0, "log": True}),
    ],
)
def test_ranges(tmp_path, given, expected):
    text = f"method: random\nrun_cap: 3\nmetric: {{name: a}}\nprogram: p\nparameters: {{x: {given}}}\n"
    sweep = read_sweep(write(tmp_path, text))
    assert not sweep.maximise  # W&B's default
    (parameter,) = sweep.parameters
    assert {name: getattr(parameter, name) for name in expected} == pytest.approx(expected)
    assert parameter.log == expected.get("log", False) and parameter.integer == expected.get("integer", False)


HEAD = "method: grid\nmetric: {name: a}\nprogram: p\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not a readable sweep file"),
        ("- a", "has keys such as method and parameters"),
        (HEAD + "parametres: {}", "unknown keys parametres; known are command"),
        ("method: best", "method must be one of grid, random, bayes, got 'best'"),
        ("method: grid", "metric needs a name"),
        ("method: grid\nmetric: {name: a, goal: up}", "the goal maximize or minimize"),
        (HEAD, "parameters must map options"),
        (HEAD + "run_cap: 0\nparameters: {x: {value: 1}}", "run_cap must be a whole number of trials >= 1, got 0"),
        (HEAD.replace("grid", "bayes") + "parameters: {x: {value: 1}}", "method bayes never ends by itself"),
        (HEAD + "command: tw-seg fit\nparameters: {x: {value: 1}}", "command must be a list of words"),
        (HEAD.replace("program: p\n", "") + "parameters: {x: {value: 1}}", "there is no key program"),
        (HEAD + "parameters: {x: 3}", "file.yaml: x: expected 'value: ...'"),
        (HEAD + "parameters: {x: {values: []}}", "x: values must be a list with at least one value"),
        (HEAD + "parameters: {x: {values: [1], probabilities: [1]}}", "x: probabilities of values are not supported"),
        (
            HEAD + "parameters: {x: {min: 2, max: 1}}",
            "x: expected 'value: ...', 'values: \\[...\\]', or numbers min <= max",
        ),
        (HEAD + "parameters: {x: {min: 1, max: 2}}", "a grid needs the values of x, not a range"),
        (HEAD + "parameters: {x: {min: 1, max: 2, distribution: beta}}", "distribution 'beta' from 1 to 2"),
        (HEAD + "parameters: {x: {min: 0, max: 2, distribution: log_uniform_values}}", "'log_uniform_values' from 0"),
    ],
)
def test_a_wrong_file_is_refused_with_the_key(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_sweep(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        read_sweep(tmp_path / "nowhere.yaml")
