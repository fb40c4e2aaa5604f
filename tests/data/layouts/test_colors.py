from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tw_seg.data.layouts.colors import make_color_table, read_color_mask, read_color_table
from tw_seg.errors import DataError, MaskSizeError

COLORS = {"cat": [255, 0, 0], "dog": [0, 128, 0], "void": [9, 9, 9]}
TEXT = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat|a b:255,0,0::\ngro\u00df: 0, 128 ,0:x:y\nvoid:9,9,9\n\n"
)


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=20, unique=True), st.integers(0, 2**32 - 1))
def test_any_colours_become_the_ids_of_their_classes(colors, seed):
    colors = [color for color in colors if color != (0, 0, 0)] or [(1, 2, 3)]
    table = make_color_table({f"c{i}": color for i, color in enumerate(colors)})
    ids = np.random.default_rng(seed).integers(0, len(colors) + 1, (5, 7)).astype(np.uint8)
    rgb = np.array([(0, 0, 0), *colors], dtype=np.uint8)[ids]
    np.testing.assert_array_equal(table.find_ids(rgb, Path("a.png")), ids)


def test_a_label_map(tmp_path):
    path = tmp_path / "labelmap.txt"
    path.write_text(TEXT, encoding="utf-8-sig")
    table = read_color_table(path)
    assert table.classes == ("background", "cat|a b", "gro\u00df")
    border = {(224, 224, 192): 255}
    assert table.ids == {(0, 0, 0): 0, (255, 0, 0): 1, (0, 128, 0): 2, (9, 9, 9): 255} | border
    chosen = read_color_table(path, ["background", "gro\u00df"])
    assert chosen.ids == {(0, 0, 0): 0, (255, 0, 0): 0, (0, 128, 0): 1, (9, 9, 9): 255} | border


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_masks_in_colours(tmp_path, mode):
    ids = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], dtype=np.uint8), (4, 5))
    colors = np.zeros((256, 3), dtype=np.uint8)
    colors[[1, 2, 255]] = list(COLORS.values())
    image = Image.fromarray(colors[ids])
    image = image.quantize(8, dither=Image.Dither.NONE) if mode == "P" else image.convert(mode)
    image.save(tmp_path / "a.png")
    table = make_color_table(COLORS)
    np.testing.assert_array_equal(read_color_mask(tmp_path / "a.png", table), ids)
    with pytest.raises(MaskSizeError, match=r"a.png: the mask has 4x5 pixels .* its image 5x4.* sides are swapped"):
        read_color_mask(tmp_path / "a.png", table, shape=(5, 4))


def test_masks_that_do_not_fit(tmp_path):
    table = make_color_table(COLORS)
    path = tmp_path / "a.png"
    rgb = np.zeros((2, 2, 3), dtype=np.uint8)
    rgb[0] = [[255, 1, 0], [254, 0, 0]]
    Image.fromarray(rgb).save(path)
    with pytest.raises(
        DataError, match=r"a.png: 2 colours of the mask are not in colors, first \(254, 0, 0\), \(255, 1"
    ):
        read_color_mask(path, table)
    Image.fromarray(np.zeros((2, 2, 4), dtype=np.uint8)).save(path)
    with pytest.raises(DataError, match=r"a.png: the mask has transparent pixels"):
        read_color_mask(path, table)
    Image.fromarray(np.zeros((2, 2), dtype=np.uint16)).save(path)
    with pytest.raises(DataError, match=r"a.png: expected a mask in colours .* found mode I;16"):
        read_color_mask(path, table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat:1,2", r"line 1: expected name:red,green,blue::, found 'cat:1,2'"),
        ("cat", r"line 1: expected name:red,green,blue::"),
        ("cat:1,2,256::", r"line 1: a colour is three whole numbers from 0 to 255, got \[1, 2, 256\]"),
        ("cat:1,2,99999999999999999999::", r"line 1: a colour is three whole numbers"),
        ("cat:1,2,3::\ncat:3,2,1::", r"line 2: the class 'cat' is listed twice"),
        ("cat:1,2,3::\ndog:1,2,3::", r"the class 'dog' has the colour \(1, 2, 3\) of another"),
        ("cat:0,0,0::", r"has the colour \(0, 0, 0\) of another"),
        ("", r"labelmap.txt: expected a colour for each class"),
        ("background:0,0,0::", r"labelmap.txt: expected 2 to 255 classes, background included, found 1"),
    ],
)
def test_label_maps_that_do_not_fit(tmp_path, text, message):
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_color_table(tmp_path / "labelmap.txt")


@pytest.mark.parametrize("colors", [{}, [1], {"cat": "red"}, {"cat": [1, 2, True]}, {"cat": [1.0, 2, 3]}])
def test_tables_that_do_not_fit(colors):
    with pytest.raises(
        DataError, match=r"colors.*: (expected a colour for each class|a colour is three whole numbers)"
    ):
        make_color_table(colors)


def test_classes_without_a_colour():
    with pytest.raises(DataError, match="colors: no colour for the classes cow, pig; add one for each"):
        make_color_table(COLORS, ["background", "cow", "cat", "pig"])
