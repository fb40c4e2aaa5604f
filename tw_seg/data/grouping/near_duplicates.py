"""Near-duplicates: images that show the same thing, in another size, exposure, quality or orientation, in groups."""

from __future__ import annotations

import imagehash
import numpy as np
from PIL import Image
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

from tw_seg.data.grouping.join import number_groups

NEAR = 0.25
"""Share of the bits by which near-duplicates differ on average. Two pictures that have nothing in common differ in half
of them, and in 0.44 in the most similar of eight orientations, with a standard deviation of 0.02."""

_SIDE = 12  # a hash has its square of bits: 64 bits chain tiles of one texture to groups of hundreds
_FACTOR = 4  # the hash is of a picture of 48x48 pixels
_WORDS = -(-_SIDE * _SIDE // 64)
_ORIENTATIONS = (None, *Image.Transpose)
_ROWS = 256  # that are compared at once with all others
_LARGEST = 2000  # images whose distances fit into memory


def hash_image(image: np.ndarray) -> np.ndarray:
    """Perceptual hashes of an image in its eight orientations.

    Args:
        image: Shape (H, W, C), of any type.

    Returns:
        The 144 bits of `imagehash.phash` for each orientation, as it is first, uint64, shape (8, 3).
    """
    side = _SIDE * _FACTOR
    small = _make_grey(image).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    turned = (small if turn is None else small.transpose(turn) for turn in _ORIENTATIONS)
    bits = np.zeros((len(_ORIENTATIONS), 64 * _WORDS), dtype=bool)
    for row, picture in zip(bits, turned, strict=True):
        row[: _SIDE * _SIDE] = imagehash.phash(picture, _SIDE, _FACTOR).hash.ravel()
    return np.packbits(bits, axis=-1).view(np.uint64)


def group_near_duplicates(hashes: np.ndarray, *, near: float = NEAR) -> np.ndarray:
    """Groups of images whose hashes are near each other, in any orientation.

    Images are joined by average linkage, so that a chain of pairs, each a little different, does not become one group.

    Args:
        hashes: Those of `hash_image`, shape (N, 8, 3).
        near: Share of the bits by which the images of two parts of a group differ on average, at most.

    Returns:
        The number of each image's group, int64, shape (N,); groups are numbered in the order of their first images.
    """
    if len(hashes) == 0:
        return np.empty(0, dtype=np.int64)
    # Each hash once, in an order of its own: the groups depend neither on copies nor on the order of the images.
    _, first, place = np.unique(hashes[:, 0], axis=0, return_index=True, return_inverse=True)
    different = hashes[first]
    groups = _refine(different, _join(different, near), near)
    return number_groups(groups[place.reshape(-1)])


def _make_grey(image: np.ndarray) -> Image.Image:
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return Image.fromarray(image).convert("L")
    mean = image.mean(axis=2, dtype=np.float64)
    low, high = mean.min(), mean.max()
    return Image.fromarray((255 * (mean - low) / (high - low if high > low else 1)).astype(np.uint8))


def _find_distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many bits differ in the most similar orientation, shape (rows, others)."""
    nearest = np.full((len(rows), len(others)), 255, dtype=np.uint8)
    for turn in range(len(_ORIENTATIONS)):
        differ = np.zeros_like(nearest)
        for word in range(_WORDS):
            differ += np.bitwise_count(rows[:, 0, word, None] ^ others[None, :, turn, word])
        np.minimum(nearest, differ, out=nearest)
    return nearest


def _join(hashes: np.ndarray, near: float) -> np.ndarray:
    """Groups of which every image is near another one of it; pairs are looked at a few rows at a time."""
    count = len(hashes)
    groups = np.arange(count)
    for start in range(0, count, _ROWS):
        found = _find_distances(hashes[start : start + _ROWS], hashes[start:]) <= near * _SIDE**2
        row, other = np.nonzero(found)
        ends = np.concatenate([start + row, np.arange(count)]), np.concatenate([start + other, groups])
        graph = coo_matrix((np.ones(len(ends[0]), dtype=bool), ends), shape=(count, count))
        groups = _find_first(connected_components(graph, directed=False)[1])
    return groups


def _refine(hashes: np.ndarray, groups: np.ndarray, near: float) -> np.ndarray:
    """The same by average linkage; groups of more images than fit stay as they are."""
    result = groups.copy()
    order = np.argsort(groups, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        if 3 <= len(members) <= _LARGEST:
            distances = _find_distances(hashes[members], hashes[members]).astype(np.float64)
            distances = np.minimum(distances, distances.T)
            np.fill_diagonal(distances, 0)
            parts = fcluster(linkage(squareform(distances), "average"), near * _SIDE**2, "distance")
            result[members] = members[_find_first(parts)]
    return result


def _find_first(groups: np.ndarray) -> np.ndarray:
    """The first index of each one's group."""
    _, first, place = np.unique(groups, return_index=True, return_inverse=True)
    return first[place.reshape(-1)]
