from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tw_seg.data.layouts.shapes import Box, Ellipse, Shape, draw_mask, fill_runs
from tw_seg.errors import DataError
from tw_seg.regions import check_regions

SIZE = (6, 8)

boxes = st.builds(Box, *(st.floats(-3, 11, width=32) for _ in range(4)))
shapes = st.lists(st.tuples(boxes, st.booleans(), st.integers(0, 9), st.sampled_from([0, 1, 2, 3, 255])), max_size=6)


def touches(box: Box, y: int, x: int) -> bool:
    """Whether a box has a point inside a pixel."""
    left, right = sorted((box.left, box.right))
    top, bottom = sorted((box.top, box.bottom))
    return left < x + 1 and right > x and top < y + 1 and bottom > y


@given(shapes)
def test_each_pixel_may_be_what_the_shapes_around_it_say(drawn):
    """Against a loop over pixels and shapes."""
    entries = [
        (Shape("x", box, is_box=is_box, is_ignored=crowd == 0), class_id) for box, is_box, crowd, class_id in drawn
    ]
    # A box without height or width touches nothing, but Box.fill rounds each side outwards.
    if any(box.left % 1 == 0 or box.top % 1 == 0 or box.right % 1 == 0 or box.bottom % 1 == 0 for box, *_ in drawn):
        return
    mask, regions = draw_mask(entries, SIZE, 4)
    check_regions(mask, regions, 4, name="mask")
    for y, x in np.ndindex(*SIZE):
        around = [(shape, class_id) for shape, class_id in entries if touches(shape.outline, y, x)]
        certain = [k for shape, k in around if not (shape.is_box or shape.is_ignored or k == 255)]
        if certain:
            expected = {certain[-1]}
        elif any(shape.is_ignored or k == 255 for shape, k in around):
            expected = {0, 1, 2, 3}
        else:
            expected = {0, *(k for _, k in around)}
        value = int(mask[y, x])
        found = {value} if value < 4 else set(range(4)) if value == 255 else set(np.flatnonzero(regions[value - 4]))
        assert found == expected


def test_whole_boxes_and_ellipses():
    assert Box(1, 2, 3, 4).fill(SIZE).nonzero()[0].tolist() == [2, 2, 3, 3]
    assert not Ellipse((2, 2), (0, 3)).fill(SIZE).any()
    assert Ellipse((4, 3), (40, 30)).fill(SIZE).all()


@pytest.mark.parametrize("counts", [[], [1], [47], [49], [-1, 49], [0, 2**70]])
def test_runs_that_do_not_add_up(counts):
    with pytest.raises(DataError, match="the run lengths add up to"):
        fill_runs(counts, SIZE)


def test_boxes_that_overlap_in_too_many_ways():
    """Each pixel of 16x16 has a set of its own: a box for each bit of its row and its column."""
    entries = []
    for bit in range(4):
        for place in range(16):
            if place >> bit & 1:
                entries.append((Shape("r", Box(0, place, 16, place + 1), is_box=True), 1 + bit))
                entries.append((Shape("c", Box(place, 0, place + 1, 16), is_box=True), 5 + bit))
    with pytest.raises(DataError, match=r"boxes of 8 classes overlap in 255 ways, and a mask has room for 246; leave"):
        draw_mask(entries, (16, 16), 9)
    mask, regions = draw_mask(entries, (15, 16), 9)
    assert len(regions) == 239 and mask.max() == 9 + 238
