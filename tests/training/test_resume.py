"""A run that is killed with SIGKILL in mid-epoch and resumed repeats an uninterrupted one exactly (CPU)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tw_seg.training.cli import run

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
seed_everything: 5
model:
  encoder_name: timm/resnet10t
  encoder_kwargs: {channels: [4, 4, 8, 8], stem_width: 4, drop_rate: 0.3}  # dropout draws in every step
  model_kwargs: {read_out: layer3}
  warmup_steps: 2
data:
  dataset_kwargs: {size: 32}
  split_kwargs: {train: {length: 16}, val: {length: 2}}
  size: 32
  budget: 6
  batch_size: 4
  labelled_per_batch: 2
trainer:
  accelerator: cpu
  max_epochs: 3
  enable_progress_bar: false
  enable_model_summary: false
"""
STEPS = 15  # 5 steps of 2 unlabelled images in each of 3 epochs
EMA = """
trainer:
  callbacks+:
    - class_path: pytorch_lightning.callbacks.EMAWeightAveraging
      init_args: {decay: 0.9}
"""


def command(folder: Path, name: str, *extra: str, die_after: int | None = None) -> list[str]:
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "ema.yaml").write_text(EMA)
    trace = folder / f"{name}.trace"
    return [
        "fit",
        *("--config", str(folder / "config.yaml"), "--config", str(folder / "ema.yaml")),
        "--trainer.callbacks+=tests.training.tiny.LossTrace",
        f"--trainer.callbacks.path={trace}",
        f"--trainer.callbacks.die_after={'null' if die_after is None else die_after}",
        f"--run_dir={folder / name}",
        *extra,
    ]


def fit_until_killed(arguments: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-m", "tw_seg.training.cli", *arguments],
        env=environment,
        cwd=arguments and ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr


def trace(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.trace").read_text().splitlines()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[list[str], dict]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(command(folder, "whole"))
    return trace(folder, "whole"), load(folder / "whole")


def load(run_dir: Path) -> dict:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("die_after", "first_again", "extra"),
    [
        pytest.param(8, 5, [], id="from-the-end-of-an-epoch"),
        pytest.param(
            9, 8, ["--last.every_n_train_steps=4", "--data.num_workers=1"], id="from-mid-epoch-with-a-worker"
        ),
    ],
)
def test_kill_and_resume(die_after, first_again, extra, uninterrupted, tmp_path):
    whole, final = uninterrupted
    assert len(whole) == STEPS
    assert len({line.split()[2] for line in whole}) == STEPS

    fit_until_killed(command(tmp_path, "run", *extra, die_after=die_after))
    assert trace(tmp_path, "run") == whole[:die_after]
    assert (tmp_path / "run" / "metrics" / "fit" / "metrics.csv").is_file()

    run(command(tmp_path, "run", *extra, "--ckpt_path=last"))
    assert trace(tmp_path, "run") == whole[:die_after] + whole[first_again:]
    assert (tmp_path / "run" / "metrics" / "fit" / "metrics.csv").is_file()
    assert (tmp_path / "run" / "metrics" / "fit-2" / "metrics.csv").is_file()

    if "--last.every_n_train_steps=4" not in extra:  # that one ends at step 12
        resumed = load(tmp_path / "run")
        for part in ("state_dict", "current_model_state"):  # averaged and last weights
            assert all(torch.equal(value, final[part][name]) for name, value in resumed[part].items())
        assert resumed["lr_schedulers"] == final["lr_schedulers"]
