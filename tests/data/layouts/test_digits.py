from __future__ import annotations

import numpy as np
import pytest

from tw_seg.data.layouts import digits
from tw_seg.data.layouts.digits import DigitScenes
from tw_seg.errors import DataError

SPLITS = ("train", "val", "test")


def equal(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("split", SPLITS)
def test_scenes(split):
    data = DigitScenes(split, size=32, length=12)
    assert len(data) == len(data.names) == len(set(data.names)) == 12 and data.labels.shape == (12, 11)
    assert data.classes == ("background", *"0123456789")
    for index in range(12):
        sample = data[index]
        assert sample.image.shape == (32, 32, 3) and sample.image.dtype == np.uint8
        assert sample.mask.shape == (32, 32) and sample.mask.dtype == np.uint8
        assert sample.name == data.names[index] and np.array_equal(sample.labels, data.labels[index])
        # A digit may be hidden by another, but what is in the mask is in the labels.
        shown = set(np.unique(sample.mask)) | {0}
        assert shown <= set(np.flatnonzero(sample.labels)) and 1 <= sample.labels[1:].sum() <= 3
        assert sample.mask.any() and not sample.mask.all()
    assert equal(data[-1], data[11])
    with pytest.raises(IndexError, match="scene 12 of 12"):
        data[12]


def test_a_scene_depends_on_seed_split_index_and_size_alone():
    data = DigitScenes("train", size=24, length=6)
    longer = DigitScenes("train", size=24, length=9)
    order = [4, 0, 5, 2]
    assert all(equal(longer[i], data[i]) for i in order)
    assert equal(DigitScenes("train", size=24, length=6)[4], data[4])
    for other in (DigitScenes("val", size=24, length=6), DigitScenes("train", size=24, length=6, seed=1)):
        assert not any(np.array_equal(other[i].image, data[i].image) for i in order)
    # Another size shows the same scene.
    large = DigitScenes("train", size=48, length=6)
    assert np.array_equal(large.labels, data.labels)
    for i in order:
        assert (large[i].mask[::2, ::2] == data[i].mask).mean() > 0.85


def test_splits_share_neither_digits_nor_regions_of_photographs():
    members = [set(digits._select_digits(split).tolist()) for split in SPLITS]
    assert len(set.union(*members)) == sum(map(len, members)) == 1797
    targets = digits._load_digits()[1]
    assert all(set(targets[list(chosen)]) == set(range(10)) for chosen in members)
    shares = sorted(digits._SHARES[split] for split in SPLITS)
    assert shares[0][0] == 0 and shares[-1][1] == 1
    assert all(left[1] == right[0] for left, right in zip(shares, shares[1:], strict=False))


def test_a_color_like_what_is_behind_it_is_changed_and_no_other():
    for level in (20.0, 120.0, 130.0, 240.0):
        behind = np.full((9, 3), level)
        near, far = np.full(3, level + 10), np.full(3, 255.0 if level < 127 else 0.0)
        assert np.array_equal(digits._raise_contrast(far, behind), far)
        changed = digits._raise_contrast(near, behind)
        assert np.abs(changed - level).mean() >= 60 and (0 <= changed).all() and (changed <= 255).all()
    assert np.array_equal(digits._raise_contrast(near, behind[:0]), near)  # outside of the scene


@pytest.mark.parametrize(
    ("split", "kwargs", "message"),
    [
        ("predict", {}, "no split 'predict'; choose one of train, val, test"),
        ("val", {"size": 15}, "at least 16 pixels, got 15"),
        ("val", {"digits": 11}, "digits=11"),
        ("val", {"digits": 0}, "digits=0"),
        ("val", {"length": 0}, "at least 1 scene, got 0"),
        ("val", {"digits": 11}, "digits=11"),
        ("val", {"digits": 0}, "digits=0"),
    ],
)
def test_bad_arguments(split, kwargs, message):
    with pytest.raises(DataError, match=message):
        DigitScenes(split, **kwargs)


def test_digits_that_are_no_class_are_drawn_and_belong_to_the_background() -> None:
    everything, some = DigitScenes("val", size=32, length=20), DigitScenes("val", size=32, length=20, digits=7)
    assert some.classes == everything.classes[:8] and some.names == everything.names
    np.testing.assert_array_equal(some.labels, everything.labels[:, :8])
    for one, other in zip(everything, some, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(np.where(one.mask > 7, 0, one.mask), other.mask)
    assert any((sample.mask > 7).any() for sample in everything)
    assert DigitScenes.classes == everything.classes
