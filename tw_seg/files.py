"""Files that are written whole, under names that are free and safe."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from tw_seg.printable import is_control

_LONGEST = 200  # bytes of a file name before its suffix; file systems take 255, and a draft needs some of them


class Draft:
    """A file beside the one that it becomes, so that readers never see half of that one.

    Args:
        path: The file; its folders are made.

    Attributes:
        path: The draft, to be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._target = path

    def keep(self) -> None:
        """Give the draft the name of the file."""
        os.replace(self.path, self._target)

    def discard(self) -> None:
        """Remove the draft, if it is still one."""
        self.path.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that readers never see half of it: ``write`` fills a draft beside it, which is then renamed.

    Args:
        path: The file; its folders are made.
        write: Called with the draft's path. If it raises, the draft is removed and an old file stays as it was.

    Raises:
        OSError: As ``write`` raised it, with the name of the file instead of the draft's.
    """
    try:
        draft = Draft(path)
        try:
            write(draft.path)
            draft.keep()
        finally:
            draft.discard()
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None
        raise


def remove_drafts(folder: Path) -> None:
    """Remove the drafts in a folder that a killed process left; no other may be writing there."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all; see `write_whole`."""
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def next_free(path: Path) -> Path:
    """The path itself, or the first of ``name-2``, ``name-3`` ... (before a suffix) that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def make_next_free(path: Path) -> Path:
    """Make the folder that `next_free` names; no two processes make the same."""
    while True:
        free = next_free(path)
        try:
            free.mkdir(parents=True)
        except FileExistsError:
            continue  # another process was faster
        return free


def file_name(name: str, suffix: str) -> str:
    """A sample's name as a file name: folders in it become part of the name, control characters underscores.

    What is longer than a file name may be is cut, and told apart by a hash.

    Examples:
        >>> file_name("street/0001", ".png")
        'street__0001.png'
    """
    stem = name.replace("/", "__").replace("\\", "__")
    stem = "".join("_" if is_control(letter) and not "\ud800" <= letter <= "\udfff" else letter for letter in stem)
    encoded = stem.encode(errors="surrogatepass")
    if len(encoded) <= _LONGEST:
        return stem + suffix
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[: _LONGEST - 13].decode(errors='ignore')}-{digest}{suffix}"
