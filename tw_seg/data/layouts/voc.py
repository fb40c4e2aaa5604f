"""The layout of Pascal VOC segmentation."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tw_seg.data.layouts.colors import find_color_table
from tw_seg.data.layouts.file_names import (
    FileTree,
    choose_mask,
    describe_strays,
    find_near_name,
    is_file,
    normalize_name,
    show_names,
    strip_suffix,
)
from tw_seg.data.layouts.image_files import ImageFiles
from tw_seg.data.layouts.readers import (
    check_classes,
    check_unique,
    make_unknown_labels,
    read_classes,
    read_label_table,
    read_lines,
)
from tw_seg.data.layouts.splits import choose_rows
from tw_seg.data.layouts.structured import read_xml
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


_YEARS = ("2012", "2010", "2009", "2008", "2007")  # those that torchvision unpacks to VOCdevkit/VOC<year>
_APART = ("train", "val", "test")
"""Splits that share no image. Other lists may be unions of these, as ``trainval`` is."""


class VOCDataset(ImageFiles):
    """Photographs with palette masks, 255 = void.

    Layout: ``JPEGImages/NAME.jpg``, ``SegmentationClass/NAME.png`` (an image without one is unlabelled),
    ``ImageSets/Segmentation/SPLIT.txt`` with one name per line (or the image's file, or ``JPEGImages/NAME.jpg
    SegmentationClass/NAME.png``), and optionally ``classes.txt`` (default: the
    20 VOC classes) and ``image_labels.csv`` (a column ``image`` and one 0/1 column per class; default: the
    labels are those of the objects in ``Annotations/NAME.xml``, or else taken from the masks, which are then all read
    at the beginning).

    Args:
        root: The folder; for the original data ``VOCdevkit/VOC2012``.
        split: Name of a file in ``ImageSets/Segmentation``, such as ``"train"``; ``None`` takes those of all
            lists, or all of the folder if there is no list.
        need_labels: Without it, to predict, a list of images is enough: no label and no mask is read, and no
            label but the background's is known.
        classes: Class names in the order of the class ids, ``"background"`` first; default: the lines of
            ``classes.txt``, or else of the ``labelmap.txt``, or else the 20 VOC classes.
        images: Folder of the images, below ``root``.
        colors: Red, green and blue of each class where masks are in colours, or the path of a ``labelmap.txt`` below
            ``root``; default: that file, if it is there.
        split_by: Divides the images of all lists otherwise: see `tw_seg.data.layouts.splits.choose_rows`.
        download: Whether torchvision downloads the original data where ``root`` has no images.
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

    may_lack_labels: ClassVar[bool] = False

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | None,
        *,
        classes: Sequence[str] | None = None,
        need_labels: bool = True,
        images: str = "JPEGImages",
        colors: Mapping[str, Sequence[int]] | str | None = None,
        split_by: Mapping[str, Any] | None = None,
        download: bool = False,
        on_error: OnError = raise_error,
    ) -> None:
        root = Path(root)
        if download and not (root / "JPEGImages").exists():
            download_voc(root)
        csv_path, classes_path = root / "image_labels.csv", root / "classes.txt"
        if classes is None and classes_path.is_file():
            classes = read_classes(classes_path)
        self.colors = find_color_table(root, colors, classes)
        if self.colors is not None:
            self.classes = self.colors.classes
        else:
            self.classes = VOC_CLASSES if classes is None else check_classes(classes, "classes")
        files, masks = FileTree(root / images), FileTree(root / "SegmentationClass")
        source = files.root if split is None or split_by is not None else _split_folder(root) / f"{split}.txt"
        lines = _read_split(source) if source != files.root else _read_lists(root) or list(files.top())
        _, names = find_usable(lines, lambda line: _read_name(line, files, masks, source), on_error)
        names = [names[i] for i in list_unique(names, source, on_error)]
        if split is not None and split_by is not None:
            names = [names[row] for row in choose_rows(names, split, split_by, root=root)]
        names, self._images = find_usable(names, lambda name: _find_image(files, name, source), on_error)
        self.names = tuple(names)
        masked, chosen = find_usable(names if need_labels else (), lambda name: choose_mask(masks.find(name)), on_error)
        mask_of = dict(zip(masked, chosen, strict=True))
        self._masks = [mask_of.get(name) for name in names]
        self.has_mask = np.array([path is not None for path in self._masks], dtype=bool)
        if not need_labels:
            self.labels = make_unknown_labels(len(self.names), len(self.classes))
            return
        if source != files.root:
            _check_splits(self.names, source, files, on_error)
        strays = describe_strays(masks.top(), files.top())
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
        lists = list_split_files(Path(root))
        return tuple(split for split in _APART if split in lists) or tuple(lists) or (None,)

    def _read_labels(self, csv_path: Path) -> np.ndarray:
        table = read_label_table(csv_path, self.classes)
        check_unique(table.images, csv_path)
        row_of = {name: row for row, name in enumerate(table.images)}
        lacking = [name for name in self.names if name not in row_of]
        if lacking:
            raise DataError(
                f"{csv_path}: no row for {len(lacking)} images of the split, first {lacking[0]!r}; add them"
            )
        rows = [row_of[name] for name in self.names]
        self.annotated = None if table.annotated is None else table.annotated[rows]
        return table.labels[rows]

    def _collect_labels(self, folder: Path, csv_path: Path, on_error: OnError) -> np.ndarray:
        def read_ids(row: int) -> np.ndarray:
            path, objects = self._masks[row], csv_path.with_name("Annotations") / f"{self.names[row]}.xml"
            if is_file(objects):
                return self._read_objects(objects)
            if path is None and self.may_lack_labels:
                return np.array([], dtype=np.int64)
            if path is None:
                raise DataError(
                    f"{folder / self.names[row]}.png: the mask file is missing and there is no {csv_path} and no "
                    f"{objects}; one must give the labels"
                )
            ids = np.unique(self._read_ids(path))
            return ids[ids != IGNORE_INDEX]

        labels = np.zeros((len(self.names), len(self.classes)), dtype=np.float32)
        for row, ids in zip(*find_usable(range(len(self.names)), read_ids, on_error), strict=True):
            labels[row, ids] = 1
        if self.may_lack_labels:
            labels[~self.has_mask & (labels.max(axis=1) == 0)] = np.nan
        labels[:, BACKGROUND] = 1
        return labels

    def _read_objects(self, path: Path) -> np.ndarray:
        """The classes of the objects in an image's own XML file."""
        names = sorted({(found.findtext("name") or "").strip() for found in read_xml(path).iterfind("object")})
        if unknown := [name for name in names if name not in self.classes]:
            raise DataError(
                f"{path}: the class {unknown[0]!r} is not in the class list ({show_names(self.classes)}); correct the "
                "name, or give classes= or a classes.txt"
            )
        return np.array([self.classes.index(name) for name in names], dtype=np.int64)


