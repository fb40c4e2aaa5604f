"""The layout of Pascal VOC segmentation."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tw_seg.data.layouts.file_names import (
    FileTree,
    choose_mask,
    describe_strays,
    find_near_name,
    normalize_name,
    show_names,
    strip_suffix,
)
from tw_seg.data.layouts.image_files import ImageFiles
from tw_seg.data.layouts.readers import (
    check_classes,
    check_unique,
    read_classes,
    read_label_table,
    read_lines,
    read_mask,
)
from tw_seg.data.layouts.usable import OnError, find_usable, list_unique, raise_error
from tw_seg.errors import DataError
from tw_seg.types import BACKGROUND, IGNORE_INDEX

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *(
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
)


_APART = ("train", "val", "test")
"""Splits that share no image. Other lists may be unions of these, as ``trainval`` is."""


class VOCDataset(ImageFiles):
    """Photographs with palette masks, 255 = void.

    Layout: ``JPEGImages/NAME.jpg``, ``SegmentationClass/NAME.png`` (an image without one is unlabelled),
    ``ImageSets/Segmentation/SPLIT.txt`` with one name per line (or the image's file, or ``JPEGImages/NAME.jpg
    SegmentationClass/NAME.png``), and optionally ``classes.txt`` (default: the
    20 VOC classes) and ``image_labels.csv`` (a column ``image`` and one 0/1 column per class; default: the
    labels are taken from the masks, which are then all read at the beginning).

    Args:
        root: The folder; for the original data ``VOCdevkit/VOC2012``.
        split: Name of a file in ``ImageSets/Segmentation``, such as ``"train"``; ``None`` takes all of ``JPEGImages``.
        need_labels: Without it, to predict, a list of images is enough: no label and no mask is read, and all
            labels but the background's are 0.
        classes: Class names in the order of the class ids, ``"background"`` first; default: the lines of
            ``classes.txt``, or else the 20 VOC classes.
        on_error: Is called with each error that concerns a single image or mask, which is then left out; by default
            the first is raised.

    Attributes:
        classes: The class names; index 0 is the background.
        names: The image names.
        labels: Image-level multi-hot labels, float32, shape (N, K).
        has_mask: Which images have a mask, bool, shape (N,).

    Raises:
        DataError: If a file is missing or inconsistent, or if an image is in two of the splits train, val and test;
            images and masks are read, and checked, when asked for.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | None,
        *,
        classes: Sequence[str] | None = None,
        need_labels: bool = True,
        on_error: OnError = raise_error,
    ) -> None:
        root = Path(root)
        csv_path, classes_path = root / "image_labels.csv", root / "classes.txt"
        if classes is not None:
            self.classes = check_classes(classes, "classes")
        else:
            self.classes = read_classes(classes_path) if classes_path.is_file() else VOC_CLASSES
        images, masks = FileTree(root / "JPEGImages"), FileTree(root / "SegmentationClass")
        source = images.root if split is None else _split_folder(root) / f"{split}.txt"
        lines = list(images.top()) if split is None else _read_split(source)
        _, names = find_usable(lines, lambda line: _read_name(line, images, masks, source), on_error)
        names = [names[i] for i in list_unique(names, source, on_error)]
        names, self._images = find_usable(names, lambda name: _find_image(images, name, source), on_error)
        self.names = tuple(names)
        masked, chosen = find_usable(names if need_labels else (), lambda name: choose_mask(masks.find(name)), on_error)
        mask_of = dict(zip(masked, chosen, strict=True))
        self._masks = [mask_of.get(name) for name in names]
        self.has_mask = np.array([path is not None for path in self._masks], dtype=bool)
        if not need_labels:
            self.labels = np.zeros((len(self.names), len(self.classes)), dtype=np.float32)
            self.labels[:, BACKGROUND] = 1
            return
        if split is not None:
            _check_splits(self.names, source, images, on_error)
        strays = describe_strays(masks.top(), images.top())
        wanted = f"looked for {masks.root / next(iter(names), 'NAME')}.png and the like"
        self.mask_search = wanted + (strays and f"; {strays}")
        if strays:
            warnings.warn(strays, stacklevel=2)
        if csv_path.is_file():
            self.labels = self._read_labels(csv_path)
        else:
            self.labels = self._collect_labels(masks.root, csv_path, on_error)

    @staticmethod
    def list_splits(root: str | os.PathLike[str]) -> tuple[str | None, ...]:
        """The lists among train, val and test; other lists if there are none of these; else ``None``, all images."""
        lists = {path.stem for path in _split_folder(Path(root)).glob("*.txt")}
        return tuple(split for split in _APART if split in lists) or tuple(sorted(lists)) or (None,)

    def _read_labels(self, csv_path: Path) -> np.ndarray:
        table = read_label_table(csv_path, self.classes)
        check_unique(table.images, csv_path)
        row_of = {name: row for row, name in enumerate(table.images)}
        lacking = [name for name in self.names if name not in row_of]
        if lacking:
            raise DataError(
                f"{csv_path}: no row for {len(lacking)} images of the split, first {lacking[0]!r}; add them"
            )
        return table.labels[[row_of[name] for name in self.names]]

    def _collect_labels(self, folder: Path, csv_path: Path, on_error: OnError) -> np.ndarray:
        def read_ids(row: int) -> np.ndarray:
            path = self._masks[row]
            if path is None:
                raise DataError(
                    f"{folder / self.names[row]}.png: the mask file is missing and there is no {csv_path}; one must "
                    "give the labels"
                )
            ids = np.unique(read_mask(path, num_classes=len(self.classes)))
            return ids[ids != IGNORE_INDEX]

        labels = np.zeros((len(self.names), len(self.classes)), dtype=np.float32)
        for row, ids in zip(*find_usable(range(len(self.names)), read_ids, on_error), strict=True):
            labels[row, ids] = 1
        labels[:, BACKGROUND] = 1
        return labels


