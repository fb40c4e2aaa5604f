from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.tiny import NAMES, TinyData, make_batch, make_task, make_trainer
from tw_seg.training.callbacks import AveragedViews, GatedInference, PredictionWriter
from tw_seg.types import Window

pytestmark = pytest.mark.usefixtures("stub")


def test_predictions_are_written_at_native_size(tmp_path):
    batches = [make_batch(2, total=2, seed=0, native=24), make_batch(2, total=2, seed=1, native=20)]
    batches[1] = batches[1]._replace(names=("sub/x", "y"))
    trainer = make_trainer(tmp_path, callbacks=[PredictionWriter()])
    predictions = trainer.predict(make_task(), datamodule=TinyData([], batches))
    folder = tmp_path / "predictions"
    names = ["image-0-0.png", "image-0-1.png", "sub__x.png", "y.png"]
    assert sorted(path.name for path in (folder / "masks").iterdir()) == names
    with Image.open(folder / "masks" / "sub__x.png") as picture:
        assert np.array_equal(np.array(picture), predictions[1].masks[0].numpy())
        assert picture.size == (20, 20)
    with open(folder / "images.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [name for batch in batches for name in batch.names]
    written = np.array([[row[f"probability/{name}"] for name in NAMES] for row in rows], dtype=float)
    assert np.allclose(written, torch.cat([p.probabilities for p in predictions]).numpy(), atol=1e-6)
    counts = [[int((mask == k).sum()) for k in range(3)] for p in predictions for mask in p.masks]
    assert [[int(row[f"pixels/{name}"]) for name in NAMES] for row in rows] == counts


def test_predictions_of_a_classifier_are_probabilities_only(tmp_path):
    task = make_task(model_kwargs={"masks": False})
    make_trainer(tmp_path, callbacks=[PredictionWriter()]).predict(task, datamodule=TinyData())
    files = ["images.csv", "images.jsonl", "prediction.json"]
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == files


def test_a_picture_in_windows_is_one_mask_and_is_as_probable_as_its_clearest_window(tmp_path):
    batch = make_batch(0, total=2, size=16)
    windows = (Window(0, 0, 16, 16, (16, 16), False), Window(0, 16, 16, 16, (16, 16), True))
    batch = batch._replace(names=("a", "a"), sizes=((16, 32),) * 2, windows=windows)
    task = make_task().eval()
    # The first window in one batch, the last in the next.
    parts = [
        batch._replace(images=batch.images[i : i + 1], labels=batch.labels[i : i + 1], names=("a",))._replace(
            sizes=((16, 32),), windows=(windows[i],)
        )
        for i in range(2)
    ]
    (tmp_path / "one").mkdir()
    for folder, batches in (("one", [batch]), ("two", parts)):
        make_trainer(tmp_path / folder, callbacks=[PredictionWriter()]).predict(
            task, datamodule=TinyData([], batches), return_predictions=False
        )
        with torch.no_grad():
            output = task(batch.images)
        expected = torch.cat(tuple(output.mask_logits.argmax(1)), dim=1).numpy()
        with Image.open(tmp_path / folder / "predictions" / "masks" / "a.png") as picture:
            assert np.array_equal(np.array(picture), expected)
        with open(tmp_path / folder / "predictions" / "images.csv") as file:
            (row,) = csv.DictReader(file)
        clearest = output.logits.sigmoid().amax(0)
        assert [float(row[f"probability/{name}"]) for name in NAMES] == pytest.approx(clearest.tolist(), abs=1e-6)


def test_averaging_comes_after_the_gate_and_goes_with_the_run(tmp_path):
    batch = make_batch(4, size=32, native=24)
    task = make_task("heatmap", model_kwargs={"decoder_kwargs": {"read_out": "layer3"}}).eval()
    with torch.no_grad():
        task.model.offset.copy_(torch.tensor([-1.0, 0.0, 1.0]))
        whole = task(batch.images), task(batch.images.flip(-1))
    expected = torch.stack([whole[0].mask_logits, whole[1].mask_logits.flip(-1)]).mean(0)
    (found,) = make_trainer(tmp_path, callbacks=[GatedInference(None), AveragedViews(flip=True)]).predict(
        task, datamodule=TinyData([], [batch])
    )
    torch.testing.assert_close(found.mask_logits, expected)
    assert task.segment is None
    gated = make_trainer(tmp_path, callbacks=[GatedInference(1.0), AveragedViews(flip=True)]).predict(
        task, datamodule=TinyData([], [batch])
    )[0]
    assert gated.mask_logits.isfinite().all() and not torch.allclose(gated.mask_logits, expected)
