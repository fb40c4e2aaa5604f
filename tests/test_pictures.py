from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tw_seg.errors import InputError
from tw_seg.pictures import (
    draw_heatmap,
    draw_image,
    draw_mask,
    join_tiles,
    make_palette,
    save_mask,
    save_picture,
)


def test_the_palette_is_that_of_pascal_voc():
    colors = make_palette()
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 7: (128, 128, 128), 8: (64, 0, 0)}
    known |= {15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {i: tuple(colors[i].tolist()) for i in known} == known
    assert len(np.unique(colors[:255], axis=0)) == 255


def test_a_mask_file_holds_ids_and_shows_colours(tmp_path):
    mask = np.array([[0, 1, 2], [3, 20, 255]], dtype=np.int64)
    save_mask(tmp_path / "a" / "mask.png", mask)
    with Image.open(tmp_path / "a" / "mask.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.array(picture), mask)
        assert np.array_equal(np.array(picture.convert("RGB")), draw_mask(mask))


@pytest.mark.parametrize(
    "mask", [np.zeros((2, 2)), np.zeros((1, 2, 2), dtype=int), np.array([[256]]), np.array([[-1]])]
)
def test_what_is_no_mask_is_refused(mask, tmp_path):
    with pytest.raises(InputError, match=r"mask.png: a mask must be an integer array"):
        save_mask(tmp_path / "mask.png", mask)
    assert not list(tmp_path.iterdir())


def test_heatmaps_are_white_at_zero_red_above_and_blue_below():
    rgb = draw_heatmap(np.array([[0.0, 2.0, -2.0, 1.0]]))
    assert rgb[0, 0].tolist() == [255, 255, 255]
    assert rgb[0, 1].tolist() == [255, 0, 0]
    assert rgb[0, 2].tolist() == [0, 0, 255]
    assert rgb[0, 3].tolist() == [255, 128, 128]
    assert (draw_heatmap(np.zeros((2, 2))) == 255).all()


def test_images_are_stretched_to_their_range():
    rgb = draw_image(np.linspace(-3, 5, 12, dtype=np.float32).reshape(3, 2, 2))
    assert rgb.shape == (2, 2, 3)
    assert (rgb.min(), rgb.max()) == (0, 255)
    assert draw_image(np.ones((1, 2, 2))).shape == (2, 2, 3)


def test_tiles_stand_in_a_row(tmp_path):
    row = join_tiles([np.zeros((4, 3, 3), np.uint8), np.ones((4, 5, 3), np.uint8)], gap=2)
    assert row.shape == (4, 10, 3)
    assert (row[:, 3:5] == 255).all()
    save_picture(tmp_path / "row.png", row)
    with Image.open(tmp_path / "row.png") as picture:
        assert np.array_equal(np.array(picture), row)