def _split_folder(root: Path) -> Path:
    return root / "ImageSets" / "Segmentation"


def _read_split(path: Path) -> list[str]:
    if not path.is_file():
        found = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))) or "none"
        raise DataError(f"{path}: there is no split {path.stem!r}; found: {found}")
    lines = _read_list(path)
    if not lines:
        raise DataError(f"{path}: the split {path.stem!r} is empty; write one image name per line")
    return lines


def _read_list(path: Path) -> list[str]:
    return [normalize_name(line.strip()) for line in read_lines(path) if line.strip()]


def _check_splits(names: Sequence[str], split_path: Path, images: FileTree, on_error: OnError) -> None:
    """Refuse an image of this split that is in another one as well."""
    if split_path.stem not in _APART:
        return
    own = set(names)
    for split in _APART:
        path = split_path.with_name(f"{split}.txt")
        if path == split_path or not path.is_file():
            continue
        shared = [name for name in (_find_name(line, images) for line in _read_list(path)) if name in own]
        if shared:
            first, second = sorted((split, split_path.stem))
            on_error(
                DataError(
                    f"{split_path.parent}: the image {min(shared)!r} is in two splits, {first!r} and {second!r} "
                    f"({len(shared)} images are in both {first}.txt and {second}.txt); remove each from one of the two "
                    "lists, or the scores are those of images that were trained on"
                )
            )


def _find_name(line: str, images: FileTree) -> str:
    """The image that a line of a list means: by its name, its file, or its file before that of its mask."""
    if images.find(line):
        return line
    image = _strip_folder(line.split()[0], images.root)
    name = strip_suffix(image)
    return name if images.find(name) else line  # which is then said to be missing


def _read_name(line: str, images: FileTree, masks: FileTree, split_path: Path) -> str:
    """The same, with the mask that a line names beside the image."""
    name = _find_name(line, images)
    _, *others = line.split()
    if name == line or not others:
        return name
    mask = _strip_folder(others[0], masks.root)
    if len(others) > 1 or mask != f"{name}.png":
        raise DataError(
            f"{split_path}: expected a name alone, or the files of an image and of its mask (JPEGImages/NAME.jpg "
            f"SegmentationClass/NAME.png), found {line!r}; masks are read from {masks.root} and have the image's name"
        )
    if not masks.find(name):
        raise DataError(f"{masks.root / mask}: {split_path} lists this mask, but there is no such file; add it")
    return name


def _strip_folder(path: str, folder: Path) -> str:
    """A path of a list without the data set's own folder in front."""
    return path.lstrip("/").removeprefix(f"{folder.name}/")


def _find_image(images: FileTree, name: str, split_path: Path) -> Path:
    found = images.find(name)
    if len(found) > 1:
        files = show_names([path.name for path in found])
        raise DataError(f"{images.root / name}: {split_path} lists this image, which may be {files}; leave one of them")
    if found:
        return found[0]
    near = find_near_name(Path(name).name, images.beside(name))
    like = "" if near is None else f" ({near[0]!r} is like it, but {near[1]})"
    there = [path.name for paths in images.top().values() for path in paths]
    like = like or (f" (there is {show_names(there)})" if there else " (there is no image)")
    raise DataError(
        f"{images.root / name}.jpg: {split_path} lists this image, but there is no such file{like}; add it or remove "
        "it; a list has names alone, without folder or suffix"
    )
