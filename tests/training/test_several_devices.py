"""Several processes take the step of one: the same loss and gradients, and each image is scored once."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.processes import (
    LABELLED,
    Step,
    compute_gradients,
    make_double_batch,
    make_model,
    write_gradients,
)
from tests.training.tiny import make_trainer
from tw_seg.data.loading.sampler import SemiSupervisedBatchSampler
from tw_seg.errors import InputError
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.several_devices import STRATEGY


def test_gradients_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    """With parts of different sizes, and labelled rows in both, in one, in none of them."""
    torch.multiprocessing.spawn(write_gradients, (2, str(tmp_path)), nprocs=2)

    step = Step(make_model())
    wanted = [compute_gradients(step, make_double_batch(labelled)) for labelled in LABELLED]
    assert any(grad.abs().max() > 0 for name, grad in wanted[0].items() if "decoder_weights" in name)
    assert not any("decoder_weights" in name for name in wanted[-1])
    for process in range(2):
        found = torch.load(tmp_path / f"{process}.pt", weights_only=True)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_rows_of_one_batch(processes: int) -> None:
    def sampler(process: tuple[int, int]) -> SemiSupervisedBatchSampler:
        return SemiSupervisedBatchSampler(range(4), range(4, 20), batch_size=7, labelled_per_batch=2, process=process)

    for epoch, step in ((0, 0), (1, 2)):
        whole = sampler((0, 1)).batch(epoch, step)
        parts = [sampler((process, processes)).batch(epoch, step) for process in range(processes)]
        assert sorted(row for part in parts for row in part) == sorted(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert all(part[:1] == whole[process : process + 1] for process, part in enumerate(parts))


def test_a_batch_has_a_row_for_each_process() -> None:
    with pytest.raises(InputError, match="batch_size: 2 images are too few for 3 processes"):
        SemiSupervisedBatchSampler([0], [1], batch_size=2, labelled_per_batch=1, process=(0, 3))


@pytest.mark.slow
def test_a_run_of_two_processes_repeats_that_of_one(tmp_path: Path) -> None:
    """Losses of every step with labelled rows in one part only, scores, and masks; then one process goes on."""
    one, two = tmp_path / "one", tmp_path / "two"
    _run("fit", one)
    _run("fit", two, *_TWO)
    losses = _read(one, "fit", "train/loss")
    assert len(losses) == 4
    assert _read(two, "fit", "train/loss") == pytest.approx(losses, rel=1e-4)
    for name in ("val/cls/map", "val/miou", "val/loss"):
        assert _read(two, "fit", name) == pytest.approx(_read(one, "fit", name), abs=2e-3), name
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())

    # The same weights, scored by both: every image once, though 5 are not divisible by 2.
    best = f"--ckpt_path={one / 'checkpoints' / 'best.ckpt'}"
    for run_dir, extra in ((tmp_path / "scored-one", ()), (tmp_path / "scored-two", _TWO)):
        _run("test", run_dir, best, *extra)
    for name in ("test/miou", "test/cls/map", "test/iou/background"):
        assert _read(tmp_path / "scored-two", "test", name) == _read(tmp_path / "scored-one", "test", name), name

    # One process goes on where two stopped, as one does where one stopped.
    for run_dir in (one, two):
        _run("fit", run_dir, "--trainer.max_epochs=3", "--ckpt_path=last")
    again = _read(one, "fit-2", "train/loss")
    assert len(again) == 2
    assert _read(two, "fit-2", "train/loss") == pytest.approx(again, rel=1e-4)


_CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
_TWO = ("--trainer.devices=2", f"--trainer.strategy={STRATEGY}")
_ARGS = (
    f"--config={_CONFIGS / 'data' / 'digits.yaml'}",
    "--data.dataset_kwargs={size: 32}",
    "--data.split_kwargs={train: {length: 12}, val: {length: 5}, test: {length: 5}}",
    "--data.size=32",
    "--data.budget=3",
    "--data.batch_size=5",
    "--data.labelled_per_batch=1",
    "--data.steps_per_epoch=2",
    "--data.eval_batch_size=2",
    "--model.model=heatmap",
    "--model.encoder_name=timm/resnet10t",
    "--model.encoder_kwargs={channels: [4, 4, 8, 8], stem_width: 4}",
    "--model.model_kwargs={decoder_kwargs: {read_out: layer3, tie_weights: false}}",
    "--model.freeze_batchnorm=true",
    "--model.scheduler=none",
    "--model.pseudo_masks={images: 2, start: 1, confidence: 0.0}",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--examples.every_n_epochs=0",
)


def _run(command: str, run_dir: Path, *extra: str) -> None:
    epochs = [] if command == "test" or any("max_epochs" in word for word in extra) else ["--trainer.max_epochs=2"]
    words = [sys.executable, "-m", "tw_seg", command, *_ARGS, *epochs, f"--run_dir={run_dir}", *extra]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


def _read(run_dir: Path, command: str, name: str) -> list[float]:
    with open(run_dir / "metrics" / command / "metrics.csv", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_processes_that_would_train_otherwise_are_refused(tmp_path: Path) -> None:
    data = SegmentationDataModule(dataset_kwargs={"size": 32, "length": 4}, size=32, budget=2)
    trainer = make_trainer(tmp_path, devices=2, strategy="ddp", use_distributed_sampler=False)
    data.trainer = trainer
    with pytest.raises(InputError, match="ddp_find_unused_parameters_true"):
        data.train_dataloader()
    data.trainer = make_trainer(tmp_path, devices=2, strategy=STRATEGY)
    with pytest.raises(InputError, match="use_distributed_sampler"):
        data.train_dataloader()
