from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tw_seg.data.layouts.points import Point, draw_points
from tw_seg.errors import DataError
from tw_seg.types import IGNORE_INDEX

HEIGHT, WIDTH = 6, 8
point = st.builds(Point, st.integers(0, 3), st.floats(0, 7.99), st.floats(0, 5.99))


@given(st.lists(point, max_size=5), st.sampled_from([0, 0.9, 1, 1.5, 2.3, 20]))
def test_a_pixel_has_the_class_of_the_nearest_point_within_the_radius(points, radius):
    mask = draw_points(points, (HEIGHT, WIDTH), radius)
    assert mask.dtype == np.uint8 and mask.shape == (HEIGHT, WIDTH)
    for y, x in itertools.product(range(HEIGHT), range(WIDTH)):
        near = [(math.hypot(int(p.x) - x, int(p.y) - y), i, p.label) for i, p in enumerate(points)]
        near = [one for one in near if one[0] <= radius]
        assert mask[y, x] == (min(near)[2] if near else IGNORE_INDEX)


@pytest.mark.parametrize("wrong", [Point(1, 8, 0), Point(1, 0, 6), Point(1, -0.1, 0), Point(1, math.nan, 0)])
def test_points_outside_of_the_image(wrong):
    with pytest.raises(DataError, match=r"the point \(.*\) lies outside of the image of 6x8 pixels"):
        draw_points([wrong], (HEIGHT, WIDTH), 1)
