"""What the processes of test_several_devices.py run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.training.tiny import ENCODER, NAMES, make_batch
from tw_seg.losses import SegmentationLoss
from tw_seg.models.factory import create_model
from tw_seg.processes import add_over_processes
from tw_seg.types import Batch

TOTAL = 5
LABELLED = (3, 1, 0)
"""Labelled rows of a batch of that many: in both of two processes, in one, in none."""


def make_model() -> nn.Module:
    torch.manual_seed(0)
    kwargs = {"decoder_kwargs": {"tie_weights": False, "read_out": ["layer1", "layer3"]}, "compress": 2.0}
    return create_model("heatmap", classes=len(NAMES), in_channels=3, **ENCODER, **kwargs).eval().double()


def take_rows(batch: Batch, process: int, processes: int) -> Batch:
    """The rows of a batch that one of several processes has."""
    rows = torch.arange(len(batch.images))[process::processes]
    own = [row for row in range(len(batch.labelled)) if int(batch.labelled[row]) in rows]
    return batch._replace(
        images=batch.images[rows],
        labels=batch.labels[rows],
        labelled=torch.arange(len(own)),
        masks=batch.masks[own],
        names=tuple(batch.names[row] for row in rows),
    )


class Step(nn.Module):
    """A model and its loss as one module, as Lightning wraps a training step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = SegmentationLoss(aux=0.5, guidance={"energy": 0.3, "rrr": 0.2})

    def forward(self, batch: Batch) -> Tensor:
        output = self.model(batch.images, samples=batch.labelled)
        loss: Tensor = self.loss(output, batch, add_up=add_over_processes)[0]
        return loss


def make_double_batch(labelled: int) -> Batch:
    batch = make_batch(labelled, TOTAL)
    return batch._replace(images=batch.images.double(), labels=batch.labels.double())


def compute_gradients(step: Any, batch: Batch) -> dict[str, Any]:
    """Loss and gradients of a step, by name."""
    step.zero_grad(set_to_none=True)
    loss = step(batch)
    loss.backward()
    grads = {name.removeprefix("module."): p.grad for name, p in step.named_parameters()}
    return {"loss": loss.detach(), **{name: grad.clone() for name, grad in grads.items() if grad is not None}}


def write_gradients(process: int, processes: int, folder: str) -> None:
    """Train steps as one of several processes, and write their losses and gradients."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=process, world_size=processes)
    step: Any = DistributedDataParallel(Step(make_model()), find_unused_parameters=True)
    parts = (take_rows(make_double_batch(labelled), process, processes) for labelled in LABELLED)
    torch.save([compute_gradients(step, part) for part in parts], Path(folder) / f"{process}.pt")
    dist.destroy_process_group()
