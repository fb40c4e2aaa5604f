"""Files that hold more than one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tw_seg.data.layouts.readers import read_image, read_mask, read_size
from tw_seg.errors import DataError


def pages(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 2, (6, 9), dtype=np.uint8)) for _ in range(count)]


@pytest.mark.parametrize("suffix", ["tif", "png", "webp"])
def test_several_pages_or_frames_are_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    first, *others = pages(3)
    first.save(path, save_all=True, append_images=others, **({"lossless": True} if suffix == "webp" else {}))
    for read in (read_image, read_size, lambda path: read_mask(path, num_classes=2)):
        with pytest.raises(
            DataError, match=rf"{path}: expected one (?:image|mask) in the file, found 3 pages or frames; save"
        ):
            read(path)


def test_one_page_that_is_saved_as_several(tmp_path):
    [page] = pages(1)
    page.save(tmp_path / "a.tif", save_all=True)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif", num_classes=2), np.array(page))


@pytest.mark.parametrize("kind", [1, 4, 5])  # reduced, transparency, both
def test_small_and_coded_versions_of_a_page_are_no_pages(tmp_path, kind):
    path = tmp_path / "a.tif"
    write_tiff(path, [0, kind])
    np.testing.assert_array_equal(read_mask(path, num_classes=2), np.array(pages(2)[0]))
    assert read_size(path) == ((6, 9), False)
    write_tiff(path, [2, 2])  # of a document
    with pytest.raises(DataError, match="found 2 pages"):
        read_mask(path, num_classes=2)


def write_tiff(path: Path, kinds: list[int]) -> None:
    """A file with pages of these kinds (TIFF's NewSubfileType)."""
    images = pages(len(kinds))
    for image, kind in zip(images, kinds, strict=True):
        image.encoderinfo = {"tiffinfo": {254: kind}}
    images[0].save(path, save_all=True, append_images=images[1:], tiffinfo={254: kinds[0]})


def test_previews_of_a_camera_are_no_frames(tmp_path):
    color = [page.convert("RGB") for page in pages(2)]
    color[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=color[1:])
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.n_frames == 2
        expected = np.array(opened.convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), expected)
