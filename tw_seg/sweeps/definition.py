"""A sweep file of Weights & Biases: what varies, how it is chosen, and the command of a trial."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tw_seg.arguments import is_number
from tw_seg.errors import InputError
from tw_seg.plain_files import read_yaml

METHODS = ("grid", "random", "bayes")
_KEYS = {"method", "name", "description", "program", "command", "metric", "parameters", "run_cap"}
_KEYS_OF_A_SERVER = {"project", "entity", "early_terminate", "apiVersion", "kind", "controller"}
"""Keys that are valid and mean nothing without a server. ``early_terminate``: every trial runs to its end here."""

_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")  # W&B's default
_VARIABLE = re.compile(r"\$\{envvar:(\w+)\}")
_MACROS = (*_COMMAND, "${args_no_hyphens}", "${args_no_boolean_flags}", "${args_json}")
_LEAST_EXPONENT, _MOST_EXPONENT = -745, 709  # beyond, exp is 0 or too large for a float
_SET_BY_THE_SWEEP = ("run_dir", "ckpt_path")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a sweep.

    Attributes:
        name: The option that it sets, without hyphens, such as ``data.budget``.
        values: What it may be; empty for a range.
        low: Smallest value of a range.
        high: Largest value of a range.
        step: Distance of its values; ``None``: any number between.
        log: Whether its logarithm is uniform.
        integer: Whether its values are whole numbers.
    """

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Sweep:
    """A sweep, as its file describes it.

    Attributes:
        name: Its name; that of the file, if it has none.
        method: ``grid``, ``random`` or ``bayes``.
        metric: The number that is optimised, as it is logged: ``val/miou``.
        maximise: Whether more of it is better.
        parameters: What varies, and what is constant (one value).
        command: Words of the command of a trial, with W&B's macros.
        program: What ``${program}`` stands for.
        run_cap: Number of trials; ``None``: every point of a grid.
    """

    name: str
    method: str
    metric: str
    maximise: bool
    parameters: tuple[Parameter, ...]
    command: tuple[str, ...]
    program: str
    run_cap: int | None

    @property
    def varied(self) -> list[str]:
        """Names of the parameters with more than one value."""
        return [p.name for p in self.parameters if len(p.values) != 1]

    def list_points(self) -> list[dict[str, Any]]:
        """Every point of the grid, the first parameter slowest, at most ``run_cap``."""
        names = [p.name for p in self.parameters]
        points = itertools.product(*(p.values for p in self.parameters))
        return [dict(zip(names, point, strict=True)) for point in itertools.islice(points, self.run_cap)]

    def build_command(self, values: Mapping[str, Any]) -> list[str]:
        """The words of a trial's command.

        Args:
            values: Value of each parameter.
        """
        macros = {
            "${env}": ["/usr/bin/env"] if os.name == "posix" else [],
            "${interpreter}": [sys.executable],
            "${program}": [self.program],
            "${args}": [f"--{name}={_format_value(value)}" for name, value in values.items()],
            "${args_no_hyphens}": [f"{name}={_format_value(value)}" for name, value in values.items()],
            "${args_no_boolean_flags}": [
                f"--{name}" if value is True else f"--{name}={_format_value(value)}"
                for name, value in values.items()
                if value is not False
            ],
            "${args_json}": [json.dumps(dict(values))],
        }
        words = (macros.get(word, [_VARIABLE.sub(_read_variable, word)]) for word in self.command)
        return list(itertools.chain.from_iterable(words))


def read_sweep(path: Path) -> Sweep:
    """Read a W&B sweep file.

    Args:
        path: The YAML file.

    Raises:
        InputError: It cannot be read, or asks for something that cannot be run here; names the key.
    """
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable sweep file ({error})") from error
    try:
        return _read_content(content, path)
    except RecursionError as error:  # an alias inside of what it stands for
        raise InputError(f"{path}: it is nested too deeply; write what an alias (*name) stands for") from error


def _read_content(content: Any, path: Path) -> Sweep:
    if not isinstance(content, dict):
        raise InputError(f"{path}: a sweep file has keys such as method and parameters, found {content!r}")
    if unknown := set(content) - _KEYS - _KEYS_OF_A_SERVER:
        raise InputError(
            f"{path}: unknown keys {', '.join(sorted(map(str, unknown)))}; known are {', '.join(sorted(_KEYS))}"
        )
    method = content.get("method")
    if method not in METHODS:
        raise InputError(f"{path}: method must be one of {', '.join(METHODS)}, got {method!r}")
    name = str(content.get("name") or path.stem)
    if (content.get("name") and not re.fullmatch(r"[\w .-]+", name)) or not name.strip(". "):
        raise InputError(f"{path}: name may hold letters, digits, spaces, dots, dashes and underscores, got {name!r}")
    metric = content.get("metric")
    goal = metric.get("goal", "minimize") if isinstance(metric, dict) else None  # W&B's default
    if not isinstance(metric, dict) or not isinstance(metric.get("name"), str) or goal not in ("minimize", "maximize"):
        raise InputError(
            f"{path}: metric needs a name and the goal maximize or minimize, such as "
            f"{{name: val/miou, goal: maximize}}, got {metric!r}"
        )
    run_cap = content.get("run_cap")
    if run_cap is not None and (not isinstance(run_cap, int) or isinstance(run_cap, bool) or run_cap < 1):
        raise InputError(f"{path}: run_cap must be a whole number of trials >= 1, got {run_cap!r}")
    if method != "grid" and run_cap is None:
        raise InputError(f"{path}: method {method} never ends by itself; give run_cap, the number of trials")
    command = content.get("command") or _COMMAND
    if not isinstance(command, Sequence) or isinstance(command, str):
        raise InputError(f"{path}: command must be a list of words, got {command!r}")
    if "${program}" in command and not content.get("program"):
        raise InputError(f"{path}: command uses ${{program}}, and there is no key program")
    _check_macros([str(word) for word in command], path)
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise InputError(f"{path}: parameters must map options such as data.budget to their values, got {parameters!r}")
    read = [_read_parameter(str(name), given, f"{path}: {name}") for name, given in _flatten(parameters).items()]
    if method == "grid" and (ranges := [p.name for p in read if not p.values]):
        raise InputError(f"{path}: a grid needs the values of {', '.join(ranges)}, not a range")
    return Sweep(
        name=name,
        method=method,
        metric=metric["name"],
        maximise=goal == "maximize",
        parameters=tuple(read),
        command=tuple(map(str, command)),
        program=str(content.get("program", "")),
        run_cap=run_cap,
    )


