"""The label budget: which training images may show their mask, chosen once and kept in a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tw_seg.arguments import is_number
from tw_seg.errors import BudgetError
from tw_seg.files import write_text
from tw_seg.plain_files import read_json

_KIND = "tw_seg label budget, version 2"
_FIELDS = {"kind", "budget", "budget_share", "split_seed", "fingerprint", "names", "sha256"}
_OPTIONAL = {"grouped_by"}  # absent where there is none, so that hashes stay what they were


@dataclass(frozen=True)
class LabelBudget:
    """The images whose masks a training run may use.

    Attributes:
        names: Sample names in the order in which they were chosen; a smaller budget is a prefix of a larger
            one.
        budget: The number of images that was asked for, ``"all"`` or ``None``.
        budget_share: The share of the images that was asked for, or ``None``; all images if neither was.
        split_seed: Seed of the choice, not of the training.
        fingerprint: `fingerprint_data` of the images that could be chosen.
        grouped_by: How the groups were made of which no two images are in the budget, such as ``"near-duplicates"``;
            ``None``: there were no groups.
    """

    names: tuple[str, ...]
    budget: int | Literal["all"] | None
    budget_share: float | None
    split_seed: int
    fingerprint: str
    grouped_by: str | None = None

    @property
    def sha256(self) -> str:
        """Hash over the content, as hexadecimal digits."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, whole or not at all; parent folders are made."""
        write_text(Path(path), json.dumps(self._content() | {"sha256": self.sha256}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LabelBudget:
        """Read a file that `save` wrote.

        Raises:
            BudgetError: If the file is missing, is no label budget, is empty, or was changed after it was
                written.
        """
        try:
            content = read_json(path)
        except OSError as error:
            raise BudgetError(
                f"{path}: cannot read the label budget file ({error.strerror}); check budget_file"
            ) from error
        except ValueError as error:
            raise BudgetError(f"{path}: expected a JSON label budget, found other content ({error})") from error
        if not isinstance(content, dict) or content.get("kind") != _KIND:
            raise BudgetError(f"{path}: expected a JSON object with kind {_KIND!r}; write one with LabelBudget.save")
        if set(content) - _OPTIONAL != _FIELDS:
            raise BudgetError(f"{path}: expected the fields {sorted(_FIELDS)}, found {sorted(content)}; write it again")
        names, budget, share = content["names"], content["budget"], content["budget_share"]
        valid = (
            isinstance(names, list)
            and all(isinstance(name, str) for name in names)
            and (budget is None or budget == "all" or _is_whole(budget))
            and (share is None or is_number(share))
            and _is_whole(content["split_seed"])
            and isinstance(content["fingerprint"], str)
            and isinstance(content.get("grouped_by", ""), str)
        )
        if not valid:
            raise BudgetError(f"{path}: a field has the wrong type; write the label budget again with LabelBudget.save")
        if not names or len(set(names)) != len(names):
            raise BudgetError(f"{path}: the label budget is empty or names an image twice; select a new one")
        grouped_by = content.get("grouped_by")
        chosen = cls(tuple(names), budget, share, content["split_seed"], content["fingerprint"], grouped_by)
        if chosen.sha256 != content["sha256"]:
            raise BudgetError(
                f"{path}: the content has the hash {chosen.sha256[:12]}..., but the file says "
                f"{str(content['sha256'])[:12]}...: it was changed after it was written; select a new budget"
            )
        return chosen

    def indices(self, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Where the budget's images are in a data set.

        Args:
            labels: Image-level labels of the images that may be chosen, shape (N, K).
            names: Their N names.

        Returns:
            Positions in ``names``, int64, sorted.

        Raises:
            BudgetError: If an image is not there or the data set is not the one the budget was selected from.
        """
        where = {name: index for index, name in enumerate(names)}
        unknown = [name for name in self.names if name not in where]
        if unknown:
            raise BudgetError(
                f"the label budget names {len(unknown)} images that have no mask in this data set, first "
                f"{unknown[0]!r}; use the data set and split it was selected from, or select a new budget"
            )
        found = fingerprint_data(labels, names)
        if found != self.fingerprint:
            raise BudgetError(
                f"the label budget was selected from a data set with fingerprint {self.fingerprint[:12]}..., "
                f"this one has {found[:12]}... (other images or image-level labels); select a new budget"
            )
        return np.array(sorted(where[name] for name in self.names), dtype=np.int64)

    def _content(self) -> dict[str, object]:
        return {
            "kind": _KIND,
            "budget": self.budget,
            "budget_share": self.budget_share,
            "split_seed": self.split_seed,
            "fingerprint": self.fingerprint,
            "names": list(self.names),
            **({} if self.grouped_by is None else {"grouped_by": self.grouped_by}),
        }


def fingerprint_data(labels: np.ndarray, names: Sequence[str]) -> str:
    """Hash over the sorted names and their image-level labels; the order of the images does not matter.

    Args:
        labels: Multi-hot labels, shape (N, K); NaN where nobody knows.
        names: The N sample names.
    """
    labels = np.asarray(labels)
    bits = np.where(np.isnan(labels), "?", np.where(labels > 0, "1", "0"))
    rows = sorted((name, "".join(row)) for name, row in zip(names, bits, strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def select_budget(
    labels: np.ndarray,
    names: Sequence[str],
    budget: int | Literal["all"] | None = None,
    *,
    budget_share: float | None = None,
    split_seed: int = 0,
    groups: np.ndarray | None = None,
    grouped_by: str = "groups",
) -> LabelBudget:
    """Choose the images whose masks may be used, stratified by class.

    One ordering of all images belongs to each ``split_seed``, and the budget is its beginning, so budgets are
    nested. The ordering covers every class with as few images as a greedy choice finds, then adds the image
    that keeps the class counts closest to the data set's: iterative stratification [1] with one image at a
    time instead of folds. It depends on names and labels only, not on the order of the data set or on a
    random number generator. An unknown label counts as one of a class that the image does not show, but images of which
    nothing is known to be shown are kept apart from those that certainly show none.

    [1] Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-label Data, ECML PKDD 2011.

    Args:
        labels: Image-level multi-hot labels of the images to choose from, shape (N, K); NaN where nobody knows, and
            column 0 (background) is ignored.
        names: The N sample names, unique.
        budget: Number of images; ``"all"`` or ``None`` for all, or as many as ``budget_share`` says.
        budget_share: Share of the N images (of the groups, if there are any) instead, above 0 and up to 1.
        split_seed: Seed of the choice.
        groups: The number of each image's group, shape (N,): of near-duplicates, one is chosen. ``None``: each image
            is a group.
        grouped_by: How the groups were made, for the file.

    Raises:
        BudgetError: If the budget is empty or larger than the data, or both a number and a share are given.

    Examples:
        >>> labels = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1]])
        >>> sorted(select_budget(labels, ["a", "b", "c"], 2).names)[-1]
        'c'
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or len(labels) != len(names):
        raise BudgetError(f"expected labels of shape ({len(names)}, K) for {len(names)} names, got {labels.shape}")
    if len(set(names)) != len(names):
        raise BudgetError("sample names are not unique; a label budget needs one name for each image")
    if groups is not None and np.shape(groups) != (len(names),):
        raise BudgetError(f"expected groups of shape ({len(names)},), one number for each name, got {np.shape(groups)}")
    group_of = np.arange(len(names)) if groups is None else np.unique(groups, return_inverse=True)[1].reshape(-1)
    available = len(names) if groups is None else int(group_of.max(initial=-1)) + 1
    count = _count_images(budget, budget_share, available, "groups" if groups is not None else "images")
    order = _order_images(_find_strata(labels[:, 1:]), names, split_seed, count=count, group_of=group_of)
    return LabelBudget(
        tuple(names[i] for i in order),
        budget,
        budget_share,
        split_seed,
        fingerprint_data(labels, names),
        None if groups is None else grouped_by,
    )


