from __future__ import annotations

import csv
from pathlib import Path
from typing import IO

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from tests.training.tiny import TinyData, make_task, make_trainer
from tw_seg.training.run_directory import RunLogger, WholeCheckpointIO, find_run_directory

pytestmark = pytest.mark.usefixtures("stub")


def test_the_run_directory_belongs_to_one_run(tmp_path):
    def found(*loggers) -> Path:
        trainer = pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=list(loggers) or False)
        return find_run_directory(trainer)

    assert found() == tmp_path
    assert found(RunLogger(tmp_path / "run", "fit")) == tmp_path / "run"
    assert found(CSVLogger(tmp_path, name="a", version=3)) == tmp_path / "a" / "version_3"
    one, other = (found(WandbLogger(save_dir=tmp_path, project="p", id=name)) for name in ("one", "other"))
    assert one == tmp_path / "p" / "one"
    assert other == tmp_path / "p" / "other"


def test_a_second_fit_keeps_the_metrics_of_the_first(tmp_path):
    task = make_task()
    for _ in range(2):
        trainer = make_trainer(tmp_path, logger=RunLogger(tmp_path, "fit"))
        assert trainer.log_dir == str(tmp_path)
        trainer.fit(task, datamodule=TinyData())
    losses = []
    for folder in ("fit", "fit-2"):
        with open(tmp_path / "metrics" / folder / "metrics.csv") as file:
            losses.append([row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]])
    assert [len(found) for found in losses] == [3, 3]
    assert losses[0] != losses[1]


def test_metrics_are_on_disk_after_every_logged_step(tmp_path):
    lines = []

    class Look(pl.Callback):
        def on_train_batch_start(self, *_) -> None:
            path = tmp_path / "metrics" / "fit" / "metrics.csv"
            lines.append(len(path.read_text().splitlines()) if path.exists() else 0)

    trainer = make_trainer(tmp_path, logger=RunLogger(tmp_path, "fit"), callbacks=[Look()])
    trainer.fit(make_task(), datamodule=TinyData())
    assert lines == [0, 2, 3]  # with the header


def test_checkpoints_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    storage = WholeCheckpointIO()
    storage.save_checkpoint({"step": 1}, path)

    def fail(checkpoint: object, draft: IO[bytes]) -> None:
        draft.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        storage.save_checkpoint({"step": 2}, path)
    assert storage.load_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
