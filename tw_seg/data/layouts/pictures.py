"""Pictures to predict, without labels: a file, a folder, a pattern or a list of them."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from tw_seg.data.layouts.file_names import IMAGE_SUFFIXES, show_names
from tw_seg.data.layouts.opening import turn_array
from tw_seg.data.layouts.pixels import RGB
from tw_seg.data.layouts.readers import make_unknown_labels, read_lines
from tw_seg.errors import DataError
from tw_seg.files import file_name
from tw_seg.types import Sample

LIST_SUFFIX = ".txt"
_TIFF_SUFFIXES = (".tif", ".tiff")
_GREY, _RGB = 1, 2  # values of TIFF's tag PhotometricInterpretation


class Pictures:
    """Picture files, which are opened when they are asked for; see `find_pictures` for what they may be.

    A TIFF with more pixels than Pillow reads without a warning is mapped into memory, if it is uncompressed.

    Args:
        files: Paths by name.
        classes: The class names, the background first, which say how many labels there are: none is known but the
            background's.

    Attributes:
        classes: The class names.
        names: The names.
        labels: float32, shape (N, K).
        files: The paths.
        pixels: How they are read; may be set.
    """

    pixels = RGB

    def __init__(self, files: dict[str, Path], classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.names = tuple(files)
        self.files = tuple(files.values())
        self.labels = make_unknown_labels(len(files), len(classes))
        self.has_mask = np.zeros(len(files), dtype=bool)

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """The picture at ``index``."""
        return self.load(index, mask=False)

    def load(self, index: int, *, mask: bool) -> Sample:
        """The picture at ``index``; there are no masks.

        Raises:
            DataError: If the file is unreadable.
        """
        path = self.files[index]
        mapped = self.pixels == RGB and path.suffix.lower() in _TIFF_SUFFIXES
        picture = map_large_tiff(path) if mapped else None
        image = self.pixels.read(path, report=lambda text: None) if picture is None else picture
        return Sample(image, None, self.labels[index], self.names[index])


def find_pictures(given: Sequence[str | Path], *, without: Path | None = None) -> dict[str, Path]:
    """Find picture files.

    Args:
        given: Each a picture; a folder (its ``images/`` if it has one, with all folders inside); a pattern such as
            ``"photos/*.jpg"``; or a ``.txt`` file that lists pictures, one path a line, from its own folder on. Hidden
            files and folders are left out.
        without: A folder whose files are left out, as they were written by a prediction.

    Returns:
        Paths by name, in order: the path from the folder on, without its suffix where that is clear.

    Raises:
        DataError: One of these is, or has, no picture, or two pictures would have one name in a folder of predictions.
    """
    found: dict[Path, str] = {}
    for files, start in _list_given([Path(one).expanduser() for one in given]):
        for file in files:
            if without is None or without.absolute() not in file.absolute().parents:
                found.setdefault(file, Path(os.path.relpath(file, start)).as_posix())
    _check_found(list(found), show_names(list(given)))
    stems = Counter(file_name(os.path.splitext(name)[0], "").casefold() for name in found.values())
    named: dict[str, Path] = {}
    taken: dict[str, Path] = {}
    for path, name in found.items():
        stem = os.path.splitext(name)[0]
        name = stem if stems[file_name(stem, "").casefold()] == 1 else name
        key = file_name(name, "").casefold()
        if key in taken:
            raise DataError(
                f"{path} and {taken[key]} would both be predicted as {file_name(name, '.png')!r}: rename one, or "
                "predict them into two folders"
            )
        taken[key] = named[name] = path
    return named


def _list_given(given: Sequence[Path]) -> Iterator[tuple[list[Path], Path]]:
    """Files that belong together, and the folder from which on they are named: the innermost that holds all."""
    single: list[Path] = []
    for path in given:
        if path.is_dir():
            folder = path / "images" if (path / "images").is_dir() else path
            yield _check_found(list(_walk(folder)), path), folder
        elif path.suffix.lower() == LIST_SUFFIX:
            lines = [line.strip() for line in read_lines(path)]
            files = [path.parent / line for line in lines if line and not line.startswith("#")]
            yield _check_found(files, path), _find_folder(files)
        elif os.path.lexists(path):
            single.append(path)
        elif glob.has_magic(str(path)):
            matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))  # follows no link to a folder
            files = [match for match in matches if _is_picture(match.name) and not match.is_dir()]
            files = [file for file in files if not _is_hidden(file.parent, path)]
            yield _check_found(files, path), _find_folder(files)
        else:
            raise DataError(f"{path}: there is no such file or folder; check the path")
    yield single, _find_folder(single)


def _check_found(files: list[Path], place: object) -> list[Path]:
    """The files, unless there is none."""
    if not files:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"{place}: there is no picture (files ending in {suffixes}); check the path")
    return files


def _find_folder(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([file.absolute().parent for file in files])) if files else Path()


def _walk(folder: Path) -> Iterator[Path]:
    """Pictures in a folder and in those inside it, sorted; links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot list the folder ({error.strerror}); check the path") from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if _is_picture(name))


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _is_hidden(folder: Path, pattern: Path) -> bool:
    """Whether a folder is hidden, or in a hidden one, of which a pattern does not speak."""
    return any(part.startswith(".") and part not in (".", "..", *pattern.parts) for part in folder.parts)


def map_large_tiff(path: Path) -> np.ndarray | None:
    """Map a TIFF with more pixels than Pillow reads without a warning into memory, as viewers show it.

    Args:
        path: The file.

    Returns:
        RGB, uint8, (H, W, 3), or ``None`` if the file is no such TIFF: it is read as any other picture, or refused
        there.

    Raises:
        DataError: It is one, but compressed, not of 8 bits, of several pages or truncated.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            limit, pixels = Image.MAX_IMAGE_PIXELS, page.imagewidth * page.imagelength
            if limit is None or pixels <= limit:
                return None
            fits = page.is_memmappable and page.dtype == np.uint8 and len(list(islice(tiff.pages, 2))) == 1
            fits = fits and page.planarconfig == 1 and page.photometric in (_GREY, _RGB)
            orientation = page.tags.valueof("Orientation", 1)
    except Exception:  # tifffile raises errors of every class on broken files; the reader says what is wrong
        return None
    if not fits:
        if pixels <= 2 * limit:  # Pillow warns, and reads it
            return None
        raise DataError(
            f"{path}: a TIFF with more than {2 * limit:,} pixels is read as a memory map, which needs one uncompressed "
            "page of grey or RGB values of 8 bits, side by side; convert it (tiffcp -c none), or cut it into tiles"
        )
    try:
        picture: np.ndarray = tifffile.memmap(path, mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read the image ({error}); it is truncated") from error
    picture = picture[..., :3] if picture.ndim == 3 else np.broadcast_to(picture[..., None], (*picture.shape, 3))
    return turn_array(picture, orientation)
