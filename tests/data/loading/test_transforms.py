from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tw_seg.data.loading.transforms import (
    DEFAULT_AUGMENTATION,
    EvalTransform,
    TrainTransform,
)
from tw_seg.errors import InputError
from tw_seg.types import IMAGENET

MEAN = np.array(IMAGENET.mean).reshape(3, 1, 1)
STD = np.array(IMAGENET.std).reshape(3, 1, 1)


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray]:
    """Smooth shapes whose colour tells their class."""
    y, x = np.mgrid[:64, :64]
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[(x - 20) ** 2 + (y - 25) ** 2 < 150] = 1
    mask[(abs(x - 45) < 10) & (abs(y - 40) < 12)] = 2
    image = np.array([[40, 60, 80], [200, 30, 30], [30, 200, 220]], dtype=np.uint8)[mask]
    return image, mask


def pixels(image: torch.Tensor) -> np.ndarray:
    """Back to 0..255, (3, H, W)."""
    return (image.double().numpy() * STD + MEAN) * 255


def test_eval_at_the_same_size_only_normalises(sample):
    image, mask = sample
    result, result_mask = EvalTransform(64)(image, mask)
    assert result.shape == (3, 64, 64) and result.dtype == torch.float32 and result.is_contiguous()
    np.testing.assert_allclose(result, (image.transpose(2, 0, 1) / 255 - MEAN) / STD, atol=1e-5)
    assert result_mask.dtype == torch.int64
    np.testing.assert_array_equal(result_mask, mask)
    assert EvalTransform(64)(image, None)[1] is None


def test_eval_resizes_to_height_and_width(sample):
    image, mask = sample
    result, result_mask = EvalTransform([32, 96], mean=(0, 0, 0), std=(1, 1, 1))(image[:, :48], mask[:, :48])
    assert result.shape == (3, 32, 96) and result_mask.shape == (32, 96)
    assert set(np.unique(result_mask)) == {0, 1, 2}
    # Half the height: each result pixel is the mean of two rows, or a mixture across columns.
    half, _ = EvalTransform(32, mean=(0, 0, 0), std=(1, 1, 1))(image, None)
    blocks = image.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(half, blocks, atol=1.01 / 255)


def test_ignored_pixels_survive_resizing(sample):
    image, mask = sample
    mask = np.where(mask == 2, 255, mask).astype(np.uint8)
    assert set(np.unique(EvalTransform(50)(image, mask)[1])) == {0, 1, 255}


