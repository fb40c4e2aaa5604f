"""Any labelled images in three parts: images/, masks/ and image_labels.csv."""

from __future__ import annotations

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tw_seg.arguments import check_numbers
from tw_seg.data.layouts.boxes import check_boxes, read_boxes
from tw_seg.data.layouts.colors import find_color_table
from tw_seg.data.layouts.file_names import (
    IMAGE_SUFFIXES,
    choose_mask,
    describe_strays,
    find_near_name,
    list_by_stem,
    list_files,
    list_other_pictures,
    normalize_name,
    show_names,
)
from tw_seg.data.layouts.image_files import ImageFiles
from tw_seg.data.layouts.points import Point, draw_points, read_points
from tw_seg.data.layouts.readers import (
    BACKGROUND_NAME,
    LabelTable,
    check_classes,
    make_unknown_labels,
    read_classes,
    read_label_table,
    read_mask,
)
from tw_seg.data.layouts.shapes import Box, Shape, draw_mask
from tw_seg.data.layouts.splits import choose_rows, spell_split
from tw_seg.data.layouts.usable import OnError, find_usable, list_unique, raise_error
from tw_seg.errors import DataError
from tw_seg.types import BACKGROUND, IGNORE_INDEX

_TABLE, _BOXES, _POINTS = "image_labels.csv", "boxes.csv", "points.csv"

_Annotation = TypeVar("_Annotation")


