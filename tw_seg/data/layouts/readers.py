"""Read images, masks, class lists and label tables from disk, or say which file is wrong and what to do."""

from __future__ import annotations

import csv
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tw_seg.arguments import check_class_count, check_class_names, check_mask_ids
from tw_seg.data.layouts.file_names import normalize_name, strip_suffix
from tw_seg.data.layouts.opening import SWAP_SIDES, TURNS, convert_to_rgb, find_orientation, open_image, read_file
from tw_seg.data.layouts.usable import list_unique, raise_error
from tw_seg.errors import DataError, MaskIdError, MaskSizeError
from tw_seg.types import BACKGROUND

BACKGROUND_NAME = "background"

_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_INTEGER = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B")

_SEPARATORS = (",", ";", "\t")
_NAMED = ("image", "split", "annotated", BACKGROUND_NAME)  # columns that have a meaning of their own
_UNKNOWN = ("", "?")


@dataclass(frozen=True)
class LabelTable:
    """The rows of an ``image_labels.csv``.

    Attributes:
        images: The column ``image``, in the Unicode form NFC.
        splits: The column ``split``, or ``None`` if there is none.
        classes: The class names; index 0 is the background.
        labels: Multi-hot labels, float32, shape (N, K); NaN where nobody knows, and 1 for the background.
        annotated: Which classes were annotated in the masks of each image, bool, shape (N, K), from the column
            ``annotated``; ``None`` if there is none: all.
    """

    images: tuple[str, ...]
    splits: tuple[str, ...] | None
    classes: tuple[str, ...]
    labels: np.ndarray
    annotated: np.ndarray | None = None


def read_image(path: Path, *, report: Callable[[str], None] = warnings.warn) -> np.ndarray:
    """Read an 8-bit image as viewers show it, as RGB, uint8, shape (H, W, 3).

    Grey, palette and CMYK images are converted, transparency is left out (the colours under it count), 16-bit colours
    lose their lower 8 bits, and an image is turned as its EXIF tag "orientation" says.

    Args:
        path: The file.
        report: Is told what is left out: transparency, or a fourth channel.

    Raises:
        DataError: If the file is missing, unreadable, truncated or not 8-bit, or has several pages.
    """
    image = open_image(path, "image")
    if image.mode not in _EIGHT_BIT:
        raise DataError(
            f"{path}: expected an 8-bit image, found mode {image.mode}; give a value_range (data.value_range), the "
            "values that become 0 and 1 in all images of the data set, such as [0, 65535], or convert all to 8 bits so"
        )
    rgb, left_out = convert_to_rgb(image)
    if left_out:
        report(f"{path}: the image has {left_out}")
    return np.array(rgb)


