from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tw_seg.data.layouts.pictures import Pictures, find_pictures, map_large_tiff
from tw_seg.data.layouts.readers import read_image
from tw_seg.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Pictures in a folder, some of them in folders inside it; other files; a loop of links."""
    names = ("a.png", "b.JPG", "sub/a.png", "sub/é x.png", "notes.pdf", "two.png", "two.jpg")
    for name in (*names, ".hidden.png", ".git/c.png", ".git/a.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "in" / "a.png")
    return tmp_path / "in"


ALL = ["a", "b", "link", "two.jpg", "two.png", "sub/a", "sub/é x"]


def test_a_folder_is_searched_with_those_inside(root):
    found = find_pictures([root])
    assert list(found) == ALL
    assert found["b"] == root / "b.JPG" and found["two.jpg"] == root / "two.jpg"


def test_what_was_written_there_is_no_picture(root):
    (root / "out" / "masks").mkdir(parents=True)
    (root / "out" / "masks" / "a.png").touch()
    assert list(find_pictures([root], without=root / "out")) == ALL
    assert len(find_pictures([root])) == len(ALL) + 1


def test_a_data_folder_has_pictures_in_images(root):
    for part in ("images", "masks"):
        (root / part).mkdir()
        (root / part / "x.png").touch()
    assert find_pictures([root]) == {"x": root / "images" / "x.png"}


def test_files_patterns_and_lists(root, monkeypatch):
    assert list(find_pictures([root / "a.png"])) == ["a"]
    assert list(find_pictures([root / "a.png", root / "sub" / "a.png"])) == ["a", "sub/a"]
    assert list(find_pictures([str(root / "*.png")])) == ["a", "link", "two"]
    assert list(find_pictures([str(root / "**" / "a.png")])) == ["a", "sub/a"]
    (root / "list.txt").write_text("﻿# chosen\nsub/a.png\n\nb.JPG\ngone.png\n", encoding="utf-8")
    found = find_pictures([root / "list.txt"])
    assert list(found) == ["sub/a", "b", "gone"] and found["gone"] == root / "gone.png"  # said when it is read
    assert list(find_pictures([root, root / "a.png"])) == ALL
    (root / "odd[1].png").touch()
    assert list(find_pictures([root / "odd[1].png"])) == ["odd[1]"]


@pytest.mark.parametrize("name", ["gone", "*.bmp"])
def test_nothing_found_is_an_error(name, root):
    for given in ([root / name], [root, root / name]):
        with pytest.raises(DataError, match=rf"{re.escape(name)}: there is no.*; check the path"):
            find_pictures(given)


@pytest.mark.parametrize("name", ["empty", "list.txt"])
def test_a_folder_or_a_list_without_pictures_is_an_error_beside_others(name, root):
    (root.parent / "empty").mkdir()
    (root.parent / "list.txt").write_text("# none\n")
    with pytest.raises(DataError, match=f"{name}: there is no picture"):
        find_pictures([root, root.parent / name])


def test_two_pictures_of_one_name_are_refused(root):
    (root / "sub__a.png").touch()
    with pytest.raises(DataError, match="would both be predicted as 'sub__a.png.png': rename one"):
        find_pictures([root])


def test_pictures_are_samples_without_masks(tmp_path):
    Image.new("RGB", (5, 3), (1, 2, 3)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    pictures = Pictures(find_pictures([tmp_path]), ["background", "cat"])
    sample = pictures[0]
    assert sample.image.shape == (3, 5, 3) and sample.image[0, 0].tolist() == [1, 2, 3]
    assert sample.mask is None and sample.labels[0] == 1 and np.isnan(sample.labels[1]) and sample.name == "a"
    with pytest.raises(DataError, match="b.png: cannot read the image"):
        pictures[1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3])
def test_a_large_tiff_is_mapped_as_viewers_show_it(orientation, channels, tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3)[: 2 + (channels > 1)], dtype=np.uint8)
    path = tmp_path / "large.tif"
    photometric = "rgb" if channels == 3 else "minisblack"
    tag = (274, 3, 1, orientation, True)
    tifffile.imwrite(path, values, photometric=photometric, metadata=None, extratags=[tag])
    assert map_large_tiff(path) is None
    expected = read_image(path)  # by Pillow
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    found = map_large_tiff(path)
    assert np.array_equal(found, expected)
    owner = found
    while not isinstance(owner, np.memmap):
        owner = owner.base
    assert isinstance(owner, np.memmap)
    picture = Pictures({"large": path}, ["background", "cat"])[0].image
    assert np.array_equal(picture, expected)


def test_a_large_tiff_that_cannot_be_mapped_is_refused(tmp_path, monkeypatch):
    values = np.zeros((64, 64, 3), dtype=np.uint8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for name, kwargs in (
        ("packed", {"compression": "zlib"}),
        ("deep", {}),
        ("planes", {"planarconfig": "separate"}),
    ):
        path = tmp_path / f"{name}.tif"
        data = values.astype(np.uint16) if name == "deep" else values.transpose(2, 0, 1) if name == "planes" else values
        tifffile.imwrite(path, data, photometric="rgb", **kwargs)
        with pytest.raises(DataError, match=rf"{name}.tif: a TIFF with more than 20 pixels.*convert it"):
            Pictures({name: path}, ["background", "cat"])[0]
    tifffile.imwrite(tmp_path / "whole.tif", values, photometric="rgb")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "whole.tif").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cut.tif: cannot read the image \(.*\); it is truncated"):
        Pictures({"cut": tmp_path / "cut.tif"}, ["background", "cat"])[0]
    (tmp_path / "broken.tif").write_bytes(b"II*\0no")
    with pytest.raises(DataError, match="broken.tif: cannot read the image"):
        Pictures({"b": tmp_path / "broken.tif"}, ["background", "cat"])[0]
