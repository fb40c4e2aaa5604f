"""The folder of predictions: what is done, what failed, and what it was made with, so that a second run completes it.

There are::

    prediction.json   the settings that all files were made with
    images.jsonl      a line for each picture that is done, added when its files are whole
    images.csv        the table: image-level probabilities and areas
    failures.csv      the pictures that could not be read, if there are any
    masks/, overlays/, heatmaps/, probabilities/
"""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tw_seg.errors import DataError, InputError
from tw_seg.files import remove_drafts, write_text, write_whole
from tw_seg.plain_files import parse_json, read_json
from tw_seg.predict.outputs import OUTPUTS, PIXELS, find_output
from tw_seg.types import Failure

SETTINGS = "prediction.json"
LINES = "images.jsonl"
TABLE = "images.csv"
FAILURES = "failures.csv"

_STAMP = "stamp"
"""Key of a line that says which version of a picture it is about; no column."""


class PredictionFolder:
    """A folder of predictions, new or to be completed.

    Args:
        path: The folder.
        settings: All that its files depend on, by names and numbers. A folder with other settings is refused.
        outputs: What is written of each picture, of `tw_seg.predict.outputs.OUTPUTS`.
        overwrite: Begin anew: remove what an earlier prediction left here.

    Raises:
        InputError: The folder holds predictions that were made with other settings, other files, or a damaged list.
        DataError: It cannot be written to.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], *, outputs: Sequence[str], overwrite: bool = False
    ) -> None:
        self.path = path
        self.outputs = tuple(outputs)
        self._rows: dict[str, dict[str, Any]] = {}
        settings = json.loads(json.dumps({**settings, "outputs": list(outputs)}))
        with name_errors(path):
            if overwrite:
                self._clear()
            if (path / SETTINGS).is_file():
                _compare_settings(path, _read_settings(path / SETTINGS), settings)
                self._rows = _read_lines(path / LINES)
                for row in self._rows.values():
                    self._check_columns(row)
            elif not overwrite and any((path / name).exists() for name in (LINES, TABLE, *OUTPUTS)):
                raise InputError(
                    f"{path} holds files that no {SETTINGS} speaks of: choose another folder, or --overwrite"
                )
            for output in OUTPUTS:
                remove_drafts(path / output)
            write_text(path / SETTINGS, json.dumps(settings, indent=2) + "\n")
            # A line that a killed process left in the middle is left out.
            write_text(path / LINES, "".join(json.dumps(row) + "\n" for row in self._rows.values()))

    def is_done(self, name: str, file: Path) -> bool:
        """Whether a picture's files are there, and its own file is what it was."""
        row = self._rows.get(name)
        if row is None or row[_STAMP] != stamp_file(file):
            return False
        has_mask = any(key.startswith(PIXELS) for key in row)  # other models leave no file
        return not has_mask or all(find_output(self.path, output, name).is_file() for output in self.outputs)

    def add(self, row: Mapping[str, Any], file: Path | None = None) -> None:
        """Write down that a picture is done.

        Args:
            row: Its row of the table.
            file: Its own file, if it has one.
        """
        row = {**row, _STAMP: None if file is None else stamp_file(file)}
        self._check_columns(row)
        with name_errors(self.path), open(self.path / LINES, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        self._rows[row["image"]] = row

    def finish(self, failures: Sequence[Failure] = ()) -> None:
        """Write the table of all pictures that are done, by name, and that of those that failed."""
        rows = [{key: row[key] for key in row if key != _STAMP} for _, row in sorted(self._rows.items())]
        with name_errors(self.path):
            write_table(self.path / TABLE, rows, list(rows[0]) if rows else ["image"])
            if failures:
                write_table(self.path / FAILURES, [failure._asdict() for failure in failures], Failure._fields)
            else:
                (self.path / FAILURES).unlink(missing_ok=True)

    def _check_columns(self, row: Mapping[str, Any]) -> None:
        """Refuse what cannot be one table: a line was damaged, or is of another program."""
        first = next(iter(self._rows.values()), row)
        if row.keys() != first.keys():
            raise InputError(
                f"{self.path / LINES}: the pictures {first['image']!r} and {row['image']!r} have other columns; choose "
                "another folder, or --overwrite to begin anew"
            )

    def _clear(self) -> None:
        for name in _read_lines(self.path / LINES):
            for output in OUTPUTS:
                find_output(self.path, output, name).unlink(missing_ok=True)
        for name in (SETTINGS, LINES, TABLE, FAILURES):
            (self.path / name).unlink(missing_ok=True)


@contextmanager
def name_errors(path: Path) -> Iterator[None]:
    """Say of an error of the operating system which file it is about and what to do.

    Raises:
        DataError: Instead of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another folder"
        raise DataError(
            f"{error.filename or path}: cannot write there ({error.strerror}); {remedy}: the same command goes on "
            "where this one stopped"
        ) from error


def stamp_file(file: Path) -> list[int] | None:
    """Size and time of a file, which say whether it is still the same; ``None`` if it is missing."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a CSV file, whole."""

    def write(draft: Path) -> None:
        with open(draft, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write)


def _read_settings(path: Path) -> Mapping[str, Any]:
    try:
        found = read_json(path)
    except ValueError as error:
        raise InputError(
            f"{path}: expected settings in JSON ({error}): choose another folder, or --overwrite"
        ) from error
    if not isinstance(found, Mapping):
        raise InputError(f"{path}: expected settings in JSON, found {type(found).__name__}: choose another folder")
    return found


def _compare_settings(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    other = [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]
    if other:
        known = "; ".join(f"{key}: {found.get(key)} there, {wanted.get(key)} now" for key in other)
        raise InputError(
            f"{path} holds predictions that were made otherwise ({known}): choose another folder, or --overwrite to "
            "begin anew"
        )


def _read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """The rows by name; the last line may be half of one, and what is no row was not written by us."""
    rows = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = parse_json(line)
                json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogateescape")  # as the table is written
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("image"), str) and _STAMP in row:
                rows[row["image"]] = row
    return rows
