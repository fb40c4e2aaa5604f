from __future__ import annotations

import json

import numpy as np
import pytest

from tw_seg.app.strokes import Stroke, draw_strokes, read_strokes
from tw_seg.errors import InputError


def measure_distances(stroke: Stroke, size: tuple[int, int]) -> np.ndarray:
    """Distance of every pixel to the line through the pixels of a stroke's points, by its definition."""
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    places = [np.array([int(px * size[1]), int(py * size[0])], dtype=float) for px, py in stroke.points]
    found = np.full(size, np.inf)
    for first, second in zip(places, [*places[1:], places[-1]], strict=True):
        along = second - first
        share = ((x - first[0]) * along[0] + (y - first[1]) * along[1]) / max(along @ along, 1e-9)
        near = first[:, None, None] + along[:, None, None] * share.clip(0, 1)
        found = np.minimum(found, np.hypot(x - near[0], y - near[1]))
    return found


@pytest.mark.parametrize("points", [((0.5, 0.5),), ((0.2, 0.3), (0.7, 0.8), (0.9, 0.1))])
@pytest.mark.parametrize("radius", [0.0, 0.03, 0.1])
def test_a_stroke_covers_what_is_near_its_line(points, radius):
    stroke, size = Stroke(2, radius, points), (80, 100)
    mask, distance = draw_strokes([stroke], size), measure_distances(stroke, size)
    assert set(np.unique(mask)) == {2, 255}
    # A line of pixels is at most half a pixel from the line, measured along an axis.
    assert (distance[mask == 2] <= 100 * radius + 0.51).all() and (mask[distance <= 100 * radius - 0.51] == 2).all()
    assert (mask[distance == 0] == 2).all()


def test_the_last_stroke_counts_and_an_eraser_leaves_nothing():
    line = ((0.1, 0.5), (0.9, 0.5))
    mask = draw_strokes([Stroke(1, 0.05, line), Stroke(0, 0.05, ((0.5, 0.1), (0.5, 0.9)))], (40, 40))
    assert mask[20, 20] == 0 and mask[20, 5] == 1
    assert (draw_strokes([Stroke(1, 0.05, line), Stroke(255, 0.2, line)], (40, 40)) == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (24, 32), (600, 1024)])
def test_every_stroke_has_a_pixel_in_a_picture_of_any_size(size):
    corners = [Stroke(label, 0.0, ((x, y),)) for label, (x, y) in enumerate([(0.0, 0.0), (1.0, 1.0)])]
    mask = draw_strokes(corners, size)
    assert mask[-1, -1] == 1 and (mask[0, 0] == 0 or size == (1, 1))
    assert (mask != 255).sum() == (1 if size == (1, 1) else 2)


def test_strokes_are_read_as_they_were_sent():
    sent = [Stroke(1, 0.01, ((0.5, 0.25), (1.0, 0.0))), Stroke(255, 0.0, ((0.0, 0.0),))]
    assert read_strokes(json.dumps([one._asdict() for one in sent]), 2) == sent
    assert read_strokes(None, 2) == read_strokes("", 2) == []


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '[{"label": 2, "radius": 0.1, "points": [[0, 0]]}]',
        '[{"label": 0, "radius": -1, "points": [[0, 0]]}]',
        '[{"label": 0, "radius": 0.1, "points": []}]',
        '[{"label": 0, "radius": 0.1, "points": [[0, 1.5]]}]',
        '[{"label": 0, "radius": 0.1, "points": [[0, NaN]]}]',
        '[{"label": 0, "radius": 0.1}]',
    ],
)
def test_what_is_no_stroke_is_refused(text):
    with pytest.raises(InputError, match="the marks cannot be read"):
        read_strokes(text, 2)
