from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tw_seg.data.layouts.folder import FolderDataset
from tw_seg.errors import DataError


def ids(index: int) -> np.ndarray:
    mask = np.zeros((8, 10 + index), dtype=np.uint8)
    mask[2:5, 1:6] = 1 + index % 2
    mask[0] = 255
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images, grey and RGB, of different sizes; the last has no mask."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for index, name in enumerate(("a.jpg", "b.png", "c.d.png", "e.bmp")):
        image = np.full((8, 10 + index, 3), 40 * index, dtype=np.uint8)
        Image.fromarray(image[..., 0] if index == 1 else image).save(tmp_path / "images" / name)
        if index < 3:
            Image.fromarray(ids(index)).save(tmp_path / "masks" / f"{Path(name).stem}.png")
    (tmp_path / "image_labels.csv").write_text(
        "image,split,cat,dog\na,train,1,0\nb.png,train,0,1\nc.d,val,1,0\ne,train,1,1\n"
    )
    return tmp_path


def edit(root: Path, old: str, new: str) -> None:
    path = root / "image_labels.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_contents(root):
    data = FolderDataset(root)
    assert data.classes == ("background", "cat", "dog")
    assert data.names == ("a", "b", "c.d", "e") and len(data) == 4
    np.testing.assert_array_equal(data.labels, [[1, 1, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]])
    assert data.labels.dtype == np.float32
    assert data.has_mask.tolist() == [True, True, True, False]
    for index in range(4):
        sample = data[index]
        assert sample.image.shape == (8, 10 + index, 3) and sample.image.dtype == np.uint8
        assert abs(sample.image.astype(int) - 40 * index).max() <= 1
        assert sample.name == data.names[index]
        np.testing.assert_array_equal(sample.labels, data.labels[index])
        if index < 3:
            np.testing.assert_array_equal(sample.mask, ids(index))
        else:
            assert sample.mask is None
    with pytest.raises(IndexError):
        data[4]


def test_splits(root):
    assert FolderDataset(root, "train").names == ("a", "b", "e")
    assert FolderDataset(root, split="val").names == ("c.d",)
    np.testing.assert_array_equal(FolderDataset(root, "val").labels, [[1, 1, 0]])
    with pytest.raises(DataError, match=r"image_labels.csv: the split 'test' is empty; the file has: train, val"):
        FolderDataset(root, "test")
    (root / "image_labels.csv").write_text("image,cat,dog\na,1,0\n")
    assert FolderDataset(root).names == ("a",)
    with pytest.raises(DataError, match="no column 'split'"):
        FolderDataset(root, "train")


def test_classes_from_a_file_or_an_argument(root):
    edit(root, "image,split,cat,dog", "image,split,cat,shots")
    (root / "classes.txt").write_text("background\ncat\n")
    assert FolderDataset(root).classes == ("background", "cat")
    assert FolderDataset(root, classes=["background", "shots", "cat"]).classes == (
        "background",
        "shots",
        "cat",
    )
    with pytest.raises(DataError, match="classes: the first class must be 'background'"):
        FolderDataset(root, classes=["cat"])
    with pytest.raises(DataError, match=r"image_labels.csv: no column for the classes dog"):
        FolderDataset(root, classes=["background", "cat", "dog"])


def test_masks_are_opened_on_demand_only(root):
    (root / "masks" / "a.png").write_bytes(b"no image")
    data = FolderDataset(root)
    assert data.load(0, mask=False).mask is None
    with pytest.raises(DataError, match=rf"{root / 'masks' / 'a.png'}: cannot read the mask"):
        data.load(0, mask=True)


def test_without_any_mask(root):
    shutil.rmtree(root / "masks")
    data = FolderDataset(root)
    assert not data.has_mask.any() and data[0].mask is None


def test_mask_of_another_size(root):
    shutil.copy(root / "masks" / "b.png", root / "masks" / "a.png")
    with pytest.raises(DataError, match=r"a.png: the mask has 8x11 pixels .* its image 8x10"):
        FolderDataset(root)[0]


def test_class_ids_beyond_the_class_list(root):
    data = FolderDataset(root, classes=["background", "cat"])
    with pytest.raises(DataError, match=r"b.png: the mask must hold class ids 0\.\.1 or 255 \(ignored\), found 2"):
        data[1]


def test_missing_image(root):
    (root / "images" / "c.d.png").unlink()
    with pytest.raises(DataError, match=rf"{root / 'images' / 'c.d'}: .*image_labels.csv lists this image"):
        FolderDataset(root)
    assert FolderDataset(root, "train").names == ("a", "b", "e")  # it belongs to val


def test_truncated_image(root):
    path = root / "images" / "e.bmp"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=rf"{path}: cannot read the image"):
        FolderDataset(root)[3]


def test_image_listed_twice(root):
    edit(root, "e,train", "a.jpg,train")
    with pytest.raises(DataError, match=r"image_labels.csv: the image 'a' is listed twice"):
        FolderDataset(root)


def test_ambiguous_name(root):
    shutil.copy(root / "images" / "a.jpg", root / "images" / "a.png")
    with pytest.raises(DataError, match=r"the image 'a' may be a.jpg, a.png.*with its suffix"):
        FolderDataset(root)
    edit(root, "\na,", "\na.jpg,")
    assert FolderDataset(root).names[0] == "a"


def test_masks_that_are_not_png(root):
    (root / "masks" / "a.png").rename(root / "masks" / "a.jpg")
    with pytest.raises(DataError, match=r"a.jpg: masks must be PNG files"):
        FolderDataset(root)


def test_missing_table_or_folder(root):
    shutil.rmtree(root / "images")
    with pytest.raises(DataError, match=rf"{root / 'images'}: cannot list the folder"):
        FolderDataset(root)
    with pytest.raises(DataError, match="nowhere/image_labels.csv: cannot read"):
        FolderDataset(root / "nowhere")


def test_magnetic_tile(shared_data):
    train, val = (FolderDataset(shared_data / "magnetic_tile", split) for split in ("train", "val"))
    assert train.classes == ("background", "defect")
    assert (len(train), len(val)) == (667, 129) and not set(train.names) & set(val.names)
    assert train.has_mask.all()
    for index in range(0, 129, 16):
        sample = val[index]
        assert sample.mask.shape == sample.image.shape[:2]
        assert (sample.mask == 1).any() == bool(sample.labels[1])
