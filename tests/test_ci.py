"""`.ci/run` runs what the README tells a user to run, then lint and types."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINT_AND_TYPES = ["ruff check .", "ruff format --check .", "mypy"]


def run_ci(folder: Path, readme: str, failing: str = "") -> subprocess.CompletedProcess[str]:
    """``.ci/run`` beside this README, with tools that say how they were called; those called ``failing`` fail."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    (folder / "README.md").write_text(readme)
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("ruff", "mypy"):
        tool = folder / ".venv" / "bin" / name
        tool.write_text(f'#!/bin/sh\nset -- {name} "$@"\necho "$@"\ntest "$*" != "{failing}"\n')
        tool.chmod(0o755)
    return subprocess.run([folder / ".ci" / "run"], capture_output=True, text=True, cwd="/")


def test_it_runs_the_marked_block_in_the_repository(tmp_path: Path) -> None:
    readme = "```bash\necho no\n```\n<!-- tests -->\n```bash\npwd && echo yes\n```\n```bash\necho no\n```\n"
    result = run_ci(tmp_path, readme)
    assert result.returncode == 0
    assert result.stdout.splitlines() == ["+ pwd && echo yes", str(tmp_path), "yes", *LINT_AND_TYPES]


def test_a_failing_command_fails(tmp_path: Path) -> None:
    result = run_ci(tmp_path, "<!-- tests -->\n```bash\nfalse && true\n```\n")
    assert result.returncode != 0 and not set(LINT_AND_TYPES) & set(result.stdout.splitlines())


@pytest.mark.parametrize("failing", LINT_AND_TYPES)
def test_failing_lint_or_types_fail(tmp_path: Path, failing: str) -> None:
    assert run_ci(tmp_path, "<!-- tests -->\n```bash\ntrue\n```\n", failing).returncode != 0


def test_a_readme_without_the_marker_fails(tmp_path: Path) -> None:
    result = run_ci(tmp_path, "```bash\necho no\n```\n")
    assert result.returncode == 1 and "no code block" in result.stderr


def test_the_readme_has_one_line_that_runs_the_tests_alone() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    start = lines.index("<!-- tests -->")
    assert lines.count("<!-- tests -->") == 1
    assert lines[start + 1].startswith("```") and lines[start + 3] == "```"
    venv, install, tests = lines[start + 2].split(" && ")
    assert venv == "python3 -m venv .venv"
    assert install == '.venv/bin/pip install -q -e ".[baselines,dev]"'
    assert tests.startswith(".venv/bin/pytest ")


# The scripts for other versions take minutes and gigabytes: here is what they would install and run


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script of this name in ``.ci`` as a module."""
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader = importlib.machinery.SourceFileLoader(f"ci_{request.param}", str(ROOT / ".ci" / request.param))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", ["floors"], indirect=True)
def test_every_dependency_has_a_floor(script: ModuleType) -> None:
    floors = script.read_floors()
    assert "torch==2.11" in floors and "jsonargparse==4.53" in floors and len(floors) == len(set(floors))
    declared = {
        line.strip(' "').partition(">=")[0].partition("[")[0]
        for line in (ROOT / "pyproject.toml").read_text().splitlines()
        if line.startswith('    "') and ">=" in line
    }
    assert {floor.partition("==")[0] for floor in floors} == declared


@pytest.mark.parametrize("script", ["versions"], indirect=True)
def test_the_quick_tests_exist(script: ModuleType) -> None:
    assert all((ROOT / path).exists() for path in script.QUICK)