def _check_macros(command: Sequence[str], path: Path) -> None:
    for word in command:
        if word not in _MACROS and (macro := re.search(r"\$\{.*?\}", _VARIABLE.sub("", word))):
            raise InputError(
                f"{path}: command holds {macro[0]} in {word!r}, which nothing replaces; known are "
                f"{', '.join(_MACROS)} as words of their own, and ${{envvar:NAME}}"
            )


def _flatten(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters by their whole names."""
    found: dict[str, Any] = {}
    for name, given in parameters.items():
        if isinstance(given, dict) and isinstance(given.get("parameters"), dict):
            found |= _flatten(given["parameters"], f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = given
    return found


def _read_parameter(name: str, given: Any, where: str) -> Parameter:
    if name in _SET_BY_THE_SWEEP:
        raise InputError(f"{where}: the sweep sets {name} for each trial; take it out of the parameters")
    if not re.fullmatch(r"[^-=\s][^=\s]*", name):
        raise InputError(
            f"{where}: a parameter is an option without its hyphens, such as data.budget, without = and spaces, "
            f"got {name!r}"
        )
    if not isinstance(given, dict):
        raise InputError(f"{where}: expected 'value: ...', 'values: [...]', or min and max, got {given!r}")
    distribution = given.get("distribution")
    if "value" in given and distribution in (None, "constant"):
        return Parameter(name, (_check_value(given["value"], where),))
    if "values" in given and distribution in (None, "categorical"):
        if "probabilities" in given:
            raise InputError(
                f"{where}: probabilities of values are not supported; repeat a value to draw it more often"
            )
        if not isinstance(given["values"], list) or not given["values"]:
            raise InputError(f"{where}: values must be a list with at least one value, got {given['values']!r}")
        return Parameter(name, tuple(_check_value(value, where) for value in given["values"]))
    low, high = given.get("min"), given.get("max")
    if low is None or high is None or not is_number(low) or not is_number(high) or not low <= high:
        raise InputError(f"{where}: expected 'value: ...', 'values: [...]', or numbers min <= max, got {given!r}")
    if not (_is_finite(low) and _is_finite(high) and _is_finite(high - low)):
        raise InputError(f"{where}: min, max and max - min must be finite, got {low!r} and {high!r}")
    if distribution is None:
        distribution = "int_uniform" if isinstance(low, int) and isinstance(high, int) else "uniform"
    match distribution:
        case "int_uniform":
            if low != int(low) or high != int(high):
                raise InputError(
                    f"{where}: min and max of int_uniform must be whole numbers, got {low!r} and {high!r}; "
                    "distribution: uniform draws others"
                )
            return Parameter(name, low=low, high=high, integer=True)
        case "uniform":
            return Parameter(name, low=low, high=high)
        case "q_uniform":
            step = given.get("q", 1)
            if not is_number(step) or not step > 0 or not _is_finite(step):
                raise InputError(f"{where}: q, the distance of the values, must be a number > 0, got {step!r}")
            return Parameter(name, low=low, high=high, step=step)
        case "log_uniform":  # W&B: min and max are exponents of e
            if not _LEAST_EXPONENT <= low <= high <= _MOST_EXPONENT:
                raise InputError(
                    f"{where}: min and max of log_uniform are exponents of e, from {_LEAST_EXPONENT} to "
                    f"{_MOST_EXPONENT}, got {low!r} and {high!r}; log_uniform_values takes the values themselves"
                )
            return Parameter(name, low=math.exp(low), high=math.exp(high), log=True)
        case "log_uniform_values" if low > 0:
            return Parameter(name, low=low, high=high, log=True)
    raise InputError(
        f"{where}: distribution {distribution!r} from {low} to {high} is not supported; known are constant, "
        "categorical, int_uniform, uniform, q_uniform, log_uniform and log_uniform_values (above 0)"
    )


def _check_value(value: Any, where: str) -> Any:
    """The value, if JSON keeps it as it is: the data base holds it as JSON."""
    try:
        same = value != value or json.loads(json.dumps(value)) == value  # NaN is what it is
    except (TypeError, ValueError):
        same = False
    if not same:
        raise InputError(
            f"{where}: a value must be a string, number, true, false or null, or a list or mapping of these by "
            f"strings, got {value!r}; quote it if it is meant as text, such as a date"
        )
    return value


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number that no float can hold
        return False


def _format_value(value: Any) -> str:
    """A value as W&B's agent writes it; lists and mappings as JSON, for Python's None in them is no null."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def _read_variable(found: re.Match[str]) -> str:
    return os.environ.get(found[1], found[1])  # W&B leaves the name of an unknown variable