def read_mask(path: Path, *, num_classes: int, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read an integer or palette mask as viewers show it, uint8, shape (H, W), values 0 to ``num_classes - 1`` and 255.

    Args:
        path: A single-channel image file; of a palette image the indices count, not the colours.
        num_classes: Number of classes, background included.
        shape: Height and width of the image it belongs to, if they are to be compared.

    Raises:
        DataError: If the file is missing, unreadable, in colour or transparent, of another shape, or has several
            pages or a class id out of range.
    """
    image = open_image(path, "mask")
    if image.mode not in _INTEGER:
        raise DataError(
            f"{path}: expected a mask of class ids (single-channel or palette PNG), found mode {image.mode}; "
            "write the class ids as an 8-bit single-channel PNG"
        )
    mask = np.array(image)
    check_mask_size(path, mask.shape, shape)
    check_mask_ids(mask, num_classes, name=f"{path}: the mask", error=MaskIdError)
    return mask.astype(np.uint8)


def check_mask_size(path: Path, found: tuple[int, ...], shape: tuple[int, int] | None) -> None:
    """Raise a `MaskSizeError` if a mask has another height or width than its image, whose ``shape`` may be unknown."""
    if shape is not None and found != tuple(shape):
        raise MaskSizeError(
            f"{path}: the mask has {found[0]}x{found[1]} pixels (height x width), its image {shape[0]}x{shape[1]}; "
            "they must be equal, so export the mask again at the image's size"
            + (_SWAPPED if found == tuple(shape)[::-1] else "")
        )


_SWAPPED = (
    ". The sides are swapped: an image is turned as its EXIF tag 'orientation' says, as every viewer does, and its "
    "mask must be drawn on what is shown; if it was drawn on the stored pixels, turn it or take the tag off the image"
)


def read_size(path: Path) -> tuple[tuple[int, int], bool]:
    """Height and width of an image as viewers show it, and whether its EXIF tag turns it at the same size.

    Raises:
        DataError: If the file is missing or unreadable.
    """

    def read(image: Image.Image) -> tuple[tuple[int, int], bool]:
        orientation = find_orientation(image)
        if orientation in SWAP_SIDES and image.format == "TIFF":
            image.load()  # Pillow turns TIFFs itself: before that the size depends on its version
            width, height = image.size
        else:
            width, height = image.size[::-1] if orientation in SWAP_SIDES else image.size
        return (height, width), orientation in TURNS and (width == height or orientation not in SWAP_SIDES)

    return read_file(path, "image", read)


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
    check_class_count(len(classes), name=source, error=DataError)
    check_class_names(classes, name=source, error=DataError)
    return tuple(classes)


def make_unknown_labels(count: int, num_classes: int) -> np.ndarray:
    """Labels of images of which nothing is known, float32, shape (N, K): NaN, and 1 for the background."""
    labels = np.full((count, num_classes), np.nan, dtype=np.float32)
    labels[:, BACKGROUND] = 1
    return labels


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


def read_label_table(
    path: Path,
    classes: Sequence[str] | None = None,
    *,
    need_labels: bool = True,
    class_column: str | None = None,
    background_value: str = BACKGROUND_NAME,
) -> LabelTable:
    """Read ``image_labels.csv``: a column ``image``, optionally ``split``, and a 0/1 column for each class.

    Commas, semicolons or tabs separate the columns. Where nobody knows whether an image shows a class, its cell is
    empty or holds ``?``. A column ``annotated`` names the classes that were annotated in an image's mask, with ``|``
    between them; all if it is empty.

    Args:
        path: The file.
        classes: Class names, the background first (it needs no column); other columns are skipped. Default:
            every column but ``image``, ``split`` and ``annotated`` is a class. Given classes, a table without any
            further column says nothing of them.
        need_labels: Without it no class column is read: no label is known but the background's.
        class_column: Instead of a 0/1 column for each class, one column with the name of the class.
        background_value: What that column holds for an image without an object.

    Raises:
        DataError: If the file is missing, has no row, lacks a column or has it twice, or a class column holds anything
            but 0, 1 and ``?``, or ``class_column`` or ``annotated`` anything but a class.
    """
    header, numbered = read_rows(path)
    if class_column is not None and classes is None:
        raise DataError(f"{path}: class_column={class_column!r} needs the class list; give classes= or a classes.txt")
    if not isinstance(background_value, str):
        raise DataError(
            f"{path}: background_value must be text, as in the table, got {background_value!r}; put it in quotes"
        )
    if class_column is not None and background_value in (classes or ())[1:]:
        raise DataError(
            f"{path}: background_value={background_value!r} is a class as well; say what means an image without object"
        )
    if classes is None:
        others = [column for column in header if column not in _NAMED]
        classes = check_classes([BACKGROUND_NAME, *others], str(path)) if need_labels else (BACKGROUND_NAME, *others)
    read = [class_column] if class_column is not None else list(classes[1:])
    if not need_labels or (class_column is None and set(header) <= set(_NAMED) - set(classes[1:])):
        read = []
    lacking = [name for name in read if name not in header]
    if lacking:
        raise DataError(
            f"{path}: no column for the classes {', '.join(lacking)}; found {', '.join(header)}; add a 0/1 "
            "column for each class, or correct the class list"
            if class_column is None
            else f"{path}: no column {class_column!r}; found {', '.join(header)}; correct class_column"
        )
    twice = [name for name, count in Counter(header).items() if count > 1 and name in (*_NAMED, *read)]
    if twice:
        raise DataError(f"{path}: the column {twice[0]!r} is there twice; remove one")
    columns = [header.index(name) for name in read]
    rows: list[list[str]] = []
    labels: list[list[float]] = []
    annotated: list[list[bool]] = []
    for line, row in numbered:
        rows.append(row)
        cells = [row[i] for i in columns]
        if not read:
            shown = [np.nan] * (len(classes) - 1)
        elif class_column is None:
            shown = [_parse_label(cell, path, line, name) for cell, name in zip(cells, read, strict=True)]
        else:
            shown = _parse_class(cells[0], f"{path}, line {line}, column {class_column!r}", classes, background_value)
        labels.append([1.0, *shown])
        if "annotated" in header and "annotated" not in classes and need_labels:
            cell = row[header.index("annotated")]
            annotated.append(_parse_annotated(cell, f"{path}, line {line}, column 'annotated'", classes))
    if not rows:
        raise DataError(f"{path}: no row below the header; add one row per image")
    image, split = header.index("image"), header.index("split") if "split" in header else None
    return LabelTable(
        images=tuple(normalize_name(row[image]) for row in rows),
        splits=None if split is None else tuple(row[split] for row in rows),
        classes=tuple(classes),
        labels=np.array(labels, dtype=np.float32),
        annotated=np.array(annotated) if annotated else None,
    )


def read_annotations(
    path: Path, classes: Sequence[str], columns: Sequence[str]
) -> dict[str, list[tuple[int, tuple[float, ...]]]]:
    """Read a table of annotations, several for an image: the columns ``image`` and ``class``, and others with numbers.

    Args:
        path: The file.
        classes: The names that ``class`` may hold.
        columns: The names of the columns with numbers.

    Returns:
        For each image, by its name as the table writes it, the position of the class among ``classes`` and the numbers.

    Raises:
        DataError: If the file is missing, lacks a column or has it twice, or a cell is no class or no number.
    """
    header, rows = read_rows(path)
    for column in ("image", "class", *columns):
        if header.count(column) != 1:
            raise DataError(
                f"{path}: expected the column {column!r} once, found {', '.join(header)}; the columns are image, "
                f"class, {', '.join(columns)}"
            )
    found: dict[str, list[tuple[int, tuple[float, ...]]]] = defaultdict(list)
    for line, row in rows:
        cells = dict(zip(header, row, strict=True))
        if cells["class"] not in classes:
            raise DataError(
                f"{path}, line {line}: expected one of the classes {', '.join(classes)}, found {cells['class']!r}; "
                "correct it, or the class list"
            )
        numbers = tuple(_parse_number(cells[column], f"{path}, line {line}, column {column!r}") for column in columns)
        found[normalize_name(cells["image"])].append((classes.index(cells["class"]), numbers))
    return dict(found)


def _parse_number(text: str, place: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{place}: expected a number of pixels, found {text!r}; correct it") from error


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The columns of a table with a column ``image``, and its rows with the numbers of their lines.

    Raises:
        DataError: If the file is missing or no text, lacks the column, or has a row of another length.
    """
    lines = read_lines(path)
    reader = csv.reader(lines, delimiter=find_separator(lines))
    header = [spell_column(column.strip()) for column in next(reader, [])]
    if "image" not in header:
        raise DataError(
            f"{path}: expected a column 'image' in the first line, found {header}; add the header, with commas, "
            "semicolons or tabs between the columns"
        )
    rows = []
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise DataError(f"{path}, line {reader.line_num}: expected {len(header)} columns, found {len(row)}")
        rows.append((reader.line_num, [cell.strip() for cell in row]))
    return header, rows


def read_column(path: Path, column: str) -> dict[str, str]:
    """Read one column of a table of images, by the image's name without the suffix of its file.

    Raises:
        DataError: If the file is missing, or has no column ``image`` or not that one.
    """
    header, rows = read_rows(path)
    if column not in header:
        raise DataError(f"{path}: no column {column!r}; found {', '.join(header)}; correct the name or the table")
    image, value = header.index("image"), header.index(column)
    return {strip_suffix(normalize_name(row[image])): row[value] for _, row in rows}


def check_unique(names: Sequence[str], path: Path) -> None:
    """Raise a `DataError` that names the first image that ``path`` lists twice."""
    list_unique(names, path, raise_error)


def find_separator(lines: Sequence[str]) -> str:
    """What separates the columns: the first that makes ``image`` one of them, a comma if none does."""
    for separator in _SEPARATORS:
        header = next(csv.reader(lines[:1], delimiter=separator), [])
        if "image" in [spell_column(column.strip()) for column in header]:
            return separator
    return ","


def spell_column(column: str) -> str:
    """A column's name; those that the package names are written small."""
    return column.lower() if column.lower() in _NAMED else column


def _parse_class(text: str, place: str, classes: Sequence[str], background_value: str) -> list[float]:
    """Labels of the object classes, of which one is named; NaN for all if the cell is empty or ``?``."""
    if text in _UNKNOWN and text not in (*classes[1:], background_value):
        return [np.nan] * (len(classes) - 1)
    if text not in (*classes[1:], background_value):
        raise DataError(
            f"{place}: expected one of the classes {', '.join(classes[1:])}, or {background_value!r} for none, found "
            f"{text!r}; correct it, or say with background_value= what means none"
        )
    return [float(text == name) for name in classes[1:]]


def _parse_annotated(text: str, place: str, classes: Sequence[str]) -> list[bool]:
    """Which classes a cell names; all if it is empty, and the background always."""
    named = [name.strip() for name in text.split("|")] if text else list(classes)
    if unknown := [name for name in named if name not in classes]:
        raise DataError(
            f"{place}: expected some of the classes {', '.join(classes[1:])} with | between them, or nothing for all, "
            f"found {unknown[0]!r}; correct it, or give the column another name"
        )
    return [name in named or name == BACKGROUND_NAME for name in classes]


def _parse_label(text: str, path: Path, line: int, column: str) -> float:
    if text in ("0", "0.0", "1", "1.0"):
        return float(text)
    if text in _UNKNOWN:
        return np.nan
    raise DataError(
        f"{path}, line {line}: expected 0, 1 or ? (unknown) in the class column {column!r}, found {text!r}; correct it "
        "or say which columns are classes (classes.txt beside the file, or classes=)"
    )
