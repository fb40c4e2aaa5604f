"""How the pixels of image files become arrays: as RGB of 8 bits, or with any channels and one scale for all images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image

from tw_seg.arguments import check_counts, is_number
from tw_seg.data.layouts.opening import SWAP_SIDES, TURNS, find_orientation, open_image, read_file, turn_array
from tw_seg.data.layouts.readers import read_image, read_size
from tw_seg.errors import DataError, InputError

_TIFF_SUFFIXES = (".tif", ".tiff")
_PALETTE, _CMYK, _YCBCR = 3, 5, 6  # values of TIFF's tag PhotometricInterpretation that Pillow turns into RGB
_MOST_PAGES = 100  # that are counted: of a broken file they may lead back to each other, and tifffile goes on for ever
_MOST_BYTES = 4 * 2**30  # of a page, whose channels and depth a file only claims
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as Pillow weighs colours

Report = Callable[[str], None]


@dataclass(frozen=True)
class PixelFormat:
    """What images are read as.

    Attributes:
        channels: Number of channels: 1 is grey, 3 RGB, 4 RGB with a further one (transparency, infrared), any other
            number as the files have it (TIFF).
        value_range: The values that become 0 and 1, the same for all images, as ``(0, 65535)``; what lies outside
            becomes 0 or 1. ``None``: images have 8 bits.

    Raises:
        InputError: For a number below 1, or a range that is none.
    """

    channels: int = 3
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_counts(1, channels=self.channels)
        limits = self.value_range
        if limits is not None and (len(limits) != 2 or not all(map(is_number, limits)) or not limits[0] < limits[1]):
            raise InputError(f"value_range must be two numbers, the smaller first, such as [0, 65535], got {limits!r}")

    def read(self, path: Path, *, report: Report = warnings.warn) -> np.ndarray:
        """Read an image as viewers show it, turned as its EXIF tag says.

        Args:
            path: The file.
            report: Is told what is left out, or that colours become grey.

        Returns:
            Shape (H, W, C), uint8, or with a ``value_range`` float32 from 0 to 1.

        Raises:
            DataError: If the file is missing, unreadable, truncated, deeper than 8 bits without a ``value_range``, or
                has other channels or several pages.
        """
        if self == RGB:
            return read_image(path, report=report)
        if path.suffix.lower() in _TIFF_SUFFIXES:
            stored = _read_tiff(path)
        elif path.suffix.lower() == ".png" and self.value_range is not None:
            stored = _read_png(path)
        else:
            stored = _read_with_pillow(path)
        return self._scale(self._choose_channels(stored, path, report), path)

    def read_size(self, path: Path) -> tuple[tuple[int, int], bool]:
        """Height and width as viewers show them, and whether an EXIF tag turns the image at the same size.

        Raises:
            DataError: If the file is missing or unreadable.
        """
        if self == RGB or path.suffix.lower() not in _TIFF_SUFFIXES:
            return read_size(path)

        def read(page: Any) -> tuple[tuple[int, int], bool]:
            height, width, tag = page.imagelength, page.imagewidth, _find_orientation(page)
            swapped = tag in SWAP_SIDES
            return ((width, height) if swapped else (height, width)), tag in TURNS and (height == width or not swapped)

        return _open_tiff(path, read)

    def _choose_channels(self, stored: np.ndarray, path: Path, report: Report) -> np.ndarray:
        found = stored.shape[2]
        if found == self.channels:
            return stored
        if found in (2, 4) and self.channels in (1, 3):
            if not _is_opaque(stored[..., -1]):
                report(f"{path}: the image has {found} channels, of which the first {found - 1} are read")
            stored = stored[..., :-1]
        if stored.shape[2] == 3 and self.channels == 1:
            if (stored != stored[..., :1]).any():
                report(f"{path}: the image has colours, which are read as grey")
            grey = stored.astype(np.float32) @ _GREY
            return (np.round(grey) if stored.dtype.kind in "ui" else grey).astype(stored.dtype)[..., None]
        if stored.shape[2] == 1 and self.channels == 3:
            return np.repeat(stored, 3, axis=2)
        if stored.shape[2] == self.channels:
            return stored
        raise DataError(
            f"{path}: expected {self.channels} channels, found {found}; set channels={found} (data.channels) if all "
            "images have as many, or convert this one"
        )

    def _scale(self, image: np.ndarray, path: Path) -> np.ndarray:
        if self.value_range is None:
            if image.dtype != np.uint8:
                raise DataError(
                    f"{path}: expected an 8-bit image, found {image.dtype}; give value_range= (data.value_range), the "
                    f"values that become 0 and 1 in all images of the data set, such as {_suggest_range(image)}"
                )
            return np.ascontiguousarray(image)
        first, last = self.value_range
        scaled = ((image.astype(np.float32) - first) / (last - first)).clip(0, 1).astype(np.float32)
        if not np.isfinite(scaled).all():
            raise DataError(f"{path}: the image has values that are no numbers (NaN); correct it or leave it out")
        return scaled


RGB = PixelFormat()
"""What images are read as unless something else is said."""


def set_pixels(data: Any, pixels: PixelFormat, layout: str) -> Any:
    """Say to a data set how its image files are read.

    Args:
        data: The data set, changed in place if its images are files.
        pixels: How they are read.
        layout: Its name, for the message.

    Returns:
        The data set.

    Raises:
        InputError: Its images are no files, and it makes them in RGB of 8 bits only.
    """
    if hasattr(data, "pixels"):
        data.pixels = pixels
    elif pixels != RGB:
        raise InputError(
            f"channels, value_range: {layout!r} makes its images itself, in RGB of 8 bits; leave them out, got "
            f"{pixels.channels} and {pixels.value_range}"
        )
    return data


def _is_opaque(alpha: np.ndarray) -> bool:
    return bool((alpha == (np.iinfo(alpha.dtype).max if alpha.dtype.kind in "ui" else 1)).all())


def _suggest_range(image: np.ndarray) -> str:
    return f"[0, {np.iinfo(image.dtype).max}]" if image.dtype.kind in "ui" else "[0.0, 1.0]"


def _read_with_pillow(path: Path) -> np.ndarray:
    image = open_image(path, "image")
    if image.mode in ("P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    pixels = np.array(image.convert("L") if image.mode == "1" else image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _read_png(path: Path) -> np.ndarray:
    """A PNG with all its bits: of 16-bit colours Pillow keeps 8."""
    orientation = read_file(path, "image", lambda image: (image.load(), find_orientation(image))[1])
    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return _read_with_pillow(path)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.shape[2] >= 3:  # OpenCV's colours are blue, green and red
        pixels = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    return turn_array(pixels, orientation)


def _read_tiff(path: Path) -> np.ndarray:
    def read(page: Any) -> np.ndarray | None:
        if page.photometric in (_PALETTE, _CMYK, _YCBCR):
            return None
        pixels = page.asarray()
        if pixels.ndim == 3 and page.planarconfig == 2 and page.samplesperpixel > 1:
            pixels = np.moveaxis(pixels, 0, 2)
        if pixels.ndim not in (2, 3) or pixels.shape[:2] != (page.imagelength, page.imagewidth) or not pixels.size:
            raise ValueError(f"pixels of shape {pixels.shape}")
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * 255
        if page.photometric == 0 and pixels.dtype.kind == "u":  # "white is zero"
            pixels = np.iinfo(pixels.dtype).max - pixels
        return turn_array(pixels if pixels.ndim == 3 else pixels[..., None], _find_orientation(page))

    pixels = _open_tiff(path, read)
    return _read_with_pillow(path) if pixels is None else pixels


def _open_tiff(path: Path, read: Callable[[Any], Any]) -> Any:
    """What ``read`` makes of the only page of a TIFF."""
    try:
        with tifffile.TiffFile(path) as tiff:
            walked = list(islice(tiff.pages, _MOST_PAGES))
            pages = [page for page in walked if not getattr(page, "subfiletype", 0) & 5]  # versions of another page
            if len(pages) <= 1:
                page = tiff.pages.first
                if Image.MAX_IMAGE_PIXELS and page.imagewidth * page.imagelength > 2 * Image.MAX_IMAGE_PIXELS:
                    raise MemoryError(f"{page.imagelength}x{page.imagewidth} pixels")
                if page.nbytes > _MOST_BYTES:
                    raise MemoryError(f"{page.nbytes:,} bytes")
                return read(page)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the image file is missing; add it or take it off the list") from error
    except MemoryError as error:
        raise DataError(f"{path}: the image does not fit into the memory ({error}); cut it into tiles") from error
    except Exception as error:  # tifffile raises errors of every class on broken files
        codec = "; pip install imagecodecs, or save it without compression" if "imagecodecs" in str(error) else ""
        raise DataError(f"{path}: cannot read the image ({error}); it is no image file or truncated{codec}") from error
    found = f"{len(pages)}{' or more' if len(walked) == _MOST_PAGES else ''} pages"
    raise DataError(f"{path}: expected one image in the file, found {found}; save each as a file of its own")


def _find_orientation(page: Any) -> int:
    return int(page.tags.valueof("Orientation", 1))
