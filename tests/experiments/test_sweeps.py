"""Every sweep file that is shipped is read, its commands parse, and the tiny one is run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from tw_seg.cli import main
from tw_seg.cli.lightning import run_command
from tw_seg.sweeps.definition import read_sweep

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = ROOT / "experiments" / "sweeps"
FILES = sorted(path.name for path in SWEEPS.glob("*.yaml"))
MODELS = sorted(path.name for path in (SWEEPS / "models").glob("*.yaml"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory that has the files and nothing else of the repository."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("file", [*FILES, *(f"models/{name}" for name in MODELS)])
def test_a_file_says_what_it_is_for(file):
    text = (SWEEPS / file).read_text()
    assert text.startswith("# ") and isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("file", FILES)
def test_commands_parse(file, capsys):
    """The first and the last value of every parameter, in the command that W&B's agent would run."""
    sweep = read_sweep(Path("experiments/sweeps") / file)
    ends = [{p.name: (p.values or (p.low, p.high))[end] for p in sweep.parameters} for end in (0, -1)]
    files = next((p.values for p in sweep.parameters if p.name == "config"), ())
    for point in (*ends, *({**ends[0], "config": name} for name in files[1:-1])):
        words = sweep.build_command(point)
        assert words[:2] == ["/usr/bin/env", "tw-seg"]
        with pytest.raises(SystemExit) as stop:
            run_command([*words[2:], "--print_config"])
        assert not stop.value.code
        config = yaml.safe_load(capsys.readouterr().out)
        for name, value in point.items():
            if name != "config":
                found = config
                for key in name.split("."):
                    found = found[key]
                assert found == value, name


def test_every_model_is_swept():
    parameters = [p for file in FILES for p in read_sweep(SWEEPS / file).parameters if p.name == "config"]
    named = {Path(str(value)) for p in parameters for value in p.values}
    assert {path.name for path in named if path.parent.name == "models"} == set(MODELS)


@pytest.mark.slow
def test_the_tiny_sweep_runs_here(capfd):
    assert main(["sweep", "experiments/sweeps/label_budget_tiny.yaml", "--jobs=2"]) == 0
    folder = Path("sweeps/label_budget_tiny")
    shown = capfd.readouterr().out
    assert "4 trials: 4 complete. The metric is test/miou." in shown and f"run directory: {folder.absolute()}" in shown
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["complete"] * 4
    for row in rows:
        trial = folder / "trials" / row["trial"]
        logged = list(csv.DictReader((trial / "metrics" / "test" / "metrics.csv").read_text().splitlines()))
        assert float(row["test/miou"]) == float(logged[-1]["test/miou"])
        masks = json.loads((trial / "label_budget.json").read_text())
        assert len(masks["names"]) == (4 if row["data.budget"] == "4" else 16)
        assert list((trial / "wandb").glob("offline-run-*"))
    for name in ("score.png", "time.png", "classes.png"):
        assert (folder / name).is_file()
    assert main(["sweep", "experiments/sweeps/label_budget_tiny.yaml"]) == 0  # nothing is left to run
    assert len(list((folder / "trials").rglob("offline-run-*"))) == 4
