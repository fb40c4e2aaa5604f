from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tw_seg.sweeps.definition import Sweep, read_sweep

PROGRAM = """
import pathlib, sys, time
options = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
folder = pathlib.Path(options["run_dir"])
x = float(options["x"])
with open(folder / "calls.txt", "a") as file:
    file.write(options.get("ckpt_path", "new") + "\\n")
if x == 13:
    sys.exit("thirteen is unlucky")
(folder / "checkpoints").mkdir(exist_ok=True)
(folder / "checkpoints" / "last.ckpt").write_text("state")
while x == 99 and options.get("ckpt_path") != "last":
    time.sleep(0.1)
(folder / "metrics" / "fit").mkdir(parents=True, exist_ok=True)
(folder / "metrics" / "fit" / "metrics.csv").write_text(f"epoch,val/miou,lr\\n0,{x},1\\n1,{-x * x},2\\n2,,3\\n")
(folder / "metrics" / "test").mkdir(exist_ok=True)
(folder / "metrics" / "test" / "metrics.csv").write_text(f"epoch,test/miou\\n0,{2 * x}\\n")
"""


@pytest.fixture
def make_sweep(tmp_path: Path):
    """Makes a sweep over ``x`` of a program that logs x, then -x², and 2x as the test's; 13 fails, 99 never ends."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def make(parameters: str = "{x: {values: [1, 2, 3]}}", method: str = "grid", more: str = "") -> Sweep:
        text = (
            f"name: numbers\nmethod: {method}\nmetric: {{name: val/miou, goal: maximize}}\nparameters: {parameters}\n"
        )
        command = f"program: {tmp_path / 'program.py'}\ncommand: ['${{interpreter}}', '${{program}}', '${{args}}']\n"
        (tmp_path / "sweep.yaml").write_text(text + command + more)
        return read_sweep(tmp_path / "sweep.yaml")

    return make


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