@pytest.mark.parametrize("transform", [EvalTransform((40, 70)), TrainTransform(EvalTransform((40, 70)))])
def test_the_two_parts_make_the_whole(sample, transform):
    image, mask = sample
    small, small_mask = transform.resize(image), transform.resize_mask(mask)
    assert small.shape == (*transform.size, 3) and small.dtype == np.uint8
    for array in (small, small_mask):
        array.flags.writeable = False  # as a cache hands them out
    whole = transform(image, mask, key=(1, 2))
    parts = transform.finish(small, small_mask, key=(1, 2))
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_every_value_is_normalised_alike_at_any_size(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    result, _ = EvalTransform((height, width))(image, None)
    np.testing.assert_allclose(result, (image.transpose(2, 0, 1) / 255 - MEAN) / STD, rtol=1e-5, atol=1e-6)


def test_normalisation_of_all_values():
    image = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    result, _ = EvalTransform(16)(image, None)
    np.testing.assert_allclose(result, (image.transpose(2, 0, 1) / 255 - MEAN) / STD, rtol=1e-5, atol=1e-6)


def test_no_strength_no_change(sample):
    image, mask = sample
    plain = TrainTransform(EvalTransform(64), {"scale": 0, "shift": 0, "rotate": 0, "color": 0})
    result, result_mask = plain(image, mask, key=(1, 2, 3))
    expected, _ = EvalTransform(64)(image, mask)
    assert torch.equal(result, expected) and torch.equal(result_mask, torch.from_numpy(mask).long())


def test_flip_mirrors_image_and_mask_together(sample):
    image, mask = sample
    flip = TrainTransform(EvalTransform(64), {"scale": 0, "shift": 0, "rotate": 0, "color": 0, "flip": True})
    expected, expected_mask = EvalTransform(64)(image, mask)
    flipped = 0
    for row in range(40):
        result, result_mask = flip(image, mask, key=(0, 0, row))
        if torch.equal(result, expected):
            assert torch.equal(result_mask, expected_mask)
        else:
            assert torch.equal(result, expected.flip(-1)) and torch.equal(result_mask, expected_mask.flip(-1))
            flipped += 1
    assert 8 < flipped < 32


def test_what_comes_from_outside_is_ignored_and_neutral(sample):
    image, mask = sample
    move = TrainTransform(EvalTransform(64), {"scale": 0.3, "shift": 0.3, "rotate": 40, "color": 0})
    shares = []
    for row in range(20):
        result, result_mask = move(np.full_like(image, 255), np.ones_like(mask), key=(0, 0, row))
        assert set(np.unique(result_mask)) <= {1, 255}
        outside = (result_mask == 255).numpy()
        shares.append(outside.mean())
        inner = erode(outside)  # the rim is interpolated
        assert np.abs(result.numpy()[:, inner]).max(initial=0) < 0.02  # the mean colour is 0 when normalised
        assert np.abs(pixels(result)[:, erode(~outside)] - 255).max(initial=0) < 0.01
    assert max(shares) > 0.1


def test_image_and_mask_move_together(sample):
    image, mask = sample
    move = TrainTransform(EvalTransform(64), {"scale": 0.2, "shift": 0.1, "rotate": 30, "color": 0})
    colors = np.array([[40, 60, 80], [200, 30, 30], [30, 200, 220]])
    moved = 0
    for row in range(20):
        result, result_mask = move(image, mask, key=(0, 0, row))
        ids, values = result_mask.numpy(), pixels(result).transpose(1, 2, 0)
        for number, color in enumerate(colors):
            inner = erode(ids == number)
            assert inner.any()
            assert np.abs(values[inner] - color).max() < 1
        moved += (ids != mask).mean() > 0.05
    assert moved > 10


def erode(region: np.ndarray) -> np.ndarray:
    padded = np.pad(region, 2)
    size = region.shape[0]
    return np.all([padded[i : i + size, j : j + size] for i in range(5) for j in range(5)], axis=0)


def test_colors_change_but_masks_do_not(sample):
    image, mask = sample
    recolor = TrainTransform(EvalTransform(64), {"scale": 0, "shift": 0, "rotate": 0, "color": 0.3})
    results = [recolor(image, mask, key=(0, 0, row)) for row in range(10)]
    assert all(torch.equal(ids, torch.from_numpy(mask).long()) for _, ids in results)
    assert len({float(result.sum()) for result, _ in results}) == 10


def test_key_and_seed_decide_alone(sample):
    image, mask = sample
    original = image.copy(), mask.copy()
    one, other = TrainTransform(EvalTransform(64), seed=1), TrainTransform(EvalTransform(64), seed=1)
    keys = [(epoch, step, row) for epoch in range(2) for step in range(3) for row in range(3)]
    wanted = {key: one(image, mask, key=key) for key in keys}
    np.random.seed(0)
    random.seed(0)
    torch.manual_seed(0)
    states = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()
    for key in reversed(keys):
        result, result_mask = other(image, mask, key=key)
        assert torch.equal(result, wanted[key][0]) and torch.equal(result_mask, wanted[key][1])
        assert torch.equal(other(image, None, key=key)[0], result)  # whether it has a mask does not matter
    assert len({float(result.sum()) for result, _ in wanted.values()}) == len(keys)
    assert not torch.equal(TrainTransform(EvalTransform(64), seed=2)(image, mask, key=keys[0])[0], wanted[keys[0]][0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[0])
    assert random.getstate() == states[1] and torch.equal(torch.get_rng_state(), states[2])
    np.testing.assert_array_equal(image, original[0])
    np.testing.assert_array_equal(mask, original[1])


def test_shapes_are_not_distorted():
    y, x = np.mgrid[:64, :64]
    mask = ((x - 31.5) ** 2 + (y - 31.5) ** 2 < 15**2).astype(np.uint8)
    zoom = TrainTransform(EvalTransform(64), {"scale": 0.4, "shift": 0, "rotate": 0, "color": 0})
    heights = []
    for row in range(20):
        ids = zoom(np.zeros((64, 64, 3), dtype=np.uint8), mask, key=(0, 0, row))[1] == 1
        heights.append(int(ids.any(dim=1).sum()))
        assert abs(heights[-1] - int(ids.any(dim=0).sum())) <= 1
    assert min(heights) < 25 and max(heights) > 35


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 0}, "size must be a number of pixels"),
        ({"size": (3, 4, 5)}, "size must be a number of pixels"),
        ({"size": 8, "mean": (0.5,)}, "mean, std: expected a number for each channel"),
        ({"size": 8, "std": (1, 1, 0)}, "mean, std: expected a number for each channel"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(InputError, match=message):
        EvalTransform(**kwargs)


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        ({"rotate": -1}, "rotate must be a number, 0 <= rotate <= 180, got -1"),
        ({"rotate": 181}, "rotate must .* got 181"),
        ({"scale": 1}, "scale must be a number, 0 <= scale < 1, got 1"),
        ({"shift": float("nan")}, "shift must .* got nan"),
        ({"color": "0.2"}, "color must .* got '0.2'"),
        ({"recolor": 1.1}, "recolor must be a number, 0 <= recolor <= 1, got 1.1"),
        ({"recolor": True}, "recolor must .* got True"),
        ({"flip": 1}, "flip must be true or false, got 1"),
        ({"zoom": 0.1, "scale": 0.1}, "expected the keys scale, shift, rotate, color, recolor, flip, got 'zoom'"),
    ],
)
def test_bad_strengths(augmentation, message):
    with pytest.raises(InputError, match=f"augmentation: {message}"):
        TrainTransform(EvalTransform(8), augmentation)


