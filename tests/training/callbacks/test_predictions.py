from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.tiny import NAMES, TinyData, make_batch, make_task, make_trainer
from tw_seg.training.callbacks import PredictionWriter

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
    with open(folder / "probabilities.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", *NAMES]
    assert [row[0] for row in rows[1:]] == [name for batch in batches for name in batch.names]
    written = np.array([row[1:] for row in rows[1:]], dtype=float)
    assert np.allclose(written, torch.cat([p.probabilities for p in predictions]).numpy(), atol=1e-6)


def test_predictions_of_a_classifier_are_probabilities_only(tmp_path):
    task = make_task(model_kwargs={"masks": False})
    make_trainer(tmp_path, callbacks=[PredictionWriter()]).predict(task, datamodule=TinyData())
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["probabilities.csv"]
