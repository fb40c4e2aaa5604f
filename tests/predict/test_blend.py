from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tw_seg.data.loading.windows import Letterbox, Stretched, Tiles
from tw_seg.predict import blend
from tw_seg.predict.blend import Blender, lift_rejected, stretch, weigh_tile
from tw_seg.resize import resize_logits


def join(size, windows, maps):
    """All strips of a picture, put together; each row must come once, in order."""
    blender, rows = Blender(size), []
    for window, logits in zip(windows, maps, strict=True):
        for strip in blender.add(window, logits):
            assert strip.top == sum(part.shape[1] for part in rows)
            rows.append(strip.logits)
    return torch.cat(rows, 1)


def blend_by_loops(size, windows, maps):
    """The definition, in double precision, over the whole picture at once."""
    total = np.zeros((len(maps[0]), *size))
    weights = np.zeros(size)
    for window, logits in zip(windows, maps, strict=True):
        shown = logits[None, :, : window.fit[0], : window.fit[1]].double()
        native = torch.nn.functional.interpolate(shown, (window.height, window.width), mode="bilinear")[0].numpy()
        for y in range(window.height):
            for x in range(window.width):
                distance = [(2 * (i + 0.5) / side - 1) * 4 for i, side in ((y, window.height), (x, window.width))]
                weight = math.exp(-(distance[0] ** 2 + distance[1] ** 2) / 2)
                total[:, window.top + y, window.left + x] += weight * native[:, y, x]
                weights[window.top + y, window.left + x] += weight
    return total / weights


@pytest.mark.parametrize("size", [(40, 33), (16, 50), (50, 16), (17, 17), (9, 40)])
@pytest.mark.parametrize("tile", [(16, 16), (24, 12)])
@pytest.mark.parametrize("strip_bytes", [2**28, 1])
def test_tiles_are_averaged_by_their_weights(size, tile, strip_bytes, monkeypatch):
    monkeypatch.setattr(blend, "STRIP_BYTES", strip_bytes)
    windows = Tiles((16, 16), tile, 0.4).plan(size)
    maps = [torch.randn(3, 16, 16) for _ in windows]
    np.testing.assert_allclose(join(size, windows, maps), blend_by_loops(size, windows, maps), rtol=1e-4, atol=1e-4)


def test_tiles_that_agree_give_what_they_agree_on():
    whole = torch.randn(4, 61, 47)
    windows = Tiles((16, 16), (16, 16), 0.25).plan((61, 47))
    maps = [whole[:, w.top : w.top + 16, w.left : w.left + 16] for w in windows]
    torch.testing.assert_close(join((61, 47), windows, maps), whole, rtol=1e-5, atol=1e-5)


def test_memory_holds_one_row_of_tiles():
    blender = Blender((1000, 40))
    for window in Tiles((16, 16), (16, 16), 0.5).plan((1000, 40)):
        for strip in blender.add(window, torch.zeros(2, 16, 16)):
            assert strip.logits.shape[1] <= 16
        assert blender._sums.shape == (3, 16, 40)


@pytest.mark.parametrize("view", [Stretched((16, 16)), Letterbox((16, 16))])
def test_a_whole_window_is_resized(view):
    (window,) = view.plan((50, 23))
    logits = torch.randn(3, 16, 16)
    expected = resize_logits(logits[None, :, : window.fit[0], : window.fit[1]], (50, 23))[0]
    assert torch.equal(join((50, 23), [window], [logits]), expected)


@pytest.mark.parametrize("size", [(50, 23), (7, 90), (16, 16), (5, 3), (1, 200)])
def test_strips_of_a_resized_picture_are_those_of_all_at_once(size, monkeypatch):
    logits = torch.randn(3, 16, 16)
    monkeypatch.setattr(blend, "STRIP_BYTES", 4 * 3 * size[1] * 3)
    strips = list(stretch(logits, size))
    assert [strip.top for strip in strips] == list(range(0, size[0], 3))
    joined = torch.cat([strip.logits for strip in strips], 1)
    torch.testing.assert_close(joined, resize_logits(logits[None], size)[0], rtol=1e-5, atol=1e-5)


def test_weights_are_symmetric_and_positive():
    weights = weigh_tile(9, 14)
    assert torch.equal(weights, weights.flip(0)) or torch.allclose(weights, weights.flip(0))
    torch.testing.assert_close(weights, weights.flip(1))
    assert weights.min() > 0 and weights.argmax() in (4 * 14 + 6, 4 * 14 + 7)


def test_a_class_that_was_left_out_wins_nowhere_and_rules_no_average():
    lowest = torch.finfo(torch.float32).min / 2
    logits = torch.randn(4, 5, 6)
    logits[2] = lowest
    lifted = lift_rejected(logits)
    kept = [0, 1, 3]
    assert torch.equal(lifted[kept], logits[kept])
    assert torch.equal(lifted[2], logits[kept].amin(0))
    assert torch.equal(lifted.argmax(0), logits.argmax(0))
    assert lift_rejected(logits[kept]) is logits[kept] or torch.equal(lift_rejected(logits[kept]), logits[kept])
    windows = Tiles((8, 8), (8, 8), 0.5).plan((8, 12))
    maps = [torch.randn(2, 8, 8) for _ in windows]
    maps[0][1] = lowest
    assert join((8, 12), windows, maps).abs().max() < 100