def download_voc(root: Path) -> None:
    """Let torchvision download and unpack the data of a year of Pascal VOC.

    Args:
        root: Where they are to be: a path that ends with ``VOCdevkit/VOC2012``, or another year.

    Raises:
        DataError: If the path ends with something else, or the download fails.
    """
    year = root.name.removeprefix("VOC")
    if root.parent.name != "VOCdevkit" or year not in _YEARS:
        raise DataError(
            f"{root}: expected a path that ends with VOCdevkit/VOC2012 (or another year: {', '.join(_YEARS)}) to "
            "download the original data to; correct root"
        )
    from torchvision.datasets import VOCSegmentation  # here: two seconds that nobody else need wait

    try:
        VOCSegmentation(root.parents[1], year=year, image_set="train", download=True)
    except (OSError, RuntimeError) as error:  # no network, no room, or another checksum
        raise DataError(
            f"{root}: torchvision could not download Pascal VOC {year} ({error}); try again, or download and unpack it "
            "yourself"
        ) from error


def list_split_files(root: Path) -> list[str]:
    """The names of the lists of a data set, sorted."""
    return sorted(path.stem for path in _split_folder(root).glob("*.txt"))


def _split_folder(root: Path) -> Path:
    return root / "ImageSets" / "Segmentation"


def _read_split(path: Path) -> list[str]:
    if not path.is_file():
        found = ", ".join(list_split_files(path.parents[2])) or "none"
        raise DataError(f"{path}: there is no split {path.stem!r}; found: {found}; correct it, or give split_by=")
    lines = _read_list(path)
    if not lines:
        raise DataError(f"{path}: the split {path.stem!r} is empty; write one image name per line")
    return lines


def _read_lists(root: Path) -> list[str]:
    """The lines of all lists, each once."""
    paths = [_split_folder(root) / f"{split}.txt" for split in list_split_files(root)]
    return list(dict.fromkeys(line for path in paths for line in _read_split(path)))


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
