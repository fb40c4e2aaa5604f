from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from tests.training.tiny import TinyData, make_task, make_trainer
from tw_seg.training.callbacks import StepSeed

pytestmark = pytest.mark.usefixtures("stub")


class Draws(pl.Callback):
    """Draws a number from every generator in every step."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float, float]] = []

    def on_train_batch_start(self, *_) -> None:
        self.found.append((torch.rand(1).item(), np.random.rand(), random.random()))


def draws(folder, seed: int, *, before: int) -> list[tuple[float, float, float]]:
    pl.seed_everything(before)
    callback = Draws()
    trainer = make_trainer(folder, max_epochs=2, callbacks=[StepSeed(seed), callback])
    trainer.fit(make_task(), datamodule=TinyData())
    return callback.found


def test_every_step_has_its_own_numbers_whatever_was_drawn_before(tmp_path):
    found = draws(tmp_path, 0, before=1)
    assert found == draws(tmp_path, 0, before=2)
    assert len(set(found)) == len(found) == 6
    assert not set(found) & set(draws(tmp_path, 1, before=1))


def test_with_accumulated_gradients_the_parts_of_a_step_differ(tmp_path):
    callback = Draws()
    trainer = make_trainer(tmp_path, accumulate_grad_batches=3, callbacks=[StepSeed(), callback])
    trainer.fit(make_task(), datamodule=TinyData())
    assert trainer.global_step == 1
    assert len(set(callback.found)) == 3


def test_dropout_repeats(tmp_path):
    task = make_task(model_kwargs={"dropout": 0.5})
    twin = copy.deepcopy(task)
    for one, seed in ((task, 1), (twin, 2)):
        torch.manual_seed(seed)
        make_trainer(tmp_path, callbacks=[StepSeed()]).fit(one, datamodule=TinyData())
    assert all(torch.equal(a, b) for a, b in zip(task.parameters(), twin.parameters(), strict=True))
