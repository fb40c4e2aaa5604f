"""Read images, masks, class lists and label tables from disk, or say which file is wrong and what to do."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tw_seg.arguments import check_mask_ids
from tw_seg.errors import DataError
from tw_seg.types import BACKGROUND, IGNORE_INDEX

BACKGROUND_NAME = "background"

_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_INTEGER = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")


@dataclass(frozen=True)
class LabelTable:
    """The rows of an ``image_labels.csv``.

    Attributes:
        images: The column ``image``.
        splits: The column ``split``, or ``None`` if there is none.
        classes: The class names; index 0 is the background.
        labels: Multi-hot labels, float32, shape (N, K); the background column is 1.
    """

    images: tuple[str, ...]
    splits: tuple[str, ...] | None
    classes: tuple[str, ...]
    labels: np.ndarray


def read_image(path: Path) -> np.ndarray:
    """Read an 8-bit image as RGB, uint8, shape (H, W, 3); grey and palette images are converted.

    Raises:
        DataError: If the file is missing, unreadable, truncated or not 8-bit.
    """
    image = _open_image(path, "image")
    if image.mode not in _EIGHT_BIT:
        raise DataError(f"{path}: expected an 8-bit image, found mode {image.mode}; convert it to 8-bit grey or RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def read_mask(path: Path, *, num_classes: int, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read an integer or palette mask, uint8, shape (H, W), values 0 to ``num_classes - 1`` and 255.

    Args:
        path: A single-channel image file; of a palette image the indices count, not the colours.
        num_classes: Number of classes, background included.
        shape: Height and width of the image it belongs to, if they are to be compared.

    Raises:
        DataError: If the file is missing, unreadable, in colour, of another shape, or has a class id out of
            range.
    """
    image = _open_image(path, "mask")
    if image.mode not in _INTEGER:
        raise DataError(
            f"{path}: expected a mask of class ids (single-channel or palette PNG), found mode {image.mode}; "
            "write the class ids as an 8-bit single-channel PNG"
        )
    mask = np.array(image)
    if shape is not None and mask.shape != tuple(shape):
        raise DataError(
            f"{path}: the mask has {mask.shape[0]}x{mask.shape[1]} pixels (height x width), its image "
            f"{shape[0]}x{shape[1]}; they must be equal, so export the mask again at the image's size"
        )
    check_mask_ids(mask, num_classes, name=f"{path}: the mask", error=DataError)
    return mask.astype(np.uint8)


def read_classes(path: Path) -> tuple[str, ...]:
    """Read class names, one per line, the background first.

    Raises:
        DataError: If the file is missing or the list is no valid class list.
    """
    return check_classes([line.strip() for line in read_lines(path) if line.strip()], str(path))


def check_classes(classes: Sequence[str], source: str) -> tuple[str, ...]:
    """Return a class list as a tuple after checking it.

    Args:
        classes: The class names.
        source: Where they come from, for messages.

    Raises:
        DataError: If the first is not the background, one is twice there, or there are too few or too many.
    """
    if not classes or classes[BACKGROUND] != BACKGROUND_NAME:
        first = repr(classes[BACKGROUND]) if classes else "nothing"
        raise DataError(f"{source}: the first class must be {BACKGROUND_NAME!r}, found {first}; add it in front")
    if len(set(classes)) != len(classes):
        twice = sorted({name for name in classes if list(classes).count(name) > 1})
        raise DataError(f"{source}: class names must be unique, found twice: {', '.join(twice)}")
    if not 2 <= len(classes) <= IGNORE_INDEX:
        raise DataError(f"{source}: expected 2 to {IGNORE_INDEX} classes, background included, found {len(classes)}")
    return tuple(classes)


def read_lines(path: Path) -> list[str]:
    """Read a text file's lines.

    Raises:
        DataError: If the file is missing or no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()  # -sig: spreadsheets write a byte order mark
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text ({error}); save it as UTF-8") from error


def read_label_table(path: Path, classes: Sequence[str] | None = None) -> LabelTable:
    """Read ``image_labels.csv``: a column ``image``, optionally ``split``, and a 0/1 column for each class.

    Args:
        path: The file.
        classes: Class names, the background first (it needs no column); other columns are skipped. Default:
            every column but ``image`` and ``split`` is a class.

    Raises:
        DataError: If the file is missing, has no row, lacks a column, or a class column holds anything but 0
            and 1.
    """
    reader = csv.reader(read_lines(path))
    header = [column.strip() for column in next(reader, [])]
    if "image" not in header:
        raise DataError(f"{path}: expected a column 'image' in the first line, found {header}; add the header")
    if classes is None:
        others = [column for column in header if column not in ("image", "split", BACKGROUND_NAME)]
        classes = check_classes([BACKGROUND_NAME, *others], str(path))
    lacking = [name for name in classes[1:] if name not in header]
    if lacking:
        raise DataError(
            f"{path}: no column for the classes {', '.join(lacking)}; found {', '.join(header)}; add a 0/1 "
            "column for each class, or correct the class list"
        )
    columns = [header.index(name) for name in classes[1:]]
    rows: list[list[str]] = []
    labels: list[list[float]] = []
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise DataError(f"{path}, line {reader.line_num}: expected {len(header)} columns, found {len(row)}")
        rows.append([cell.strip() for cell in row])
        labels.append([1.0, *(_parse_zero_or_one(rows[-1][i], path, reader.line_num, header[i]) for i in columns)])
    if not rows:
        raise DataError(f"{path}: no row below the header; add one row per image")
    image, split = header.index("image"), header.index("split") if "split" in header else None
    return LabelTable(
        images=tuple(row[image] for row in rows),
        splits=None if split is None else tuple(row[split] for row in rows),
        classes=tuple(classes),
        labels=np.array(labels, dtype=np.float32),
    )


def check_unique(names: Sequence[str], path: Path) -> None:
    """Raise a `DataError` that names the first image that ``path`` lists twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path}: the image {name!r} is listed twice; remove one of the two lines")
        seen.add(name)


def _open_image(path: Path, what: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise DataError(f"{path}: the {what} file is missing; add it or take it off the list") from error
    # Pillow's decoders raise all of these on broken files.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot read the {what} ({error}); it is no {what} file or truncated") from error


def _parse_zero_or_one(text: str, path: Path, line: int, column: str) -> float:
    if text in ("0", "0.0", "1", "1.0"):
        return float(text)
    raise DataError(
        f"{path}, line {line}: expected 0 or 1 in the class column {column!r}, found {text!r}; correct it "
        "or say which columns are classes (classes.txt beside the file, or classes=)"
    )
