"""Groups of several kinds as one: images that belong together by any of them."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


def number_groups(groups: np.ndarray) -> np.ndarray:
    """The same groups by numbers from 0, in the order of their first images: int64, shape (N,).

    Examples:
        >>> number_groups(np.array([7, 3, 7, 5]))
        array([0, 1, 0, 2])
    """
    _, first, place = np.unique(groups, return_index=True, return_inverse=True)
    order = np.empty(len(first), dtype=np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    return order[place.reshape(-1)]


def join_groups(groups: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Groups of images that belong together by either grouping, also through others.

    Args:
        groups: The number of each image's group, shape (N,).
        others: The same by another grouping.

    Returns:
        The number of each image's group, int64, shape (N,); groups are numbered in the order of their first images.

    Examples:
        >>> join_groups(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 2]))
        array([0, 0, 0, 1])
    """
    if len(groups) == 0:
        return np.empty(0, dtype=np.int64)
    groups, others = number_groups(groups), number_groups(others)
    count = len(groups)  # groups are nodes below it, others from it on
    graph = coo_matrix((np.ones(count, dtype=bool), (groups, count + others)), shape=(2 * count, 2 * count))
    return number_groups(connected_components(graph, directed=False)[1][groups])
