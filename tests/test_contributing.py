"""What CONTRIBUTING.md promises: what a contributor's first five minutes need is there and calls what it should."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_hooks_before_a_commit_are_those_of_the_virtual_environment() -> None:
    repos = load(".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]  # nothing is downloaded
    entries = [hook["entry"].split() for hook in repos[0]["hooks"]]
    assert [entry[:2] for entry in entries] == [
        [".venv/bin/ruff", "check"],
        [".venv/bin/ruff", "format"],
        [".venv/bin/mypy"],
    ]
    assert {hook["language"] for hook in repos[0]["hooks"]} == {"system"}


def test_public_ci_calls_the_one_script_on_every_supported_python() -> None:
    job = load(".github/workflows/ci.yml")["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    versions = job["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f">={versions[0]}" == project["requires-python"]
    named = {text.rpartition(" ")[2] for text in project["classifiers"] if "Python :: 3." in text}
    assert named <= set(versions)


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "tw_seg" / "py.typed").read_text(encoding="utf-8") == ""
