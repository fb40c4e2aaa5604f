"""Corrected pictures as a data set in the folder layout, which ``tw-seg fit`` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tw_seg.errors import DataError
from tw_seg.files import make_next_free, write_text
from tw_seg.pictures import save_mask, save_picture
from tw_seg.types import BACKGROUND, IGNORE_INDEX

TABLE = "image_labels.csv"


class SavedPicture(NamedTuple):
    """A picture of the data set.

    Attributes:
        pixels: RGB, uint8, shape (h, w, 3).
        mask: Class ids, uint8, shape (h, w), 255 where nobody knows.
    """

    pixels: np.ndarray
    mask: np.ndarray


class CorrectionFolder:
    """A folder of its own for the pictures of one user.

    It is made by the first :meth:`add`, under the first of the names ``corrections``, ``corrections-2``, ... that is
    free; so users do not mix, and nothing that was there is changed.

    Args:
        wanted: The first of these names.
        classes: Class names, the background first.
    """

    def __init__(self, wanted: Path, classes: Sequence[str]) -> None:
        self._wanted = wanted
        self._classes = tuple(classes)
        self._path: Path | None = None
        self._rows: dict[str, list[str]] = {}

    def add(self, pictures: Mapping[str, SavedPicture]) -> Path:
        """Write pictures, over earlier ones of the same name; returns the folder.

        Raises:
            DataError: It cannot be written to.
        """
        try:
            self._path = self._path or make_next_free(self._wanted)
            replaced = [name for name in pictures if name in self._rows]
            if replaced:  # if this process is killed, no label contradicts a mask, old or new
                unknown = ["?"] * (len(self._classes) - BACKGROUND - 1)
                self._write_table({**self._rows, **{name: [name, *unknown] for name in replaced}})
            for name, one in pictures.items():
                save_picture(self._path / "images" / f"{name}.png", one.pixels)
                save_mask(self._path / "masks" / f"{name}.png", one.mask)
                self._rows[name] = [name, *describe_labels(one.mask, len(self._classes))]
            write_text(self._path / "classes.txt", "\n".join([*self._classes, ""]))
            self._write_table(self._rows)
        except OSError as error:
            raise DataError(
                f"{error.filename or self._wanted}: cannot write there ({error.strerror}); start the app with another "
                "--out, or free some space"
            ) from error
        return self._path

    def _write_table(self, rows: Mapping[str, Sequence[str]]) -> None:
        assert self._path is not None
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([["image", *self._classes[BACKGROUND + 1 :]], *rows.values()])
        write_text(self._path / TABLE, text.getvalue())


def describe_labels(mask: np.ndarray, num_classes: int) -> list[str]:
    """What a mask says of each class but the background, as the table has it: 1 or, where all pixels are known, 0.

    Example:
        >>> describe_labels(np.array([[0, 2]]), 3), describe_labels(np.array([[255, 2]]), 3)
        (['0', '1'], ['?', '1'])
    """
    absent = "?" if (mask == IGNORE_INDEX).any() else "0"
    shown = set(np.unique(mask).tolist())
    return ["1" if label in shown else absent for label in range(BACKGROUND + 1, num_classes)]