def test_the_largest_strengths_pass(sample):
    image, mask = sample
    strongest = {"scale": 0.999, "shift": 0.999, "rotate": 180, "color": 0.999, "recolor": 1, "flip": True}
    result, _ = TrainTransform(EvalTransform(16), strongest)(image, mask, key=(0, 0, 0))
    assert result.isfinite().all()


def test_strengths_left_out_have_their_defaults(sample):
    image, mask = sample
    spelled_out = TrainTransform(EvalTransform(64), {**DEFAULT_AUGMENTATION, "flip": True})
    for row in range(5):
        found = TrainTransform(EvalTransform(64), {"flip": True})(image, mask, key=(0, 0, row))
        assert all(map(torch.equal, found, spelled_out(image, mask, key=(0, 0, row))))


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("floating", [False, True])
def test_any_number_of_channels(channels, floating):
    """Against the formula at the same size, and channel by channel where the size changes."""
    rng = np.random.default_rng(0)
    image = rng.random((20, 30, channels), dtype=np.float32)
    image = image if floating else (255 * image).astype(np.uint8)
    mean, std = rng.random(channels), rng.random(channels) + 0.1
    plain = EvalTransform((20, 30), mean=mean, std=std, floating=floating)
    expected = (image.transpose(2, 0, 1) / (1 if floating else 255) - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(plain(image, None)[0], expected, atol=1e-5)
    for size in ((8, 12), (50, 40)):
        whole = EvalTransform(size, mean=mean, std=std, floating=floating)(image, None)[0]
        for k in range(channels):
            one = EvalTransform(size, mean=mean[k : k + 1], std=std[k : k + 1], floating=floating)
            np.testing.assert_allclose(whole[k], one(image[..., k : k + 1], None)[0][0], atol=1e-5)


@pytest.mark.parametrize("floating", [False, True])
def test_augmentation_moves_all_channels_alike(floating):
    """Nine channels as three times three; what comes from outside has the mean of its channel."""
    rng = np.random.default_rng(0)
    image = rng.random((32, 32, 9), dtype=np.float32)
    image = image if floating else (255 * image).astype(np.uint8)
    mask = rng.integers(0, 3, (32, 32), dtype=np.uint8)
    mean = [round(255 * value) / 255 for value in np.linspace(0.1, 0.9, 9)]
    moves = {"scale": 0.3, "shift": 0.3, "rotate": 45.0, "flip": True, "color": 0.0}

    def transform(part: slice) -> TrainTransform:
        return TrainTransform(EvalTransform(32, mean=mean[part], std=[1] * len(mean[part]), floating=floating), moves)

    whole, moved = transform(slice(0, 9))(image, mask, key=(1,))
    assert (moved == 255).any()
    assert whole[:, moved == 255].abs().amin(dim=1).max() < 1e-2
    for start in (0, 3, 6):
        part = slice(start, start + 3)
        alone, again = transform(part)(np.ascontiguousarray(image[..., part]), mask, key=(1,))
        assert torch.equal(moved, again)
        torch.testing.assert_close(whole[part], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("floating", [False, True])
def test_colours_change_brightness_and_contrast_of_any_channels(channels, floating):
    image = np.random.default_rng(0).uniform(0.3, 0.7, (16, 16, channels)).astype(np.float32)
    image = image if floating else (255 * image).astype(np.uint8)
    plain = EvalTransform(16, mean=[0] * channels, std=[1] * channels, floating=floating)
    found = [
        TrainTransform(plain, {"scale": 0, "shift": 0, "rotate": 0, "color": 0.2})(image, None, key=(key,))[0]
        for key in range(20)
    ]
    means = torch.stack([one.mean() for one in found])
    assert means.std() > 0.02 and 0.3 < means.min() and means.max() < 0.75
    assert all(one.shape == (channels, 16, 16) and one.min() >= 0 and one.max() <= 1 for one in found)


@pytest.mark.parametrize(
    "image",
    [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3), np.float32)],
    ids=["grey", "four channels", "floating"],
)
def test_images_of_other_channels_or_types(image):
    with pytest.raises(InputError, match=r"expected an image \(h, w, 3\) of type uint8, got \(9, 9"):
        EvalTransform(8).resize(image)
