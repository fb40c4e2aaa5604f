from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tw_seg.data.loading.collate import collate_windows
from tw_seg.data.loading.transforms import EvalTransform, init_worker
from tw_seg.data.loading.windows import Letterbox, Stretched, Tiles, WindowItems, cut_window, make_view, shrink
from tw_seg.errors import DataError, InputError
from tw_seg.types import Sample

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def draw_picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def normalize(picture: np.ndarray) -> np.ndarray:
    return ((picture / 255 - MEAN) / STD).transpose(2, 0, 1)


sides = st.integers(1, 90)


@given(size=st.tuples(sides, sides), tile=st.tuples(st.integers(1, 40), st.integers(1, 40)), overlap=st.floats(0, 0.9))
def test_tiles_cover_every_pixel_and_overlap_enough(size, tile, overlap):
    windows = Tiles((32, 32), tile, overlap).plan(size)
    covered = np.zeros(size, dtype=int)
    for window in windows:
        assert 0 <= window.top <= window.top + window.height <= size[0]
        assert 0 <= window.left <= window.left + window.width <= size[1]
        assert (window.height, window.width) == (min(tile[0], size[0]), min(tile[1], size[1]))
        covered[window.top : window.top + window.height, window.left : window.left + window.width] += 1
    assert covered.min() >= 1
    assert [window.last for window in windows] == [False] * (len(windows) - 1) + [True]
    tops = sorted({window.top for window in windows})
    assert [window.top for window in windows] == sorted(window.top for window in windows)
    for first, second in zip(tops, tops[1:], strict=False):
        shared = first + windows[0].height - second
        assert shared >= np.floor(overlap * windows[0].height) - 1e-9 or second - first == 1
    # One tile less would leave a gap or overlap too little.
    step = max(1, int(windows[0].height * (1 - overlap)))
    assert len(tops) == 1 or (len(tops) - 2) * step + windows[0].height < size[0]


def test_a_tile_is_the_picture_there():
    picture = draw_picture(50, 70)
    transform = EvalTransform(16, mean=MEAN, std=STD)
    for window in Tiles((16, 16), (16, 16), 0.5).plan((50, 70)):
        part = picture[window.top : window.top + 16, window.left : window.left + 16]
        np.testing.assert_allclose(cut_window(picture, window, transform).numpy(), normalize(part), atol=1e-5)


def test_a_picture_smaller_than_a_tile_gets_margins_of_the_mean():
    picture = draw_picture(8, 40)
    (first, *_) = Tiles((16, 16), (16, 16)).plan((8, 40))
    assert first.fit == (8, 16)
    image = cut_window(picture, first, EvalTransform(16, mean=MEAN, std=STD)).numpy()
    np.testing.assert_allclose(image[:, :8], normalize(picture[:, :16]), atol=1e-5)
    assert not image[:, 8:].any()


@pytest.mark.parametrize(
    ("size", "fit"), [((20, 40), (16, 32)), ((40, 20), (32, 16)), ((32, 32), (32, 32)), ((1, 500), (1, 32))]
)
def test_letterbox_keeps_the_aspect_ratio(size, fit):
    (window,) = Letterbox((32, 32)).plan(size)
    assert (window.height, window.width, window.fit, window.last) == (*size, fit, True)
    image = cut_window(np.full((*size, 3), 255, dtype=np.uint8), window, EvalTransform(32, mean=MEAN, std=STD))
    assert image.shape == (3, 32, 32)
    shown = torch.zeros(3, 32, 32, dtype=torch.bool)
    shown[:, : fit[0], : fit[1]] = True
    assert torch.equal(image > 0, shown) and torch.equal(image != 0, shown)


def test_a_stretched_picture_is_what_the_model_is_trained_on():
    picture, transform = draw_picture(30, 50), EvalTransform((16, 24), mean=MEAN, std=STD)
    (window,) = Stretched((16, 24)).plan((30, 50))
    assert torch.equal(cut_window(picture, window, transform), transform(picture, None)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "crop"}, "view must be one of resize, letterbox, tiles, got 'crop'"),
        ({"name": "resize", "tile": 5}, "tile=5 needs the view tiles"),
        ({"name": "tiles", "tile": 0}, "size must be"),
        ({"name": "tiles", "overlap": 1.0}, "overlap must be a share"),
    ],
)
def test_views_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        make_view(**{"size": (8, 8), **arguments})


class Shelf:
    """Pictures of several sizes, one of them broken."""

    classes = ("background", "thing")
    names = tuple("abcdefg")
    labels = np.zeros((7, 2), dtype=np.float32)

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Sample:
        if index == 2:
            raise DataError("c.png: cannot read the image")
        return Sample(draw_picture(10 + index, 30, index), None, self.labels[index], self.names[index])


@pytest.mark.parametrize("name", ["resize", "tiles"])
def test_batches_hold_all_windows_in_order_and_name_what_failed(name):
    transform = EvalTransform(8, mean=MEAN, std=STD)
    items = WindowItems(Shelf(), transform, make_view(name, (8, 8)), batch_size=3, thumbnails=True)
    batches = list(DataLoader(items, batch_size=3, collate_fn=collate_windows))
    found = [(n, w) for batch in batches for n, w in zip(batch.names, batch.windows, strict=True)]
    expected = [
        (Shelf.names[i], window) for i in range(7) if i != 2 for window in make_view(name, (8, 8)).plan((10 + i, 30))
    ]
    assert found == expected
    assert [failure.name for batch in batches for failure in batch.failures] == ["c"]
    for batch in batches:
        for window, small in zip(batch.windows, batch.thumbnails, strict=True):
            assert (small is not None) == window.last


def test_workers_make_the_same_batches_of_whole_pictures():
    items = WindowItems(Shelf(), EvalTransform(8), make_view("resize", (8, 8)), batch_size=2)
    alone, two = (
        list(DataLoader(items, batch_size=2, num_workers=n, collate_fn=collate_windows, worker_init_fn=init_worker))
        for n in (0, 2)
    )
    assert (
        [batch.names for batch in alone] == [batch.names for batch in two] == [("a", "b"), ("d",), ("e", "f"), ("g",)]
    )
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, two, strict=True))


def test_a_batch_may_have_failures_only():
    items = WindowItems(Shelf(), EvalTransform(8), make_view("resize", (8, 8)), batch_size=1)
    batches = list(DataLoader(items, batch_size=1, collate_fn=collate_windows))
    assert len(batches[2].images) == len(batches[2].names) == 0 and batches[2].failures[0].name == "c"


def test_a_thumbnail_is_every_nth_pixel():
    picture = draw_picture(3, 2500)
    assert np.array_equal(shrink(picture), picture[::3, ::3])
    assert np.array_equal(shrink(picture[:, :1024]), picture[:, :1024])
