from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from tests.training.tiny import TinyData, make_batch, make_task, make_trainer
from tw_seg.errors import InputError
from tw_seg.hyper_parameters import make_plain
from tw_seg.lrp import Schedule
from tw_seg.training.callbacks import ExportClassifier
from tw_seg.training.task import SegmentationTask


def test_names_and_numbers_stay_and_others_become_such() -> None:
    plain = {"a": [1, 2.5, "x", None, True], "b": {"c": (1, 2)}, 3: {}}
    assert make_plain(plain, "model_kwargs") == plain
    found = make_plain(OrderedDict(a=Path("x/y"), b=[np.float32(0.5), np.int64(3)]), "model_kwargs")
    assert found == {"a": "x/y", "b": [0.5, 3]}
    assert [type(value) for value in (found, *found["b"])] == [dict, float, int]
    assert Schedule(**make_plain(Schedule(chunk_size=2), "schedule")) == Schedule(chunk_size=2)


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        ({nn.Softsign: len}, r"the key <class '.*Softsign'> in model_kwargs.decoder_kwargs.custom_rules: give"),
        ({"sort": len}, r"<built-in function len> in model_kwargs.decoder_kwargs.custom_rules.sort: give"),
    ],
)
def test_objects_are_refused_with_their_place(rules: dict[Any, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"names and numbers.*{named} 'package.module:NAME'"):
        make_task("heatmap", model_kwargs={"decoder_kwargs": {"custom_rules": rules}})
    with pytest.raises(InputError, match=r"<function relu .* in encoder_kwargs.layers\[0\]"):
        make_task(encoder_kwargs={"layers": [nn.functional.relu]})


def test_a_schedule_goes_through_a_checkpoint(tmp_path: Path) -> None:
    schedule = Schedule(recompute=True, gradient_threshold=None)
    task = make_task("heatmap", model_kwargs={"decoder_kwargs": {"schedule": schedule}})
    trainer = make_trainer(
        tmp_path, callbacks=[ExportClassifier()], enable_checkpointing=True, limit_train_batches=1, limit_val_batches=1
    )
    trainer.fit(task, TinyData([make_batch(2, size=32)], [make_batch(4, size=32)]))
    path = tmp_path / "task.ckpt"
    trainer.save_checkpoint(path)
    loaded = SegmentationTask.load_from_checkpoint(path, weights_only=True)
    assert loaded.model.decoder.schedule == task.model.decoder.schedule == schedule
    assert loaded.hparams == task.hparams
