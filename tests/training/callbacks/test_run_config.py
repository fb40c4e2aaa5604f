from __future__ import annotations

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from tw_seg.training.callbacks import RunConfig


@pytest.mark.parametrize(("command", "stem"), [(TrainerFn.FITTING, "config"), (TrainerFn.TESTING, "test_config")])
def test_every_run_writes_a_file_of_its_own(tmp_path, command, stem):
    parser = SimpleNamespace(dump=lambda config, skip_none: f"lr: {config}\n")
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=False)
    trainer.state.fn = command
    for lr in ("0.1", "0.2"):
        callback = RunConfig(parser, lr)
        for _ in range(2):  # Lightning may set up a run more than once
            callback.setup(trainer, pl.LightningModule(), command.value)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {f"{stem}.yaml": "lr: 0.1\n", f"{stem}-2.yaml": "lr: 0.2\n"}


def test_only_the_first_process_writes(tmp_path):
    RunConfig(None, None).setup(SimpleNamespace(is_global_zero=False), None, "fit")
    assert not list(tmp_path.iterdir())
