"""What can be used of a list whose entries may be wrong: the first error stops, or all are told and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from tw_seg.errors import DataError

OnError = Callable[[DataError], None]
"""Is called with each error that concerns a single image or mask; if it returns, that one is left out."""

_Entry = TypeVar("_Entry")
_Found = TypeVar("_Found")


def raise_error(error: DataError) -> None:
    """An `OnError` that leaves nothing out."""
    raise error


def find_usable(
    entries: Iterable[_Entry], find: Callable[[_Entry], _Found], on_error: OnError
) -> tuple[list[_Entry], list[_Found]]:
    """The entries for which ``find`` raises no `DataError`, and what it returned for each."""
    usable, found = [], []
    for entry in entries:
        try:
            found.append(find(entry))
        except DataError as error:
            on_error(error)
        else:
            usable.append(entry)
    return usable, found


def list_unique(names: Sequence[str], path: Path, on_error: OnError) -> list[int]:
    """Where each name is for the first time; a name that ``path`` lists again is an error."""
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            on_error(DataError(f"{path}: the image {name!r} is listed twice; remove one of the two lines"))
    return list(first.values())