def check_budget(budget: int | Literal["all"] | None, budget_share: float | None) -> None:
    """Check that a number of images and a share are what they say, and not both given.

    Raises:
        BudgetError: Says which is wrong.
    """
    if budget is not None and budget_share is not None:
        raise BudgetError(f"give a budget ({budget!r}) or a budget_share ({budget_share!r}), not both")
    if budget is not None and budget != "all":
        if not _is_whole(budget):
            raise BudgetError(
                f"budget must be a whole number of images or 'all', got {budget!r}; a share is a budget_share"
            )
        if budget < 1:
            raise BudgetError(f"the label budget is empty ({budget} images); ask for at least 1")
    if budget_share is not None and not (is_number(budget_share) and 0 < budget_share <= 1):
        raise BudgetError(
            f"budget_share must be a share above 0 and up to 1, got {budget_share!r}; a number of images is a budget"
        )


def _count_images(budget: int | Literal["all"] | None, budget_share: float | None, available: int, noun: str) -> int:
    check_budget(budget, budget_share)
    if available == 0:
        raise BudgetError("no image has a mask; a label budget needs at least one")
    if budget is not None and budget != "all":
        if budget > available:
            raise BudgetError(
                f"the label budget asks for {budget} {noun}, but only {available} have a mask; ask for at "
                f"most {available}"
            )
        return budget
    if budget_share is None:
        return available
    count = int(budget_share * available + 0.5)
    if count == 0:
        raise BudgetError(
            f"the label budget is empty: a share of {budget_share!r} of {available} {noun} rounds to none; ask for more"
        )
    return count


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _find_strata(labels: np.ndarray) -> np.ndarray:
    """What each image counts for, bool: its classes, and as the last two, that it shows none, or none that is known."""
    shown = labels > 0
    none, unknown = ~shown.any(axis=1), np.isnan(labels).any(axis=1)
    return np.column_stack([shown, none & ~unknown, none & unknown])


