"""Tables with a column ``image`` as they are, with whatever other columns they have."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tw_seg.data.layouts.file_names import normalize_name, show_names, strip_suffix
from tw_seg.data.layouts.readers import find_separator, read_lines, read_rows
from tw_seg.errors import DataError
from tw_seg.files import write_text

_MARK = "\ufeff"  # of bytes, which some spreadsheets need to read UTF-8


@dataclass(frozen=True)
class Table:
    """A table of a file.

    Attributes:
        path: The file.
        header: The names of the columns; those that the package names are written small.
        rows: The cells below it; empty lines are left out.
        separator: What stands between the cells.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    separator: str

    def find_column(self, name: str) -> int:
        """The position of a column.

        Raises:
            DataError: If there is no such column.
        """
        if name not in self.header:
            found = ", ".join(self.header)
            raise DataError(f"{self.path}: no column {name!r}; found {found}; correct the name or add it")
        return self.header.index(name)

    def find_rows(self, names: Sequence[str]) -> list[int]:
        """The rows of images, which the table lists with or without suffix.

        Raises:
            DataError: If an image has no row.
        """
        place = self.find_column("image")
        entries = [normalize_name(row[place]) for row in self.rows]
        row_of = {strip_suffix(entry): index for index, entry in enumerate(entries)}
        row_of |= {entry: index for index, entry in enumerate(entries)}
        lacking = [name for name in names if name not in row_of]
        if lacking:
            raise DataError(
                f"{self.path}: no row for {len(lacking)} of {len(names)} images ({show_names(lacking)}); add them"
            )
        return [row_of[name] for name in names]

    def set_column(self, name: str, values: list[str]) -> Table:
        """A table with other values in a column, which is added at the end if there is none."""
        new = name not in self.header
        header = [*self.header, name] if new else self.header
        place = len(self.header) if new else self.find_column(name)
        rows = [[*row[:place], value, *row[place + 1 :]] for row, value in zip(self.rows, values, strict=True)]
        return Table(self.path, header, rows, self.separator)

    def write(self) -> None:
        """Write the file, whole or not at all, with a byte order mark if it had one."""
        text = io.StringIO()
        csv.writer(text, delimiter=self.separator, lineterminator="\n").writerows([self.header, *self.rows])
        marked = self.path.is_file() and self.path.read_text(encoding="utf-8").startswith(_MARK)
        write_text(self.path, (_MARK if marked else "") + text.getvalue())


def read_table(path: Path) -> Table:
    """Read a table with commas, semicolons or tabs between the columns.

    Raises:
        DataError: If the file is missing or no text, lacks a column ``image``, or has a row of another length.
    """
    header, rows = read_rows(path)
    return Table(path, header, [row for _, row in rows], find_separator(read_lines(path)))
