"""Throw-away virtual environments for `.ci/versions` and `.ci/floors`. Needs no package; Python 3.11 or later."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

Run = Callable[..., int]


def find_python(version: str) -> str:
    """Path of the interpreter for ``version`` ("3.12"): on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for name in (f"python{version}", *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))):
        found = shutil.which(name)
        # A pyenv shim lies on the path for interpreters that are not switched on; it fails when called.
        if found and subprocess.run([found, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0:
            return found
    raise SystemExit(f"no Python {version} on the path or below {pyenv}: install it")


@contextmanager
def environment(python: str, *requirements: str) -> Iterator[Run]:
    """A new environment with the package, its extras and ``requirements``; deleted afterwards.

    It lies below ``TMPDIR`` and takes up to 7 GB. What is given is a function that runs a program of the environment
    in the repository and returns its status.
    """
    with tempfile.TemporaryDirectory(prefix="tw_seg_") as folder:
        bin = Path(folder) / "bin"

        def run(program: str, *arguments: str) -> int:
            print("+", program, *arguments, flush=True)
            started = time.monotonic()
            # A venv's own `bin` comes first, so that child processes find its programs.
            path = os.pathsep.join([str(bin), os.environ["PATH"]])
            status = subprocess.run([bin / program, *arguments], cwd=ROOT, env=os.environ | {"PATH": path}).returncode
            print(f"  status {status} after {time.monotonic() - started:.0f} s", flush=True)
            return status

        subprocess.run([find_python(python), "-m", "venv", folder], check=True)
        if run("pip", "install", "-q", "--no-cache-dir", "--no-compile", "-e", ".[baselines,dev]", *requirements):
            raise SystemExit("installing failed")
        run(
            "python",
            "-c",
            "import sys, torch; print('Python', sys.version.split()[0], 'with torch', torch.__version__)",
        )
        yield run


def report(results: dict[str, int]) -> None:
    """Print a line for each result (a status) and leave with status 1 if one is not 0."""
    for name, status in results.items():
        print(f"{'passed' if status == 0 else 'FAILED'}  {name}")
    sys.exit(any(results.values()))
