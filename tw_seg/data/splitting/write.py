"""Write a split where a layout reads it from: a column of the table, or a list for each split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tw_seg.data.layouts.tables import read_table
from tw_seg.errors import InputError
from tw_seg.files import write_text

_FORCE = "--force replaces them"


def list_taken(root: Path, layout: str) -> tuple[str, ...]:
    """The splits that are there already.

    Raises:
        DataError: If the table of a folder cannot be read.
    """
    if layout == "folder":
        table = read_table(root / "image_labels.csv")
        if "split" not in table.header:
            return ()
        place = table.find_column("split")
        return tuple(dict.fromkeys(row[place] for row in table.rows if row[place]))
    return tuple(sorted(path.stem for path in find_list_folder(root, layout).glob("*.txt")))


def find_list_folder(root: Path, layout: str) -> Path:
    """Where the lists of a layout are that has no table: ``split_by: {files: "splits/{split}.txt"}`` reads them."""
    return root / "ImageSets" / "Segmentation" if layout == "voc" else root / "splits"


def check_free(root: Path, layout: str, splits: Sequence[str], *, keep: Sequence[str] = ()) -> None:
    """Check that no split would be replaced.

    Args:
        root: Where the data set is.
        layout: Its layout.
        splits: The splits that would be written.
        keep: Splits that stay as they are.

    Raises:
        InputError: If one of them is there.
        DataError: If the table of a folder cannot be read.
    """
    taken = [name for name in list_taken(root, layout) if name not in keep and (layout == "folder" or name in splits)]
    if taken:
        place = root / "image_labels.csv" if layout == "folder" else find_list_folder(root, layout)
        raise InputError(f"{place}: the splits {', '.join(taken)} are there already; {_FORCE}")


def write_splits(root: Path, layout: str, names: Sequence[str], splits: np.ndarray) -> list[Path]:
    """Write the split of each image, replacing what is there.

    Args:
        root: Where the data set is.
        layout: Its layout: of ``folder`` the column ``split`` is written, others of its table stay as they are; of
            ``voc``, ``ImageSets/Segmentation/SPLIT.txt``; of any other, ``splits/SPLIT.txt``.
        names: Sample names.
        splits: The split of each, shape (N,). What is not named keeps its split.

    Returns:
        The files that were written, each whole or not at all.

    Raises:
        InputError: If a file cannot be written.
        DataError: If the table cannot be read, or lacks an image.
    """
    try:
        if layout == "folder":
            return [_write_column(root / "image_labels.csv", names, splits)]
        return _write_lists(find_list_folder(root, layout), names, splits)
    except OSError as error:
        raise InputError(f"{root}: the split cannot be written ({error.strerror}): {error.filename}") from error


def _write_column(path: Path, names: Sequence[str], splits: np.ndarray) -> Path:
    table = read_table(path)
    known = "split" in table.header
    values = [row[table.find_column("split")] if known else "" for row in table.rows]
    for row, split in zip(table.find_rows(names), splits.tolist(), strict=True):
        values[row] = split
    table.set_column("split", values).write()
    return path


def _write_lists(folder: Path, names: Sequence[str], splits: np.ndarray) -> list[Path]:
    paths = []
    for split in dict.fromkeys(splits.tolist()):
        chosen = [name for name, found in zip(names, splits.tolist(), strict=True) if found == split]
        paths.append(folder / f"{split}.txt")
        write_text(paths[-1], "\n".join(chosen) + "\n")
    return paths
