from __future__ import annotations

import itertools
import math
import re
import sys
from pathlib import Path

import pytest
import yaml
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


def read_parameters(tmp_path: Path, parameters: str, method: str = "grid"):
    text = f"method: {method}\nrun_cap: 9\nmetric: {{name: a}}\nprogram: p\nparameters: {parameters}\n"
    return read_sweep(write(tmp_path, text))


@pytest.mark.parametrize("macro", ["${args}", "${args_no_hyphens}", "${args_no_boolean_flags}"])
def test_scalars_are_written_as_wandb_does_and_containers_so_that_they_are_read_back(tmp_path, macro):
    scalars = {"a": 1, "b": 1.5e-7, "c": True, "d": None, "e": "x y", "f": "null", "g": ".5"}
    containers = {"h": {"images": 1, "start": None}, "i": [True, "1", 1, None, 0.25], "j": {"k": ["é: 😀", {}]}}
    text = GRID.partition("parameters")[0] + f"command: ['{macro}']\nparameters: {{x: {{value: 1}}}}\n"
    sweep = read_sweep(write(tmp_path, text))
    expected = create_sweep_command_args({"args": {name: {"value": value} for name, value in scalars.items()}})
    assert sweep.build_command(scalars) == expected[macro[2:-1]]
    words = dict(word.removeprefix("--").split("=", 1) for word in sweep.build_command(containers))
    assert {name: yaml.safe_load(word) for name, word in words.items()} == containers


def test_whole_floats_bound_whole_numbers_and_a_name_may_hold_what_folders_hold(tmp_path):
    (parameter,) = read_parameters(
        tmp_path, "{x: {min: 1.0, max: 8.0, distribution: int_uniform}}", "random"
    ).parameters
    assert (parameter.low, parameter.high, parameter.integer) == (1, 8, True)
    assert read_sweep(write(tmp_path, HEAD + "name: A b-1_é.2\nparameters: {x: {value: 1}}")).name == "A b-1_é.2"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{value: 2026-01-01}", "x: a value must be a string, number, .* got datetime.date.*; quote it"),
        ("{values: [1, [2026-01-01]]}", "x: a value must be"),
        ("{value: {1: a}}", "x: a value must be .* or mapping of these by strings, got {1: 'a'}"),
        ("{values: &a [1, *a]}", "x: a value must be"),
        ("{min: 0, max: 1, distribution: 5}", "x: distribution 5 from 0 to 1 is not supported; known are"),
        ("{min: 0, max: 1, distribution: q_uniform, q: 0}", "x: q, the distance of the values, must be .* > 0, got 0"),
        ("{min: 0, max: 1, distribution: q_uniform, q: x}", "must be a number > 0, got 'x'"),
        ("{min: 0, max: 1, distribution: q_uniform, q: .nan}", "must be a number > 0, got nan"),
        ("{min: 0, max: 800, distribution: log_uniform}", "x: min and max of log_uniform are exponents .* 0 and 800"),
        ("{min: -800, max: 0, distribution: log_uniform}", "exponents of e, from -745 to 709"),
        ("{min: 0, max: .inf}", "x: min, max and max - min must be finite, got 0 and inf"),
        ("{min: -1.0e+308, max: 1.0e+308}", "must be finite"),
        ("{min: 0, max: 1" + 400 * "0" + "}", "must be finite"),
        ("{min: 0, max: .nan}", "x: expected .* numbers min <= max"),
        (
            "{min: 0.2, max: 0.7, distribution: int_uniform}",
            "x: min and max of int_uniform must be whole .* 0.2 and 0.7",
        ),
    ],
)
def test_a_wrong_value_or_range_is_refused_with_the_parameter(tmp_path, given, message):
    with pytest.raises(InputError, match=rf"(?s)file\.yaml: {message}" if message.startswith("x:") else message):
        read_parameters(tmp_path, f"{{x: {given}}}", "random")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("-x", "a parameter is an option without its hyphens, .* got '-x'"),
        ("a=b", "got 'a=b'"),
        ("a b", "got 'a b'"),
        ("run_dir", "run_dir: the sweep sets run_dir for each trial; take it out"),
        ("ckpt_path", "the sweep sets ckpt_path"),
    ],
)
def test_a_name_that_is_no_option_or_is_the_sweeps_is_refused(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        read_parameters(tmp_path, f"{{'{name}': {{value: 1}}}}")


@pytest.mark.parametrize("name", ["../../escape/x", "a/b", "..", "a\\b"])
def test_a_name_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="name may hold letters, digits, spaces, dots, dashes and underscores, got"):
        read_sweep(write(tmp_path, HEAD + f"name: {name}\nparameters: {{x: {{value: 1}}}}"))


@pytest.mark.parametrize("word", ["${args_json_file}", "--x=${args}", "a${envvar:HOME}${nothing}"])
def test_a_macro_that_nothing_replaces_is_refused(tmp_path, word):
    macro = "${" + word.rpartition("${")[2]
    with pytest.raises(InputError, match=re.escape(f"command holds {macro} in {word!r}") + ".*args_json.*envvar:NAME"):
        read_sweep(write(tmp_path, HEAD + f"command: ['{word}']\nparameters: {{x: {{value: 1}}}}"))


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
        ("method: grid\nmetric: val/miou", "such as {name: val/miou, goal: maximize}, got 'val/miou'"),
        ("a: 2026-13-45", "not a readable sweep file"),
        ("1: a\nb: c", "unknown keys 1, b"),
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


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch ran']",
        "parameters: " + "{a: " * 300,
        "method: grid\nmetric: {name: a, goal: maximize}\ncommand: [a]\nparameters: &p {x: {parameters: *p}}",
        "a0: &a [x]\n" + "b: [*a, *a]\n" * 50,
    ],
)
def test_a_file_that_runs_code_or_fills_the_memory(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"sweep\.yaml: ") as error:
        read_sweep(path)
    assert len(str(error.value)) < 1000 and not (tmp_path / "ran").exists()
