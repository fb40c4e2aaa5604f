from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import center_of_mass, label

from tw_seg.data.layouts.triangles import Triangles
from tw_seg.errors import DataError


def test_pictures_are_a_function_of_seed_split_and_index():
    first, longer = Triangles("val", length=3), Triangles("val", length=6)
    for index in range(3):
        assert np.array_equal(first[index].image, longer[index].image)
        assert np.array_equal(first.cues(index), longer.cues(index))
    others = [Triangles("val", length=3, seed=1)[0], Triangles("test", length=3)[0], first[1]]
    assert not any(np.array_equal(first[0].image, other.image) for other in others)
    assert first[-1].name == "val-00002"


def depth_in_triangle(dots: np.ndarray) -> np.ndarray:
    """How many pixels deep each pixel lies in the triangle of three dots' centres, negative outside."""
    parts, count = label(dots)
    assert count == 3
    corners = np.array(center_of_mass(dots, parts, [1, 2, 3]))
    pixels = np.stack(np.indices(dots.shape), axis=-1)
    depths = []
    for first, second, third in (corners, np.roll(corners, 1, axis=0), np.roll(corners, 2, axis=0)):
        normal = np.array([second[1] - first[1], first[0] - second[0]]) / np.linalg.norm(second - first)
        depths.append(((pixels - first) @ normal) * np.sign((third - first) @ normal))
    return np.min(depths, axis=0)


def test_the_class_is_the_badge_and_the_mask_the_triangle_of_the_dots():
    data = Triangles("train", length=40, size=64)
    classes = set()
    for index in range(len(data)):
        image, mask, labels, *_ = data[index]
        kind = int(mask.max())
        classes.add(kind)
        assert labels.tolist() == [1, kind == 1, kind == 2] and set(np.unique(mask)) == {0, kind}
        cues = data.cues(index)
        red, green, blue = (image[..., c].astype(int) for c in range(3))
        badge = cues & (abs(red - blue) > 150)
        assert (red > blue)[badge].all() == (kind == 1) and badge.sum() > 40
        assert not (badge & (mask > 0)).any()
        dots = cues & (red == 255) & (green == 255) & (blue == 255)
        assert (dots | badge).sum() == cues.sum()
        depth = depth_in_triangle(dots)
        assert (mask[depth > 2] == kind).all() and not mask[depth < -2].any()
        assert 0.02 < (mask > 0).mean() < 0.5
    assert classes == {1, 2}


def test_the_ground_says_nothing_of_the_mask():
    """Without its cues a picture's class and triangle leave no trace: the ground is drawn by itself."""
    data = Triangles("train", length=5)
    for index in range(5):
        image, mask, *_ = data[index]
        ground = data._make_ground(index)
        same = (image == ground).all(-1)
        assert same[(mask > 0) & ~data.cues(index)].mean() > 0.5  # all but the dark dot


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"split": "all"}, "no split 'all'; choose one of train, val, test"),
        ({"split": "val", "size": 16}, "at least 32 pixels, got 16"),
        ({"split": "val", "length": 0}, "at least 1 picture"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(DataError, match=message):
        Triangles(**kwargs)


def test_an_index_outside():
    with pytest.raises(IndexError, match="picture 2 of 2"):
        Triangles("val", length=2).cues(2)
