from __future__ import annotations

import math
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from tests.training.tiny import TinyData, make_batch, make_task, make_trainer
from tw_seg.errors import NotFiniteError
from tw_seg.training.finite import check_finite

pytestmark = pytest.mark.usefixtures("stub")


class Grow(pl.Callback):
    """Makes the scale of the second step too large for a float."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 1:
            pl_module.get_parameter("model.log_scale").data.fill_(200.0)


class Spoil(pl.Callback):
    """Makes a gradient of the first step NaN."""

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.get_parameter("model.offset").grad.fill_(math.nan)


def test_a_loss_that_is_no_number_ends_the_run_with_its_images(tmp_path):
    """A finite weight whose exponential is not; the checkpoint of the step before stays."""
    trainer = make_trainer(
        tmp_path,
        enable_checkpointing=True,
        callbacks=[Grow(), ModelCheckpoint(dirpath=tmp_path, filename="last", every_n_train_steps=1)],
    )
    with pytest.raises(NotFiniteError, match=r"step 1 is (nan|inf), of the images (image-1-\d(, )?){4}: look at"):
        trainer.fit(make_task(), datamodule=TinyData())
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 1
    assert all(bool(value.isfinite().all()) for value in checkpoint["state_dict"].values())


def test_weights_that_are_spoiled_are_the_step_befores(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[Spoil()])
    with pytest.raises(
        NotFiniteError,
        match=r"images image-1-0.*; the weight offset was not finite any more, since the step before, of the images "
        "image-0-0, image-0-1, image-0-2, image-0-3: look",
    ):
        trainer.fit(make_task(), datamodule=TinyData([make_batch(2, seed=seed) for seed in range(2)]))


def test_many_images_are_counted():
    model, names = nn.Linear(1, 1), [f"a{i}" for i in range(10)]
    check_finite(torch.tensor(1.0), model, names, [], step=0)
    with pytest.raises(NotFiniteError, match=r"is -inf, of the images a0, a1, .*, a7 and 2 more: look"):
        check_finite(torch.tensor(-math.inf), model, names, [], step=0)
    model.weight.data.fill_(math.inf)
    with pytest.raises(NotFiniteError, match="weight weight was not finite any more, since what training began with"):
        check_finite(torch.tensor(math.nan), model, names, [], step=0)
