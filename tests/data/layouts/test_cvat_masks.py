from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.layouts.drawn import CLASSES, NAMES, make_masks, save_image
from tw_seg.data.layouts.cvat_masks import CVATMasks
from tw_seg.errors import DataError

COLORS = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)], dtype=np.uint8)


def write(root: Path, masks: list[np.ndarray], *, lists: dict[str, list[str]] | None = None) -> None:
    """As CVAT exports a task, by Pillow; the lines of lists have folders and no suffixes."""
    for name, mask in zip(NAMES, masks, strict=False):
        save_image(root / "JPEGImages" / name, mask.shape)
        path = root / "SegmentationClass" / Path(name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLORS[mask]).save(path)
    stems = [str(Path(name).with_suffix("")) for name in NAMES[: len(masks)]]
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split, names in (lists or {"default": stems}).items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names), encoding="utf-8")
    lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(CLASSES, COLORS, strict=True)]
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]), encoding="utf-8")


def test_masks_come_back_pixel_for_pixel(tmp_path):
    masks = make_masks(3)
    write(tmp_path, masks)
    data = CVATMasks(tmp_path)
    assert data.classes == CLASSES and data.names == ("a b", "sub/caf\u00e9", "c;,|.1")
    for mask, sample in zip(masks, data, strict=True):
        np.testing.assert_array_equal(sample.mask, mask)
        np.testing.assert_array_equal(np.flatnonzero(sample.labels), np.union1d([0], np.unique(mask)))


def test_an_image_without_a_mask_is_unlabelled(tmp_path):
    write(tmp_path, make_masks(3))
    (tmp_path / "SegmentationClass" / "a b.png").unlink()
    data = CVATMasks(tmp_path)
    assert data.has_mask.tolist() == [False, True, True] and data[0].mask is None
    np.testing.assert_array_equal(data.labels[0], [1, np.nan, np.nan])


def test_splits(tmp_path):
    write(tmp_path, make_masks(3), lists={"Train": ["a b"], "Validation": ["sub/caf\u00e9", "c;,|.1"]})
    assert [len(CVATMasks(tmp_path, split)) for split in ("train", "val", None)] == [1, 2, 3]
    shares = {"split_by": {"shares": {"train": 0.5, "val": 0.5}}}
    assert sum(len(CVATMasks(tmp_path, split, **shares)) for split in ("train", "val")) == 3
    with pytest.raises(DataError, match=r"no split 'test'; found: Train, Validation; correct it, or give split_by="):
        CVATMasks(tmp_path, "test")
    assert len(CVATMasks(tmp_path, "test", need_labels=False)) == 3


def test_images_elsewhere_and_missing_files(tmp_path):
    write(tmp_path / "export", make_masks(3))
    (tmp_path / "export" / "JPEGImages").rename(tmp_path / "photos")
    assert CVATMasks(tmp_path / "export", images="../photos")[0].mask is not None
    with pytest.raises(DataError, match="JPEGImages: there is no such folder of images; say with images= where"):
        CVATMasks(tmp_path / "export")
    (tmp_path / "export" / "labelmap.txt").unlink()
    with pytest.raises(DataError, match="labelmap.txt: cannot read the file"):
        CVATMasks(tmp_path / "export", images="../photos")
