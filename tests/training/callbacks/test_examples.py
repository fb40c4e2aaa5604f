from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import WandbLogger

from tests.training.tiny import TinyData, make_batch, make_task, make_trainer
from tw_seg.errors import InputError
from tw_seg.training.callbacks import ExampleImages

pytestmark = pytest.mark.usefixtures("stub")


def test_examples_become_pictures_in_the_run_directory(tmp_path):
    callback = ExampleImages(every_n_epochs=2, count=3, heatmaps=1)
    batches = [make_batch(2, total=2, seed=seed, native=24) for seed in range(3)]
    batches[0] = batches[0]._replace(names=("folder/a", "b"))
    trainer = make_trainer(tmp_path, max_epochs=3, callbacks=[callback], num_sanity_val_steps=1)
    trainer.fit(make_task(), datamodule=TinyData([], batches))
    found = sorted(path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*.*"))
    assert found == ["epoch-0001/b.png", "epoch-0001/folder__a.png", "epoch-0001/image-1-0.png"]
    objects = int(batches[0].labels[0, 1:].any())
    with Image.open(tmp_path / "images" / "epoch-0001" / "folder__a.png") as picture:
        assert picture.size == ((3 + objects) * 16 + (2 + objects) * 2, 16)


def test_examples_of_a_model_without_masks_are_none(tmp_path):
    task = make_task(model_kwargs={"masks": False})
    make_trainer(tmp_path, callbacks=[ExampleImages(1)]).fit(task, datamodule=TinyData())
    assert not (tmp_path / "images").exists()


def test_examples_go_to_wandb_as_integer_masks(tmp_path, monkeypatch):
    sent: dict[str, dict] = {}

    def log_image(self, key, images, step=None, **kwargs):
        sent[key] = {"images": images, "step": step, **kwargs}

    monkeypatch.setattr(WandbLogger, "log_image", log_image)
    monkeypatch.setattr(WandbLogger, "experiment", property(lambda self: _Silent()))
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    callback = ExampleImages(1, count=1)
    batch = make_batch(1, total=1)
    batch.labels[:] = torch.tensor([1.0, 0.0, 1.0])
    make_trainer(tmp_path, callbacks=[callback], logger=logger).fit(make_task(), datamodule=TinyData([], [batch]))
    assert set(sent) == {"val/masks/image-0-0", "val/heatmaps/image-0-0"}
    masks = sent["val/masks/image-0-0"]["masks"][0]
    assert set(masks) == {"mask", "predicted"}
    for layer in masks.values():
        assert layer["mask_data"].dtype == np.uint8
        assert layer["mask_data"].shape == (16, 16)
        assert layer["class_labels"] == {0: "background", 1: "cat", 2: "dog", 255: "ignored"}
    assert np.array_equal(masks["mask"]["mask_data"], batch.masks[0].numpy())
    assert sent["val/heatmaps/image-0-0"]["caption"] == ["image-0-0: dog"]
    assert not (tmp_path / "images").exists()


class _Silent:
    def __getattr__(self, name: str):
        return lambda *args, **kwargs: None

    config = property(lambda self: _Silent())


@pytest.mark.parametrize("name", ["every_n_epochs", "count", "heatmaps"])
def test_examples_refuse_negative_numbers(name):
    with pytest.raises(InputError, match=name):
        ExampleImages(**{name: -1})