def _order_images(
    strata: np.ndarray, names: Sequence[str], split_seed: int, *, count: int, group_of: np.ndarray
) -> list[int]:
    """The first ``count`` images of the ordering; ``strata`` is that of `_find_strata`.

    Of a group of images one is chosen; the others are passed over.
    """
    # Hashes instead of a generator's stream: the same choice whatever the numpy version and the order of the
    # files.
    ticket = [hashlib.sha256(f"{split_seed}\n{name}".encode()).digest() for name in names]
    by_ticket = sorted(range(len(names)), key=ticket.__getitem__)

    # Images with the same labels are equal to everything but the ticket, so the choice is among label
    # patterns. Images without any object are classes of their own for the proportions (not for the coverage).
    patterns, pattern_of = np.unique(strata, axis=0, return_inverse=True)
    patterns, pattern_of = patterns.astype(np.int64), pattern_of.reshape(-1)
    queues: list[deque[tuple[int, int]]] = [deque() for _ in patterns]
    for turn, image in enumerate(by_ticket):
        queues[pattern_of[image]].append((turn, image))
    taken = np.zeros(len(names), dtype=bool)
    patterns_of: list[set[int]] = [set() for _ in names]
    for image, group in enumerate(group_of.tolist()):
        patterns_of[group].add(int(pattern_of[image]))
    used_up = len(names)  # a turn that no image has
    turns = np.array([queue[0][0] for queue in queues])

    # Cost of a pattern: sum over classes of weight * (chosen - expected)^2 after adding it, less what all
    # patterns share. Rare classes weigh more. All in integers (multiplied by N), so that no machine rounds
    # differently.
    total = len(names)
    sizes = strata.sum(axis=0)
    weights = -(-total // np.maximum(sizes, 1))
    weighted = np.asfortranarray(patterns * weights)  # read by column below
    drift = 2 * weighted @ sizes  # what every further image adds to the shortage of a pattern's classes
    cost = total * weighted.sum(axis=1) - drift
    missing = sizes > 0
    missing[-2:] = False

    order: list[int] = []
    while len(order) < count:
        candidates = turns < used_up
        missing &= patterns[candidates].any(axis=0)  # what only images of groups show that are taken is given up
        if missing.any():
            gain = np.where(candidates, patterns[:, missing].sum(axis=1), -1)
            candidates = gain == gain.max()
        else:
            candidates &= cost == cost[candidates].min()
        chosen = int(np.where(candidates, turns, used_up).argmin())
        order.append(queues[chosen].popleft()[1])
        taken[group_of[order[-1]]] = True
        for pattern in {chosen, *patterns_of[group_of[order[-1]]]}:
            while queues[pattern] and taken[group_of[queues[pattern][0][1]]]:
                queues[pattern].popleft()
            turns[pattern] = queues[pattern][0][0] if queues[pattern] else used_up
        cost += 2 * total * weighted[:, patterns[chosen] > 0].sum(axis=1) - drift
        missing &= patterns[chosen] == 0
    return order
