"""Every notebook runs from top to bottom, and is what jupytext makes of the script beside it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import jupytext  # type: ignore[import-untyped]
import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
SCRIPTS = sorted(path.stem for path in NOTEBOOKS.glob("*.py"))

# Upstream, about the machine: tqdm.auto, which several libraries import, finds no ipywidgets.
EXPECTED_WARNINGS = re.compile("TqdmWarning: IProgress not found")


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def content(notebook: NotebookNode) -> list[tuple[str, str]]:
    """What a reader sees; the ids of cells, which jupytext draws anew, are left out."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


@pytest.fixture
def kernel_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a kernel that is this interpreter, and that leaves the user's home alone."""
    write_kernel_spec(tmp_path / "jupyter" / "kernels" / "python3")
    # JUPYTER_PATH comes before every other place where a kernel "python3" may be.
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # jupyter_core warns about its own default
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("MPLBACKEND", None)  # the tests' agg would show no pictures
    path = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(path)}


def run(notebook: NotebookNode, folder: Path, environment: dict[str, str]) -> NotebookNode:
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, kernel_name="python3", timeout=600, resources=resources)
    return client.execute(env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("stem", SCRIPTS)
def test_it_runs(stem: str, tmp_path: Path, kernel_environment: dict[str, str]) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    path = Path(shutil.copy(NOTEBOOKS / f"{stem}.ipynb", folder))
    done = run(nbformat.read(path, as_version=4), folder, kernel_environment)
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")
    assert any("image/png" in output.get("data", {}) for output in outputs(done)), "it shows no picture"
    errors = "\n".join(output.text for output in outputs(done) if output.get("name") == "stderr")
    warned = [line for line in errors.splitlines() if "Warning" in line]
    assert all(EXPECTED_WARNINGS.search(line) for line in warned), warned
    assert [entry.name for entry in folder.iterdir()] == [path.name], "it wrote files"


def test_the_kernel_is_this_interpreter_and_a_failing_cell_fails(
    tmp_path: Path, kernel_environment: dict[str, str]
) -> None:
    new_cell = nbformat.v4.new_code_cell
    cells = [new_cell("import sys; print(sys.executable)"), new_cell("assert False, 'on purpose'")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.raises(Exception, match="on purpose"):
        run(notebook, tmp_path, kernel_environment)
    assert outputs(notebook)[0].text.strip() == sys.executable


@pytest.mark.parametrize("stem", SCRIPTS)
def test_it_is_made_from_its_script(stem: str) -> None:
    script = NOTEBOOKS / f"{stem}.py"
    made = jupytext.reads(script.read_text(encoding="utf-8"), fmt="py:percent")
    found = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)
    remedy = f"edit {script.name}, then: jupytext --update --to ipynb notebooks/{script.name}"
    assert content(found) == content(made), remedy
    assert found.metadata.kernelspec == made.metadata.kernelspec, remedy
    assert not outputs(found), f"notebooks are kept without outputs, which go stale: {remedy}"


def test_every_notebook_has_a_script_and_every_script_a_notebook() -> None:
    assert SCRIPTS and SCRIPTS == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
