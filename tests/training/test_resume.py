"""A run that is killed with SIGKILL in mid-epoch and resumed repeats an uninterrupted one exactly (CPU)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tw_seg.cli.lightning import run_command

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
seed_everything: 5
model:
  encoder_name: timm/resnet10t
  encoder_kwargs: {channels: [4, 4, 8, 8], stem_width: 4, drop_rate: 0.3}  # dropout draws in every step
  model_kwargs: {decoder_kwargs: {read_out: layer3}}
  warmup_steps: 2
  pseudo_masks: {images: 1, start: 3, confidence: 0.05}
  sampled_classes: {negatives: 1}
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


KILLED = {  # steps to live, and arguments
    "from-the-end-of-an-epoch": (8, []),
    "from-mid-epoch-with-a-worker": (9, ["--last.every_n_train_steps=4", "--data.num_workers=1"]),
}
RESUMES_AFTER = {"from-the-end-of-an-epoch": 5, "from-mid-epoch-with-a-worker": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with one uninterrupted run and two that were killed, each in a process of its own."""
    folder = tmp_path_factory.mktemp("runs")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = []
    for name, (die_after, extra) in KILLED.items():
        # No fork: autograd's threads do not survive one.
        line = [sys.executable, "-m", "tw_seg", *command(folder, name, *extra, die_after=die_after)]
        processes.append(subprocess.Popen(line, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    run_command(command(folder, "whole"))
    for process in processes:
        _, messages = process.communicate(timeout=900)
        assert process.returncode == -signal.SIGKILL, messages
    return folder


def trace(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.trace").read_text().splitlines()


def checkpoint(folder: Path, name: str) -> dict:
    return torch.load(folder / name / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_kill_and_resume(name, folder):
    die_after, extra = KILLED[name]
    whole = trace(folder, "whole")
    assert len(whole) == len({line.split()[2] for line in whole}) == STEPS
    assert trace(folder, name) == whole[:die_after]

    run_command(command(folder, name, *extra, "--ckpt_path=last"))
    assert trace(folder, name) == whole[:die_after] + whole[RESUMES_AFTER[name] :]
    for part in ("fit", "fit-2"):  # the metrics of before are kept
        assert (folder / name / "metrics" / part / "metrics.csv").is_file()

    final, resumed = checkpoint(folder, "whole"), checkpoint(folder, name)
    if final["global_step"] == resumed["global_step"]:
        for part in ("state_dict", "current_model_state"):  # averaged and last weights
            assert all(torch.equal(value, final[part][key]) for key, value in resumed[part].items())
        assert resumed["lr_schedulers"] == final["lr_schedulers"]
