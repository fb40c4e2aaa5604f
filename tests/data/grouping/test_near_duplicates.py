"""Near-duplicates against a search over all pairs, and on photographs that are changed in known ways."""

from __future__ import annotations

import io
from itertools import combinations

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.datasets import load_sample_images

from tw_seg.data.grouping.near_duplicates import NEAR, group_near_duplicates, hash_image

PHOTOS = load_sample_images().images


def crop(photo: int, x: int, y: int, side: int = 160) -> np.ndarray:
    return PHOTOS[photo][y : y + side, x : x + side]


def compress(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=30)
    return np.asarray(Image.open(buffer))


def brighten(image: np.ndarray) -> np.ndarray:
    return (60 + 0.6 * image).astype(np.uint8)


CHANGES = {
    "copy": np.copy,
    "compressed": compress,
    "brighter": brighten,
    "smaller": lambda image: np.asarray(Image.fromarray(image).resize((80, 70))),
    "16 bits": lambda image: image.astype(np.uint16) * 257,
    "float": lambda image: image.astype(np.float32) / 255,
    "grey": lambda image: np.asarray(Image.fromarray(image).convert("L"))[..., None],
    **{f"turned {k}": lambda image, k=k: np.rot90(image, k) for k in (1, 2, 3)},
    **{f"mirrored {k}": lambda image, k=k: np.rot90(image[:, ::-1], k) for k in range(4)},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_photograph_is_in_the_group_of_the_original(name):
    images = [crop(0, 0, 0), crop(1, 100, 100), CHANGES[name](crop(0, 0, 0)), crop(1, 300, 200)]
    groups = group_near_duplicates(np.stack([hash_image(image) for image in images]))
    assert groups.tolist() == [0, 1, 0, 2]


def test_all_changes_are_one_group_in_any_order():
    images = [change(crop(photo, 40, 40, 300)) for photo in (0, 1) for change in CHANGES.values()]
    hashes = np.stack([hash_image(image) for image in images])
    assert group_near_duplicates(hashes).tolist() == [0] * len(CHANGES) + [1] * len(CHANGES)
    order = np.random.default_rng(0).permutation(len(images))
    shuffled = group_near_duplicates(hashes[order])
    assert (shuffled == shuffled[0]).tolist() == ((order < len(CHANGES)) == (order[0] < len(CHANGES))).tolist()


def test_crops_that_do_not_overlap_are_apart():
    places = [(photo, x, y) for photo in (0, 1) for x in range(0, 600, 100) for y in range(0, 400, 100)]
    groups = group_near_duplicates(np.stack([hash_image(crop(*place, 100)) for place in places]))
    assert len(set(groups)) >= len(places) - 1 == 47  # two of the blurred garden behind the flower are alike


def test_the_first_hash_is_that_of_imagehash():
    image = crop(0, 200, 100)
    small = Image.fromarray(image).convert("L").resize((48, 48), Image.Resampling.LANCZOS, reducing_gap=3.0)
    expected = imagehash.phash(small, 12, 4).hash.ravel()
    assert np.unpackbits(hash_image(image).view(np.uint8)[0])[:144].astype(bool).tolist() == expected.tolist()


def test_the_hashes_of_a_turned_image_are_those_of_the_image_in_another_order():
    bits, turned = (
        np.unpackbits(hash_image(image).view(np.uint8), axis=1) for image in (PHOTOS[0], PHOTOS[0][:, ::-1])
    )
    differ = (bits[:, None] != turned[None]).sum(axis=2)
    assert sorted(differ.argmin(axis=1)) == list(range(8)) and differ.min(axis=1).max() <= 4


def pack(bits: np.ndarray) -> np.ndarray:
    """Hashes (N, 8, 144 bits) as words."""
    return np.packbits(np.pad(bits, ((0, 0), (0, 0), (0, 48))), axis=-1).view(np.uint64)


def distance(a: np.ndarray, b: np.ndarray) -> int:
    """Of two hashes (8, 144 bits), by counting; the nearest orientation."""
    return min(sum(bool(x) != bool(y) for x, y in zip(a[0], row, strict=True)) for row in b)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 14))
def test_groups_are_those_of_average_linkage_over_all_pairs(seed, count):
    rng = np.random.default_rng(seed)
    centers = rng.random((3, 144)) < 0.5
    bits = centers[rng.integers(3, size=count)] ^ (rng.random((count, 144)) < rng.uniform(0.02, 0.3, (count, 1)))
    bits = np.repeat(bits[:, None], 8, axis=1)  # of pictures that look alike in all orientations
    pairs = [distance(bits[i], bits[j]) for i, j in combinations(range(count), 2)]
    expected = fcluster(linkage(np.array(pairs, dtype=float), "average"), NEAR * 144, "distance")
    found = group_near_duplicates(pack(bits))
    together = [expected[i] == expected[j] for i, j in combinations(range(count), 2)]
    assert [found[i] == found[j] for i, j in combinations(range(count), 2)] == together
    assert list(dict.fromkeys(found.tolist())) == list(range(found.max() + 1))


def test_a_chain_is_no_group():
    bits = np.zeros((9, 8, 144), dtype=bool)
    for image in range(9):
        bits[image, :, : 16 * image] = True  # neighbours differ in 16 bits, the ends in 128
    groups = group_near_duplicates(pack(bits))
    assert 1 < len(set(groups)) < 9 and groups[0] != groups[8]


def test_blank_images_are_one_group_and_no_image_is_none():
    blank = [np.full((20, 30, 3), value, dtype=np.uint8) for value in (0, 90, 255)]
    assert len(set(group_near_duplicates(np.stack([hash_image(image) for image in blank])))) == 1
    assert group_near_duplicates(np.empty((0, 8, 3), dtype=np.uint64)).shape == (0,)
