"""What to do next with a data set: the commands that divide it, and that choose a label budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tw_seg.data.budget import select_budget
from tw_seg.data.check.findings import Finding
from tw_seg.data.check.problems import TRAIN
from tw_seg.data.dataset import SegmentationData
from tw_seg.data.opening import ALL
from tw_seg.types import BACKGROUND

_ENOUGH = 4  # masks of each class, where there are as many


def suggest_split(splits: Mapping[str, SegmentationData], findings: Sequence[Finding], path: str) -> str | None:
    """The command that makes a split, or one without what was found; ``None`` if there is nothing to improve."""
    force = " --force"
    if list(splits) == [ALL]:
        reason, force = "the data set is not divided", ""
    elif TRAIN not in splits or len(splits) < 2:
        reason = f"there are only the splits {', '.join(splits)}"
    elif any(finding.kind in ("duplicates", "group") for finding in findings):
        reason = "groups are in several splits"
    else:
        return None
    test = "" if list(splits) != [ALL] and "test" not in splits else " --test_share 0.2"
    return f"{reason}: tw-seg data split {path} --val_share 0.2{test}{force}"


def suggest_budget(data: SegmentationData, rows: Sequence[int], groups: np.ndarray, path: str) -> str | None:
    """The command that chooses a label budget in which each class has a few masks; ``None`` without any mask.

    Args:
        data: The training images.
        rows: Those with a mask.
        groups: The groups of these.
        path: Where the data set is.
    """
    if not rows:
        return None
    labels, names = data.labels[list(rows)], [data.names[row] for row in rows]
    row_of = {name: row for row, name in enumerate(names)}
    order = [row_of[name] for name in select_budget(labels, names, groups=groups).names]
    counts = (labels[order][:, BACKGROUND + 1 :] > 0).cumsum(axis=0)
    enough = (counts >= np.minimum(-(-counts[-1] // 2), _ENOUGH)).all(axis=1)
    number = int(enough.argmax()) + 1
    return (
        f"{number} of {len(order)} masks show each class {_ENOUGH} times, or half as often as all do: "
        f"tw-seg data budget {path} --budget {number} --out label_budget.json"
    )
