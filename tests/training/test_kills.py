"""A fit that is killed at any file that it touches leaves whole files, and repeats an undisturbed run when resumed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.training.test_resume import ROOT
from tw_seg.torch_files import find_damage


def check_files(run: Path) -> None:
    """Every file that has its name is whole; what was begun has another."""
    for path in run.rglob("*"):
        if path.suffix == ".ckpt":
            assert find_damage(path) is None
        elif path.suffix == ".yaml":
            assert yaml.compose(path.read_text()) or path.name == "hparams.yaml"  # Lightning's
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".csv":
            with open(path, newline="") as file:
                rows = list(csv.reader(file))
            assert len({len(row) for row in rows}) <= 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes of POSIX")
def test_a_kill_at_any_moment_loses_nothing(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "tests.training.killed", str(tmp_path)]
    done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = (tmp_path / "whole.trace").read_text().splitlines()
    assert len(set(whole)) == len(whole) == 10
    weights = torch.load(tmp_path / "whole" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, moment, number, status, resumed in json.loads((tmp_path / "report.json").read_text()):
        assert (status, resumed) == (-number if number == signal.SIGKILL else 130, 0), (
            name,
            moment,
            done.stderr[-3000:],
        )
        check_files(tmp_path / f"{name}-killed")
        check_files(tmp_path / name)
        trace = (tmp_path / f"{name}.trace").read_text().splitlines()
        assert set(trace) == set(whole) and trace[-1] == whole[-1], (name, moment)
        last = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert all(torch.equal(value, last[key]) for key, value in weights.items())
        assert list((tmp_path / name).rglob(".*.tmp")) == [], "drafts of the killed run stay"
