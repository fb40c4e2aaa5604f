"""Open image files with Pillow: one page, turned as viewers turn it; every error names the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image

from tw_seg.errors import DataError

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What a viewer does with the stored pixels, by the value of the EXIF tag "orientation"."""
SWAP_SIDES = (5, 6, 7, 8)
_TURNED_ARRAYS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}

_KIND_OF_PAGE, _CHANNELS = 254, 277  # TIFF's tags NewSubfileType, a set of bits, and SamplesPerPixel
_REDUCED, _TRANSPARENCY = 1, 4  # kinds: a smaller version of another page, its transparency

_T = TypeVar("_T")


def turn_array(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (H, W, ...) as a viewer turns them, by the value of the tag: a view, so a memory map stays one."""
    return _TURNED_ARRAYS[orientation](pixels) if orientation in _TURNED_ARRAYS else pixels


def open_image(path: Path, what: str) -> Image.Image:
    """The image in a file, turned as its EXIF tag "orientation" says.

    Args:
        path: The file.
        what: What it holds, for messages.

    Raises:
        DataError: As `read_file`.
    """

    def load(image: Image.Image) -> Image.Image:
        image.load()
        turn = TURNS.get(find_orientation(image))
        return image if turn is None else image.transpose(turn)

    return read_file(path, what, load)


def read_file(path: Path, what: str, read: Callable[[Image.Image], _T]) -> _T:
    """What ``read`` makes of an opened file.

    Raises:
        DataError: If the file is missing, unreadable or truncated, has too many pixels, or several pages.
    """
    try:
        # From a file, not from its name: Pillow 13 maps a grey TIFF of that name with its turned size.
        with open(path, "rb") as file, Image.open(file) as image:
            pages = _count_pages(image)
            if pages == 1:
                return read(image)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the {what} file is missing; add it or take it off the list") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{path}: the {what} has more pixels than Pillow reads ({error}); cut it into tiles, or, if you trust the "
            "file and have the memory, raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except MemoryError as error:
        raise DataError(f"{path}: the {what} does not fit into the memory; cut it into tiles") from error
    except Exception as error:  # Pillow's decoders raise errors of every class on broken files
        reason = re.sub(r" <_io\.\w+ name=.*>", "", str(error))  # Pillow's name of what it was given
        raise DataError(f"{path}: cannot read the {what} ({reason}); it is no {what} file or truncated") from error
    raise DataError(
        f"{path}: expected one {what} in the file, found {pages} pages or frames; save each as a file of its own"
    )


def find_orientation(image: Image.Image) -> int:
    """The EXIF tag "orientation"; 1, as stored, where there is none or the EXIF data is broken, as viewers do."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of every class, as above
        return 1


def convert_to_rgb(image: Image.Image) -> tuple[Image.Image, str]:
    """An 8-bit image as RGB, and what that leaves out of it; empty if nothing."""
    channels, bands = _find_tag(image, _CHANNELS, 1), len(image.getbands())
    if channels > bands:  # unspecified ones, such as infrared, which Pillow skips
        return image.convert("RGB"), f"{channels} channels, of which the first {bands} are read"
    if not image.has_transparency_data:
        return image.convert("RGB"), ""
    image = image.convert("RGBA")
    lowest, _ = image.getchannel("A").getextrema()
    return image.convert("RGB"), "" if lowest == 255 else (
        "transparent pixels; the colours that are stored under them count, which no viewer shows: put it on a "
        "background of your choice"
    )


def _count_pages(image: Image.Image) -> int:
    """Pages or frames that a viewer shows one after the other; small or coded versions of a page are none."""
    count: int = getattr(image, "n_frames", 1)
    if count == 1 or image.format == "MPO":  # a photograph, and what the camera makes of it
        return 1
    if image.format != "TIFF":
        return count
    kinds = []
    for page in range(count):
        image.seek(page)
        kinds.append(_find_tag(image, _KIND_OF_PAGE, 0))
    image.seek(0)
    return max(1, sum(not kind & (_REDUCED | _TRANSPARENCY) for kind in kinds))


def _find_tag(image: Image.Image, tag: int, default: int) -> int:
    """A tag of a TIFF's present page."""
    return int(getattr(image, "tag_v2", {}).get(tag, default))
