"""``tw-seg data budget``: the label budget of a data set, as the file that ``--data.budget_file`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentParser

from tw_seg.cli.data import SUBCOMMANDS
from tw_seg.cli.data.arguments import add_data_arguments, add_near_duplicates, find_pixels, find_source, group_images
from tw_seg.data.budget import check_budget, select_budget
from tw_seg.data.opening import open_split
from tw_seg.errors import BudgetError, InputError
from tw_seg.types import BACKGROUND

_DESCRIPTION = f"""tw-seg data budget: {SUBCOMMANDS["budget"].summary}. They are stratified by class and nested: 20
of a seed are part of its 100. Of near-duplicates, and of images with the same value in --group_column, one is chosen.
The file holds a hash; tw-seg fit --data.budget_file takes it. Example:
tw-seg data budget my_images --budget 20 --split_seed 0 --out label_budget.json"""


def run_budget(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: The arguments.

    Returns:
        Exit status: 0.

    Raises:
        TwSegError: For a wrong argument, a data set that cannot be read or has too few masks, a file that is there.
        SystemExit: After ``--help``, and for arguments that do not parse.
    """
    given = create_parser().parse_args(list(args))
    check_budget(given.budget, given.budget_share)
    path = Path(given.out)
    if path.exists() and not given.force:
        raise InputError(f"--out {path} is there already; give another name, or --force to replace it")
    root, layout, kwargs = find_source(given)
    data = open_split(root, layout, given.split, kwargs, pixels=find_pixels(given))
    rows = np.flatnonzero(getattr(data, "has_mask", np.ones(len(data), dtype=bool))).tolist()
    if not rows:
        raise BudgetError(f"{root}: no image of {given.split} has a mask, and a label budget needs at least one")
    groups, how = group_images(given, data, rows)
    labels, names = data.labels[rows], [data.names[row] for row in rows]
    budget = select_budget(
        labels,
        names,
        given.budget,
        budget_share=given.budget_share,
        split_seed=given.split_seed,
        groups=groups,
        grouped_by=how,
    )
    try:
        budget.save(path)
    except OSError as error:
        raise InputError(f"--out {path} cannot be written ({error.strerror})") from error
    chosen = labels[budget.indices(labels, names)][:, BACKGROUND + 1 :] > 0
    shown = ", ".join(f"{name} {count}" for name, count in zip(data.classes[1:], chosen.sum(axis=0), strict=True))
    number = len(rows) if groups is None else int(groups.max()) + 1
    print(f"{len(budget.names)} of {len(rows)} images with a mask, in {number} groups" + (f" ({how})" if how else ""))
    print(f"images of each class: {shown}")
    print(f"written: {path} ({budget.sha256[:12]})")
    return 0


def create_parser() -> ArgumentParser:
    """The parser of the command's arguments."""
    result = ArgumentParser("tw-seg data budget", description=_DESCRIPTION)
    add_data_arguments(result)
    add_near_duplicates(result)
    add = result.add_argument
    add("--budget", type=int, metavar="N", help="number of images; all that may be chosen if neither is given")
    add("--budget_share", type=float, metavar="SHARE", help="or the share of them, above 0 and up to 1")
    add("--split", default="train", metavar="NAME", help="the split to choose from")
    add("--split_seed", type=int, default=0, metavar="N", help="another seed is another choice")
    add("--out", default="label_budget.json", metavar="FILE", help="the file")
    add("--force", action="store_true", help="replace the file if it is there")
    return result
