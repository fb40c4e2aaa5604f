"""Groups by a column of a table, such as the patient, the video or the tile that an image belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tw_seg.data.layouts.tables import read_table


def group_by_column(path: Path, column: str, names: Sequence[str]) -> np.ndarray:
    """Groups of images that have the same value in a column.

    Args:
        path: A table with a column ``image``, such as ``image_labels.csv``.
        column: The name of the column; an image without a value there is a group of its own.
        names: Sample names, with or without suffix in the table.

    Returns:
        The number of each image's group, int64, shape (N,); groups are numbered in the order of their first images.

    Raises:
        DataError: If the table cannot be read, lacks the column, or lacks an image.
    """
    table = read_table(path)
    place = table.find_column(column)
    values = [table.rows[row][place] for row in table.find_rows(names)]
    keys = [(value, "" if value else name) for value, name in zip(values, names, strict=True)]
    number: dict[tuple[str, str], int] = {}
    return np.array([number.setdefault(key, len(number)) for key in keys], dtype=np.int64)
