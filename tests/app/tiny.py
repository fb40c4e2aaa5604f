"""A small checkpoint, a picture, and what it takes to serve them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.app.pictures import NAMES
from tests.app.pictures import make_picture as make_picture
from tests.training.tiny import ENCODER
from tw_seg.app.learn import Learning
from tw_seg.app.session import Service
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.task import SegmentationTask

READ_OUTS = {"decoder_kwargs": {"read_out": ["layer1", "layer3"], "tie_weights": False}}


def make_service(
    out: Path, model: str = "heatmap", *, data_kwargs: dict[str, Any] | None = None, **kwargs: Any
) -> Service:
    torch.manual_seed(0)
    model_kwargs = READ_OUTS if model == "heatmap" else None
    task = SegmentationTask(model, model_kwargs, class_names=NAMES, **{**ENCODER, **kwargs}).eval()
    data = SegmentationDataModule(budget=4, size=(24, 32), **(data_kwargs or {}))
    return Service(task, data, out=out, learning=Learning(lr=0.01))


def save_pixels(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def save_checkpoint(path: Path, service: Service) -> Path:
    """What ``tw-seg fit`` keeps of a task and its data, without a fit."""
    content = {
        "state_dict": service.task.state_dict(),
        "hyper_parameters": dict(service.task.hparams),
        "datamodule_hyper_parameters": {**service.data.hparams, "class_path": None},
        "pytorch-lightning_version": "2.6.6",
    }
    content["datamodule_hyper_parameters"].pop("class_path")
    torch.save(content, path)
    return path
