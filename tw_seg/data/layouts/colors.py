"""Masks in colours: a table says which colour is which class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tw_seg.data.layouts.opening import convert_to_rgb, open_image
from tw_seg.data.layouts.readers import BACKGROUND_NAME, check_classes, check_mask_size, read_lines
from tw_seg.errors import DataError
from tw_seg.types import BACKGROUND, IGNORE_INDEX

LABEL_MAP = "labelmap.txt"
"""The file in which CVAT writes the colours, one line ``name:red,green,blue:parts:actions`` for each class."""
IGNORE_NAMES = ("ignore", "ignored", "void", "__ignore__")
"""Classes that annotation tools write for pixels that are not to be looked at."""

Color = tuple[int, int, int]
_LINE = re.compile(r"(.+?):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(?::.*)?")
_BORDER = (224, 224, 192)  # what Pascal VOC draws between objects


@dataclass(frozen=True)
class ColorTable:
    """Which colour is which class.

    Attributes:
        classes: The class names; index 0 is the background.
        ids: Class id, or 255, of each colour.
        source: Where the table comes from, for messages.
    """

    classes: tuple[str, ...]
    ids: Mapping[Color, int]
    source: str

    def find_ids(self, rgb: np.ndarray, path: Path) -> np.ndarray:
        """The class ids of colours, uint8, shape (H, W).

        Args:
            rgb: Uint8, shape (H, W, 3).
            path: The file that it was read from, for messages.

        Raises:
            DataError: If a pixel has a colour that is not in the table.
        """
        packed = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
        colors, which = np.unique(packed, return_inverse=True)
        found = [self.ids.get((int(c) >> 16, int(c) >> 8 & 255, int(c) & 255)) for c in colors]
        if None in found:
            unknown = [int(c) for c, class_id in zip(colors, found, strict=True) if class_id is None]
            shown = ", ".join(f"({c >> 16}, {c >> 8 & 255}, {c & 255})" for c in unknown[:3])
            raise DataError(
                f"{path}: {len(unknown)} colours of the mask are not in {self.source}, first {shown}; add them there, "
                "or export the mask without smoothed edges"
            )
        return np.array(found, dtype=np.uint8)[which.reshape(packed.shape)]


def read_color_mask(path: Path, table: ColorTable, *, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read a mask in colours as viewers show it: class ids and 255, uint8, shape (H, W).

    Args:
        path: An image in colours, or of a palette, whose colours count, not the indices.
        table: What they mean.
        shape: Height and width of the image it belongs to, if they are to be compared.

    Raises:
        DataError: If the file is missing, unreadable, transparent or of another shape, or holds another colour.
    """
    image = open_image(path, "mask")
    if image.mode not in ("RGB", "RGBA", "P", "L"):
        raise DataError(
            f"{path}: expected a mask in colours (8-bit RGB or palette PNG), found mode {image.mode}; export it again"
        )
    rgb, left_out = convert_to_rgb(image)
    if left_out:
        raise DataError(f"{path}: the mask has {left_out}")
    check_mask_size(path, rgb.size[::-1], shape)
    return table.find_ids(np.array(rgb), path)


def read_color_table(path: Path, classes: Sequence[str] | None = None) -> ColorTable:
    """Read a ``labelmap.txt``.

    Args:
        path: The file.
        classes: Class names in the order of the class ids; the others are background. Default: the file's.

    Raises:
        DataError: If the file is missing, or a line or the class list does not fit.
    """
    colors: dict[str, Color] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise DataError(f"{path}, line {number}: expected name:red,green,blue::, found {line[:80]!r}; correct it")
        if match[1] in colors:
            raise DataError(f"{path}, line {number}: the class {match[1]!r} is listed twice; remove one line")
        colors[match[1]] = _check_color([int(value[:9]) for value in match.groups()[1:]], f"{path}, line {number}")
    return make_color_table(colors, classes, source=str(path))


def find_color_table(
    root: Path, colors: Mapping[str, Sequence[int]] | str | None, classes: Sequence[str] | None
) -> ColorTable | None:
    """The table of a data set: that which is given, or its ``labelmap.txt``; ``None`` if there is neither.

    Args:
        root: The folder.
        colors: Colours by class, or the path of a file of them below ``root``.
        classes: As for `read_color_table`.

    Raises:
        DataError: As `read_color_table`.
    """
    if isinstance(colors, str):
        return read_color_table(root / colors, classes)
    if colors is not None:
        return make_color_table(colors, classes)
    return read_color_table(root / LABEL_MAP, classes) if (root / LABEL_MAP).is_file() else None


def make_color_table(
    colors: Mapping[str, Sequence[int]], classes: Sequence[str] | None = None, *, source: str = "colors"
) -> ColorTable:
    """A table of the colours of classes; those of `IGNORE_NAMES`, and the border of Pascal VOC, are 255.

    Args:
        colors: Red, green and blue of each class, 0 to 255; the background is black unless it is there.
        classes: As for `read_color_table`.
        source: Where the colours come from, for messages.

    Raises:
        DataError: If two classes have the same colour, or the class list does not fit.

    Examples:
        >>> table = make_color_table({"cat": [255, 0, 0]})
        >>> table.classes, table.find_ids(np.array([[[255, 0, 0], [0, 0, 0]]], dtype=np.uint8), Path("a.png"))
        (('background', 'cat'), array([[1, 0]], dtype=uint8))
    """
    if not isinstance(colors, Mapping) or not colors:
        raise DataError(f"{source}: expected a colour for each class, such as {{cat: [255, 0, 0]}}, got {colors!r}")
    table = {str(name): _check_color(value, f"{source}, {name!r}") for name, value in colors.items()}
    table.setdefault(BACKGROUND_NAME, (0, 0, 0))
    own = [name for name in table if name != BACKGROUND_NAME and name not in IGNORE_NAMES]
    names = check_classes([BACKGROUND_NAME, *own] if classes is None else classes, source)
    if lacking := [name for name in names if name not in table]:
        raise DataError(f"{source}: no colour for the classes {', '.join(lacking)}; add one for each")
    ids: dict[Color, int] = {}
    for name, color in table.items():
        if color in ids:
            raise DataError(f"{source}: the class {name!r} has the colour {color} of another; give each its own")
        ids[color] = names.index(name) if name in names else IGNORE_INDEX if name in IGNORE_NAMES else BACKGROUND
    ids.setdefault(_BORDER, IGNORE_INDEX)
    return ColorTable(names, ids, source)


def _check_color(value: Sequence[int], place: str) -> Color:
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != 3 or any(type(number) is not int or not 0 <= number <= 255 for number in numbers):
        raise DataError(f"{place}: a colour is three whole numbers from 0 to 255, got {value!r}")
    return numbers[0], numbers[1], numbers[2]
