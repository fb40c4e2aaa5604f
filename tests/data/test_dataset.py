"""Every data set offers what loading relies on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.layouts.small import WRITERS
from tw_seg.data import DATASETS
from tw_seg.data.dataset import SegmentationData


@pytest.fixture(params=sorted(DATASETS))
def data(request, tmp_path: Path) -> SegmentationData:
    """A small one of each layout: an image with a cat."""
    if request.param in ("digits", "triangles"):
        return DATASETS[request.param]("train", length=3, size=32)
    if request.param in WRITERS:
        WRITERS[request.param](tmp_path)
        return DATASETS[request.param](tmp_path, "train" if request.param == "coco" else None)
    images, masks = {"folder": ("images", "masks"), "voc": ("JPEGImages", "SegmentationClass")}[request.param]
    for folder, picture in ((images, np.zeros((6, 9, 3), np.uint8)), (masks, np.eye(6, 9, dtype=np.uint8))):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture).save(tmp_path / folder / ("a.jpg" if folder == images else "a.png"))
    if request.param == "folder":
        (tmp_path / "image_labels.csv").write_text("image,split,cat\na,train,1\n")
        return DATASETS["folder"](tmp_path, "train")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("a\n")
    return DATASETS["voc"](tmp_path, "train", classes=["background", "cat"])


def test_a_data_set_agrees_with_its_items(data: SegmentationData) -> None:
    classes = len(data.classes)
    assert len(data) == len(data.names) == len(set(data.names)) > 0
    assert data.labels.shape == (len(data), classes) and data.labels.dtype == np.float32
    for index, name in enumerate(data.names):
        sample = data[index]
        assert sample.name == name and np.array_equal(sample.labels, data.labels[index])
        assert sample.image.dtype == np.uint8 and sample.image.shape == (*sample.mask.shape, 3)
        values = set(np.unique(sample.mask)) - {255}
        sets = 0 if sample.regions is None else len(sample.regions)
        assert values <= set(range(classes + sets))
        present = {value for value in values if value < classes}
        assert present <= set(np.flatnonzero(sample.labels)) <= set(range(classes))
