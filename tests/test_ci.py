"""`.ci/run` runs what the README tells a user to run, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_ci(folder: Path, readme: str) -> subprocess.CompletedProcess[str]:
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    (folder / "README.md").write_text(readme)
    return subprocess.run([folder / ".ci" / "run"], capture_output=True, text=True, cwd="/")


def test_it_runs_the_marked_block_in_the_repository(tmp_path: Path) -> None:
    readme = "```bash\necho no\n```\n<!-- tests -->\n```bash\npwd && echo yes\n```\n```bash\necho no\n```\n"
    result = run_ci(tmp_path, readme)
    assert result.returncode == 0
    assert result.stdout.splitlines() == ["+ pwd && echo yes", str(tmp_path), "yes"]


def test_a_failing_command_fails(tmp_path: Path) -> None:
    assert run_ci(tmp_path, "<!-- tests -->\n```bash\nfalse && true\n```\n").returncode != 0


def test_a_readme_without_the_marker_fails(tmp_path: Path) -> None:
    result = run_ci(tmp_path, "```bash\necho no\n```\n")
    assert result.returncode == 1 and "no code block" in result.stderr


def test_the_readme_has_one_line_that_tests_everything() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    start = lines.index("<!-- tests -->")
    assert lines.count("<!-- tests -->") == 1
    assert lines[start + 1].startswith("```") and lines[start + 3] == "```"
    command = lines[start + 2]
    for needed in (
        "venv",
        'pip install -q -e ".[baselines,dev]"',
        "ruff check",
        "ruff format",
        "mypy",
        "pytest",
    ):
        assert needed in command
