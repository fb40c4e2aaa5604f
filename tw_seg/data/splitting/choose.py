"""Which split an image belongs to: groups stay together, and every class is spread as the shares say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from tw_seg.arguments import is_number
from tw_seg.data.grouping.join import number_groups
from tw_seg.errors import InputError
from tw_seg.types import BACKGROUND

_SIZE = 2.0  # how much the number of images counts, where a class counts 1
_LEAST = 1e-9  # gain for which a group is moved; less is rounding


def choose_splits(
    labels: np.ndarray, names: Sequence[str], shares: Mapping[str, float], *, groups: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Divide images into splits.

    Groups are handed out one at a time, those first that hold the largest part of a class: each goes where it brings
    the numbers of images, and of images of each class, closest to the shares (a grouped form of iterative
    stratification [1]). Then groups are moved while that brings them closer, and to splits that lack a class
    altogether. The choice depends on names, labels and the seed, not on the order of the images or on a random number
    generator.

    [1] Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-label Data, ECML PKDD 2011.

    Args:
        labels: Image-level labels, shape (N, K); what is above 0 counts, column 0 (background) is ignored.
        names: The N sample names, unique.
        shares: The share of each split, above 0; they add up to 1.
        groups: The number of each image's group, shape (N,); the images of a group go to one split.
        seed: Seed of the choice.

    Returns:
        The name of each image's split, shape (N,), object.

    Raises:
        InputError: If the shares do not add up, there are fewer groups than splits, or names and groups do not fit.
    """
    _check(labels, names, shares, groups)
    groups = _sort_groups(names, np.asarray(groups), seed)
    objects = labels[:, BACKGROUND + 1 :] > 0
    strata = np.column_stack([objects, ~objects.any(axis=1), np.ones(len(names), dtype=bool)]).astype(np.float64)
    held = np.zeros((groups.max() + 1, strata.shape[1]))
    np.add.at(held, groups, strata)
    held /= np.maximum(held.sum(axis=0), 1)  # what part of each class, and of all images, a group holds
    held[:, -1] *= _SIZE
    order = np.argsort(-held.max(axis=1), kind="stable")
    division = _Division(held, np.array(list(shares.values())))
    for group in order.tolist():
        division.place(group, int(division.find_costs()[group].argmin()))
    division.improve()
    division.cover()
    return np.array(list(shares), dtype=object)[division.split_of[groups]]


class _Division:
    """Which split each group is in, and how far the splits are from their shares.

    Args:
        held: What part of each class a group holds, shape (G, C).
        shares: The share of each split, shape (S,).
    """

    def __init__(self, held: np.ndarray, shares: np.ndarray) -> None:
        self.held, self.shares = held, shares
        self.split_of = np.full(len(held), -1, dtype=np.int64)
        self._missing = shares[:, None] * held.sum(axis=0)  # of each class in each split

    def place(self, group: int, split: int) -> None:
        """Put a group into a split, out of another if it is in one."""
        if self.split_of[group] >= 0:
            self._missing[self.split_of[group]] += self.held[group]
        self._missing[split] -= self.held[group]
        self.split_of[group] = split

    def find_costs(self) -> np.ndarray:
        """By how much more each split would differ from its share with a group more, relative to it, (G, S)."""
        squares = (self.held**2).sum(axis=1)[:, None]
        costs: np.ndarray = (squares - 2 * self.held @ self._missing.T) / self.shares
        return costs

    def improve(self) -> None:
        """Move groups, the one that helps most first, until none helps."""
        rows, squares = np.arange(len(self.held)), (self.held**2).sum(axis=1)
        for _ in range(2 * len(self.held)):
            costs = self.find_costs()
            # What a split would be without a group that it has: that group is still taken off what is missing.
            stay = (costs[rows, self.split_of] * self.shares[self.split_of] - 2 * squares) / self.shares[self.split_of]
            gains = stay[:, None] - costs
            gains[rows, self.split_of] = 0
            group, split = divmod(int(gains.argmax()), len(self.shares))
            if gains[group, split] <= _LEAST:
                return
            self.place(group, split)

    def cover(self) -> None:
        """Move a group to each split that lacks a class, or any image, if another can spare one; rare classes first."""
        counts = (self.held > 0).sum(axis=0)
        last = self.held.shape[1] - 1
        for stratum in sorted(range(last + 1), key=lambda k: (k != last, counts[k])):
            for split in range(len(self.shares)):
                holders = np.flatnonzero(self.held[:, stratum] > 0)
                if (self.split_of[holders] == split).any():
                    continue
                spare = [group for group in holders.tolist() if self._can_spare(group)]
                if spare:
                    self.place(min(spare, key=self.find_costs()[:, split].__getitem__), split)

    def _can_spare(self, group: int) -> bool:
        """Whether another group of the same split shows each class that this one does."""
        others = self.split_of == self.split_of[group]
        others[group] = False
        return bool((self.held[others][:, self.held[group] > 0] > 0).any(axis=0).all())


def _check(labels: np.ndarray, names: Sequence[str], shares: Mapping[str, float], groups: np.ndarray) -> None:
    if not shares or not all(is_number(share) and share > 0 for share in shares.values()):
        raise InputError(f"shares must be numbers above 0, got {dict(shares)}; leave out a split that is not wanted")
    if abs(sum(shares.values()) - 1) > 1e-9:
        raise InputError(f"shares must add up to 1, got {dict(shares)}")
    if len(set(names)) != len(names) or len(labels) != len(names) or np.shape(groups) != (len(names),):
        raise InputError(
            f"expected a row of labels, a unique name and a group for each image, got {len(labels)} rows, "
            f"{len(set(names))} names and groups of shape {np.shape(groups)}"
        )
    if len(np.unique(groups)) < len(shares):
        raise InputError(
            f"{len(names)} images in {len(np.unique(groups))} groups cannot be divided into {len(shares)} splits; ask "
            "for fewer splits, or leave out the grouping"
        )


def _sort_groups(names: Sequence[str], groups: np.ndarray, seed: int) -> np.ndarray:
    """Groups by numbers in a random order: that of the smallest hash of their names."""
    tickets = [hashlib.sha256(f"{seed}\n{name}".encode()).digest() for name in names]
    order = np.array(sorted(range(len(names)), key=tickets.__getitem__))
    numbers = np.empty(len(names), dtype=np.int64)
    numbers[order] = number_groups(groups[order])
    return numbers
