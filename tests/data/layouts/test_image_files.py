"""Images and masks in files, opened when they are asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tw_seg.data.layouts.image_files import ImageFiles
from tw_seg.errors import DataError


class Pairs(ImageFiles):
    """Two images of different sizes with their masks, and one without."""

    classes = ("background", "cat", "dog")
    names = ("a", "b", "c")
    labels = np.eye(3, dtype=np.float32)
    has_mask = np.array([True, True, False])

    def __init__(self, folder: Path) -> None:
        self._images = [folder / f"{name}.png" for name in self.names]
        self._masks = [folder / "a_mask.png", folder / "b_mask.png", None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, name in enumerate(Pairs.names):
        Image.fromarray(np.full((8, 10 + index, 3), 40 * index, np.uint8)).save(tmp_path / f"{name}.png")
        mask = np.zeros((8, 10 + index), np.uint8)
        mask[2:5, 1:6], mask[0] = 1 + index, 255
        if index < 2:
            Image.fromarray(mask).save(tmp_path / f"{name}_mask.png")
    return tmp_path


def test_an_item_is_an_image_with_its_mask_labels_and_name(root):
    data = Pairs(root)
    assert len(data) == 3
    for index, sample in enumerate(data[i] for i in range(3)):
        assert sample.image.shape == (8, 10 + index, 3) and (sample.image == 40 * index).all()
        assert sample.name == data.names[index] and sample.labels[index] == 1 == sample.labels.sum()
        assert (sample.mask is not None) == data.has_mask[index]
    assert set(np.unique(data[1].mask)) == {0, 2, 255}


def test_masks_are_opened_on_demand_only(root):
    (root / "a_mask.png").write_bytes(b"no image")
    assert Pairs(root).load(0, mask=False).mask is None
    with pytest.raises(DataError, match=rf"{root / 'a_mask.png'}: cannot read the mask"):
        Pairs(root).load(0, mask=True)


def test_mask_of_another_size(root):
    shutil.copy(root / "b_mask.png", root / "a_mask.png")
    for read in (Pairs(root).__getitem__, Pairs(root).read_mask_ids):
        with pytest.raises(DataError, match=r"a_mask.png: the mask has 8x11 pixels .* its image 8x10"):
            read(0)


def test_class_ids_beyond_the_class_list(root):
    data = Pairs(root)
    data.classes = ("background", "cat")
    with pytest.raises(DataError, match=r"b_mask.png: the mask must hold class ids 0\.\.1 or 255 \(ignored\), found 2"):
        data[1]


def test_truncated_image(root):
    path = root / "c.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=rf"{path}: cannot read the image"):
        Pairs(root)[2]


def test_what_a_mask_holds(root):
    found, turned = Pairs(root).read_mask_ids(1)
    assert np.flatnonzero(found).tolist() == [0, 2, 255] and not turned
    assert Pairs(root).mask_file(1) == root / "b_mask.png"


def test_transparency_is_warned_of_once(root):
    for name in "ab":
        with Image.open(root / f"{name}.png") as picture:
            picture.putalpha(7)
            picture.save(root / f"{name}.png")
    data = Pairs(root)
    with pytest.warns(UserWarning, match=rf"{root / 'a.png'}: the image has transparent pixels.*not named") as caught:
        assert (data[0].image == 0).all() and (data[1].image == 40).all()
    assert len(caught) == 1