class FolderDataset(ImageFiles):
    """Images with image-level labels in a table, and masks, boxes or points for some or all of them.

    Layout: ``images/NAME.jpg`` (or png, bmp, tif, webp), ``masks/NAME.png`` (class ids, single-channel or
    palette, or colours; 255 = ignore; an image without one is unlabelled), ``image_labels.csv`` with a column ``image``
    (file name, with or without its suffix), optionally ``split``, and one 0/1 column for each class, and
    optionally ``classes.txt``. Image files are shown as viewers show them, see
    `tw_seg.data.layouts.readers.read_image`.

    In the table an empty cell or ``?`` is an unknown label, and a column ``annotated`` names the classes that were
    annotated in an image, with ``|`` between them; without it, all were. There may be boxes and points as well:
    ``boxes.csv``, see `tw_seg.data.layouts.boxes`, with the columns ``image``, ``class``, ``x_min``, ``y_min``,
    ``x_max`` and ``y_max``, and ``points.csv``, see `tw_seg.data.layouts.points`, with ``image``, ``class``, ``x``
    and ``y``. Where an image has several of these, its mask counts before points, and these before boxes.

    Args:
        root: The folder.
        split: Value of the column ``split``; ``None`` takes all rows. Where no row has it, another spelling of it
            (``validation`` for ``val``, ``Train``) is taken.
        classes: Class names in the order of the class ids, ``"background"`` first; default: the lines of
            ``classes.txt``, or else every further column of the table.
        need_labels: Without it, to predict, pictures are enough: no label and no mask is read, and no label but the
            background's is known. The table may lack, and then ``root`` itself may hold the images; without a table or
            its column ``split`` all images are taken.
        class_column: Column of the table that names the one class of each image, in place of 0/1 columns; it needs a
            class list.
        background_value: What that column holds for an image without an object.
        binary_masks: Whether masks hold 0, 1 and 255 only, 1 being the one class that the labels of the image name.
        colors: Red, green and blue of each class where masks are in colours, or the path of a ``labelmap.txt`` below
            ``root``; default: that file, if it is there. The class list is that of the table unless another is given.
        split_by: Divides the images otherwise than the column ``split``: see
            `tw_seg.data.layouts.splits.choose_rows`.
        point_radius: Radius in pixels of the disc that is drawn for a point.
        on_error: Is called with each error that concerns a single image or mask, which is then left out; by default
            the first is raised.

    Attributes:
        classes: The class names; index 0 is the background.
        names: File names of the images without suffix.
        labels: Image-level multi-hot labels, float32, shape (N, K); NaN where nobody knows. A box or a point says that
            the image shows its class.
        has_mask: Which images have a mask, boxes or points, bool, shape (N,).
        annotated: Which classes were annotated in each image, bool, shape (N, K); ``None``: all.

    Raises:
        DataError: If a file is missing or inconsistent; images and masks are read, and checked, when asked
            for.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        need_labels: bool = True,
        class_column: str | None = None,
        background_value: str = BACKGROUND_NAME,
        binary_masks: bool = False,
        colors: Mapping[str, Sequence[int]] | str | None = None,
        split_by: Mapping[str, Any] | None = None,
        point_radius: float = 3.0,
        on_error: OnError = raise_error,
    ) -> None:
        check_numbers(point_radius=point_radius)
        self._point_radius = point_radius
        self._boxes: dict[int, list[tuple[Box, int]]] = {}
        self._points: dict[int, list[Point]] = {}
        self._binary_masks = binary_masks
        self._root = root = Path(root)
        csv_path, classes_path = root / _TABLE, root / "classes.txt"
        if classes is not None:
            classes = check_classes(classes, "classes")
        elif classes_path.is_file():
            classes = read_classes(classes_path)
        self.colors = find_color_table(root, colors, classes)
        if self.colors is not None:
            if binary_masks:
                raise DataError(
                    f"{self.colors.source}: binary_masks are masks of 0 and 1, not of colours; leave out one"
                )
            classes = self.colors.classes
        if not need_labels and not csv_path.is_file():
            self._list_pictures(root, tuple(classes or (BACKGROUND_NAME,)))
            return
        table = read_label_table(
            csv_path,
            classes,
            need_labels=need_labels,
            class_column=class_column,
            background_value=background_value,
        )
        rows = np.arange(len(table.images))
        if split is not None and split_by is None and (need_labels or table.splits is not None):
            rows = _find_rows(table, split, csv_path)
        images = list_by_stem(root / "images")
        listed_rows, paths = find_usable(
            rows.tolist(),
            lambda row: _find_image(table.images[row], images, root / "images", csv_path),
            on_error,
        )
        once = list_unique([normalize_name(path.stem) for path in paths], csv_path, on_error)
        if split is not None and split_by is not None:
            names = [normalize_name(paths[i].stem) for i in once]
            once = [once[row] for row in choose_rows(names, split, split_by, root=root)]
        rows, self._images = np.array([listed_rows[i] for i in once], dtype=np.int64), [paths[i] for i in once]
        self.names = tuple(normalize_name(path.stem) for path in self._images)
        _check_splits(table, set(listed_rows), self._images, images, csv_path=csv_path, on_error=on_error)
        self.classes = table.classes
        self.labels = table.labels[rows]
        self.annotated = None if table.annotated is None else table.annotated[rows]
        masks = list_by_stem(root / "masks") if need_labels and (root / "masks").is_dir() else {}
        named, chosen = find_usable(self.names, lambda name: choose_mask(masks.get(name, [])), on_error)
        mask_of = dict(zip(named, chosen, strict=True))
        self._masks = [mask_of.get(name) for name in self.names]
        self.has_mask = np.array([path is not None for path in self._masks], dtype=bool)
        boxes, points = root / _BOXES, root / _POINTS
        if need_labels and boxes.is_file():
            self._boxes = self._find_annotations(
                read_boxes(boxes, self.classes), boxes, itemgetter(1), images=images, on_error=on_error
            )
        if need_labels and points.is_file():
            self._points = self._find_annotations(
                read_points(points, self.classes), points, attrgetter("label"), images=images, on_error=on_error
            )
        listed = {name for entry in table.images for name in (entry, Path(entry).stem)}
        strays = describe_strays(masks, images, listed)
        if strays:
            warnings.warn(strays, stacklevel=2)
        self.mask_search = _describe_masks(root, next(iter(self.names), "NAME"), strays)

    @staticmethod
    def list_splits(root: str | os.PathLike[str]) -> tuple[str | None, ...]:
        """The splits that the table names, in its order; only ``None``, all rows, if it names none.

        Raises:
            DataError: If there is no table, or it is none.
        """
        splits = read_label_table(Path(root) / _TABLE, need_labels=False).splits
        return tuple(dict.fromkeys(split for split in splits or () if split)) or (None,)

    def _read_mask(self, index: int, size: tuple[int, int]) -> np.ndarray:
        if not self._binary_masks:
            return super()._read_mask(index, size)
        file = self.mask_file(index)
        ids = read_mask(file, num_classes=2, shape=size)
        shown = np.flatnonzero(self.labels[index][BACKGROUND + 1 :] > 0) + BACKGROUND + 1
        if len(shown) != 1 and (ids == 1).any():
            named = ", ".join(self.classes[k] for k in shown) or "none"
            raise DataError(
                f"{file}: with binary_masks 1 is the one class that the labels of the image name, and they name "
                f"{named}; correct the labels, or write class ids into the mask"
            )
        return np.where(ids == 1, shown[0], ids).astype(np.uint8) if len(shown) == 1 else ids

    def mask_file(self, index: int) -> Path:
        """What an image's mask is made of: its mask file, else the table of its points or of its boxes."""
        if self._masks[index] is not None:
            return super().mask_file(index)
        return self._root / (_POINTS if index in self._points else _BOXES)

    def _read_annotation(self, index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
        mask, regions = np.full(size, IGNORE_INDEX, dtype=np.uint8), None
        path = self._root / _BOXES
        try:
            if boxes := self._boxes.get(index):
                check_boxes([box for box, _ in boxes], size)
                shapes = [(Shape(self.classes[label], box, is_box=True), label) for box, label in boxes]
                mask, regions = draw_mask(shapes, size, len(self.classes))
            path = self._root / _POINTS
            if points := self._points.get(index):
                mask = _lay_over(mask, draw_points(points, size, self._point_radius))
        except DataError as error:
            raise DataError(f"{path}: image {self.names[index]!r}: {error}") from error
        if self._masks[index] is not None:
            mask = _lay_over(mask, self._read_mask(index, size))
        return mask, regions

    def _find_annotations(
        self,
        by_entry: Mapping[str, list[_Annotation]],
        path: Path,
        label_of: Callable[[_Annotation], int],
        *,
        images: Mapping[str, list[Path]],
        on_error: OnError,
    ) -> dict[int, list[_Annotation]]:
        """Boxes or points of each image, of which the labels then know that it shows their classes."""
        row_of = {file: row for row, file in enumerate(self._images)}
        folder = self._root / "images"
        entries, files = find_usable(by_entry, lambda entry: _find_image(entry, images, folder, path), on_error)
        by_row: dict[int, list[_Annotation]] = defaultdict(list)
        for entry, file in zip(entries, files, strict=True):
            if file in row_of:
                by_row[row_of[file]] += by_entry[entry]
        rows, _ = find_usable(by_row, lambda row: self._add_labels(row, map(label_of, by_row[row]), path), on_error)
        self.has_mask[rows] = True
        return {row: by_row[row] for row in rows}

    def _add_labels(self, row: int, class_ids: Iterable[int], path: Path) -> None:
        """Note that an image shows the classes of its boxes or points.

        Raises:
            DataError: Its labels say that it does not, or that a class was not annotated.
        """
        shown = sorted(set(class_ids) - {BACKGROUND})
        for label in shown:
            if self.labels[row, label] <= 0:
                raise DataError(
                    f"{path}: the image {self.names[row]!r} has a {self.classes[label]!r}, but its label in "
                    f"{self._root / _TABLE} says that it shows none; correct one of them"
                )
            if self.annotated is not None and not self.annotated[row, label]:
                raise DataError(
                    f"{path}: the image {self.names[row]!r} has a {self.classes[label]!r}, which is not among the "
                    f"classes that its column 'annotated' in {self._root / _TABLE} names; add it there"
                )
        self.labels[row, shown] = 1

    def _list_pictures(self, root: Path, classes: tuple[str, ...]) -> None:
        """All images of a folder that has no table."""
        folder = root / "images" if (root / "images").is_dir() else root
        by_stem = list_by_stem(folder)
        others = list_other_pictures(folder)
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        if not by_stem:
            found = f", but {show_names(others)}" if others else ""
            raise DataError(f"{folder}: there is no image (files ending in {suffixes}){found}; check the path")
        if others:
            warnings.warn(
                f"{folder}: {show_names(others)} are not read: pictures are files in the folder itself ending in "
                f"{suffixes}; convert or move them if they belong to these",
                stacklevel=3,
            )
        self._images = [path for paths in by_stem.values() for path in paths]
        # Two files of one name, such as a.jpg and a.png, are told apart by their suffix.
        self.names = tuple(
            normalize_name(path.name) if len(paths) > 1 else stem for stem, paths in by_stem.items() for path in paths
        )
        self._masks = [None] * len(self._images)
        self.classes = classes
        self.labels = make_unknown_labels(len(self._images), len(classes))
        self.has_mask = np.zeros(len(self._images), dtype=bool)


def _lay_over(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """A mask where it is not 255, and what lies below it elsewhere."""
    return np.where(above == IGNORE_INDEX, below, above)


def _find_rows(table: LabelTable, split: str, csv_path: Path) -> np.ndarray:
    """The rows of a split; in another spelling if no row has that very one."""
    if table.splits is None:
        raise DataError(
            f"{csv_path}: no column 'split' to find the split {split!r} in; add it (tw-seg data split), or use "
            "split=None"
        )
    counts = Counter(table.splits)
    found = ", ".join(name or "(empty)" for name in sorted(counts))
    similar = sorted(name for name in counts if name != split and spell_split(name) == spell_split(split))
    if split not in counts and len(similar) != 1:
        remedy = (
            f"write one of {', '.join(map(repr, similar))}"
            if similar
            else "divide the data with tw-seg data split (--test_share for 'test'), or name another split in "
            "--data.split_kwargs"
        )
        raise DataError(f"{csv_path}: the split {split!r} is empty; the file has: {found}; {remedy}")
    if split in counts and similar:
        rows = sum(counts[name] for name in similar)
        warnings.warn(
            f"{csv_path}: {rows} rows have the split {', '.join(map(repr, similar))} and do not belong to {split!r}, "
            f"which {counts[split]} rows have; write one spelling if they should",
            stacklevel=3,
        )
    return np.flatnonzero(np.array(table.splits) == (split if split in counts else similar[0]))


def _check_splits(
    table: LabelTable,
    chosen: set[int],
    paths: Sequence[Path],
    by_stem: Mapping[str, list[Path]],
    *,
    csv_path: Path,
    on_error: OnError,
) -> None:
    """Refuse an image of this split that is in another one as well."""
    if table.splits is None or len(chosen) == len(table.images):
        return
    own = set(paths)
    for row, entry in enumerate(table.images):
        if row not in chosen:
            found = _look_up(entry, by_stem)
            if len(found) == 1 and found[0] in own:
                first, second = sorted((table.splits[row], table.splits[min(chosen)]))
                on_error(
                    DataError(
                        f"{csv_path}: the image {found[0].stem!r} is in two splits, {first!r} and {second!r}; remove "
                        "one of the two lines, or the scores are those of images that were trained on"
                    )
                )


def _look_up(entry: str, by_stem: Mapping[str, list[Path]]) -> list[Path]:
    exact = [path for path in by_stem.get(Path(entry).stem, []) if normalize_name(path.name) == entry]
    return exact or by_stem.get(entry, [])


def _find_image(entry: str, by_stem: Mapping[str, list[Path]], folder: Path, csv_path: Path) -> Path:
    """The file that a row of the table means: by its whole name, or by its name without suffix."""
    found = _look_up(entry, by_stem)
    if not found:
        name = Path(entry.replace("\\", "/")).name
        whole = Path(name).suffix.lower() in IMAGE_SUFFIXES
        names = {path.name if whole else path.stem: path.name for paths in by_stem.values() for path in paths}
        near = find_near_name(name, names)
        like = "" if near is None else f" ({names[near[0]]!r} is like it, but {near[1]})"
        if len(Path(entry.replace("\\", "/")).parts) > 1:
            like += " (write its name without folders)"
        raise DataError(
            f"{folder / entry}: {csv_path} lists this image, but there is no such file{like}; add it or remove it"
        )
    if len(found) > 1:
        files = ", ".join(path.name for path in found)
        raise DataError(f"{csv_path}: the image {entry!r} may be {files} in {folder}; write the name with its suffix")
    return found[0]


def _describe_masks(root: Path, name: str, strays: str) -> str:
    """Where masks were looked for, and what is there instead."""
    folder = root / "masks"
    wanted = f"looked for {folder / name}.png and the like"
    if not folder.is_dir():
        return f"{wanted}, but there is no folder {folder}"
    files = [path.name for path in list_files(folder)]
    found = strays or (f"there is {show_names(files)}" if files else "the folder is empty")
    return f"{wanted}; {found}"
