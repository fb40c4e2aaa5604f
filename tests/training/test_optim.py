"""Parameter groups and schedules, of the functions and of a run."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from tests.training.tiny import ENCODER, TinyData, make_batch, make_task, make_trainer
from tw_seg.errors import InputError
from tw_seg.models.factory import create_model
from tw_seg.training.optim import group_parameters

pytestmark = pytest.mark.usefixtures("stub")


def test_parameter_groups():
    model = create_model("heatmap", classes=3, **ENCODER)
    numbers = {"lr": 0.5, "weight_decay": 0.1, "decoder_lr_factor": 2.0, "scale_lr_factor": 10.0}
    groups = {group["name"]: group for group in group_parameters(model, **numbers)}
    assert [id(p) for p in groups["scales"]["params"]] == [id(model.log_scale), id(model.offset)]
    assert groups["scales"]["lr"] == 5.0
    assert groups["weights"]["weight_decay"] == 0.1
    assert groups["biases"]["weight_decay"] == groups["scales"]["weight_decay"] == 0
    assert all(p.ndim > 1 for p in groups["weights"]["params"])
    assert all(p.ndim <= 1 for p in groups["biases"]["params"])
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))


def test_a_u_nets_decoder_has_groups_of_its_own():
    model = create_model("unet", classes=3, **ENCODER)
    next(model.net.encoder.parameters()).requires_grad_(False)
    groups = group_parameters(model, lr=0.5, weight_decay=0.1, decoder_lr_factor=2.0, scale_lr_factor=1.0)
    assert [group["name"] for group in groups] == ["weights", "biases", "decoder weights", "decoder biases"]
    assert [group["lr"] for group in groups] == [0.5, 0.5, 1.0, 1.0]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.1, 0.0]
    decoder = {id(p) for part in (model.net.decoder, model.net.segmentation_head) for p in part.parameters()}
    assert {id(p) for group in groups[2:] for p in group["params"]} == decoder
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters())) - 1


class Rates(TinyData):
    """Ten steps."""

    def __init__(self) -> None:
        super().__init__([make_batch(1)] * 10)


def rates(folder, **kwargs) -> list[float]:
    task, found = make_task(lr=1.0, **kwargs), []
    task.on_train_batch_start = lambda batch, batch_idx: found.append(task.optimizers().param_groups[0]["lr"])
    make_trainer(folder, limit_val_batches=0).fit(task, datamodule=Rates())
    return found


def test_schedules(tmp_path):
    cosine = rates(tmp_path, scheduler="cosine", warmup_steps=2)
    expected = [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8))]
    assert cosine == pytest.approx(expected)
    assert rates(tmp_path, scheduler="none", warmup_steps=1) == pytest.approx([0.5] + [1.0] * 9)


@pytest.mark.parametrize("warmup", [0, 4])
def test_onecycle_is_that_of_torch(warmup, tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = OneCycleLR(optimizer, 1.0, total_steps=10, pct_start=warmup / 10 or 0.3, cycle_momentum=False)
    expected = []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 10:
            theirs.step()
    assert rates(tmp_path, scheduler="onecycle", warmup_steps=warmup) == pytest.approx(expected)


def test_a_schedule_needs_an_end(tmp_path):
    with pytest.raises(InputError, match="where training ends"):
        make_trainer(tmp_path, max_epochs=-1).fit(make_task(), datamodule=TinyData())
    with pytest.raises(InputError, match="warmup_steps=3 does not fit into a run of 3 steps"):
        make_trainer(tmp_path).fit(make_task(warmup_steps=3), datamodule=TinyData())
