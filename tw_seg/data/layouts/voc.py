"""The layout of Pascal VOC segmentation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tw_seg.data.layouts.image_files import ImageFiles
from tw_seg.data.layouts.readers import check_unique, read_classes, read_label_table, read_lines, read_mask
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


class VOCDataset(ImageFiles):
    """Photographs with palette masks, 255 = void.

    Layout: ``JPEGImages/NAME.jpg``, ``SegmentationClass/NAME.png`` (an image without one is unlabelled),
    ``ImageSets/Segmentation/SPLIT.txt`` with one name per line, and optionally ``classes.txt`` (default: the
    20 VOC classes) and ``image_labels.csv`` (a column ``image`` and one 0/1 column per class; default: the
    labels are taken from the masks, which are then all read at the beginning).

    Args:
        root: The folder; for the original data ``VOCdevkit/VOC2012``.
        split: Name of a file in ``ImageSets/Segmentation``, such as ``"train"``.

    Attributes:
        classes: The class names; index 0 is the background.
        names: The image names.
        labels: Image-level multi-hot labels, float32, shape (N, K).
        has_mask: Which images have a mask, bool, shape (N,).

    Raises:
        DataError: If a file is missing or inconsistent; images and masks are read, and checked, when asked
            for.
    """

    def __init__(self, root: str | os.PathLike[str], split: str) -> None:
        root = Path(root)
        csv_path, classes_path = root / "image_labels.csv", root / "classes.txt"
        self.classes = read_classes(classes_path) if classes_path.is_file() else VOC_CLASSES
        split_path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not split_path.is_file():
            found = ", ".join(sorted(path.stem for path in split_path.parent.glob("*.txt"))) or "none"
            raise DataError(f"{split_path}: there is no split {split!r}; found: {found}")
        self.names = tuple(line.strip() for line in read_lines(split_path) if line.strip())
        if not self.names:
            raise DataError(f"{split_path}: the split {split!r} is empty; write one image name per line")
        check_unique(self.names, split_path)
        self._images = [_find_image(root / "JPEGImages", name, split_path) for name in self.names]
        masks = [root / "SegmentationClass" / f"{name}.png" for name in self.names]
        self._masks = [path if path.is_file() else None for path in masks]
        self.has_mask = np.array([path is not None for path in self._masks])
        self.labels = self._read_labels(csv_path) if csv_path.is_file() else self._collect_labels(masks, csv_path)

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

    def _collect_labels(self, masks: list[Path], csv_path: Path) -> np.ndarray:
        labels = np.zeros((len(self.names), len(self.classes)), dtype=np.float32)
        for row, path in enumerate(masks):
            if self._masks[row] is None:
                raise DataError(
                    f"{path}: the mask file is missing and there is no {csv_path}; one must give the labels"
                )
            ids = np.unique(read_mask(path, num_classes=len(self.classes)))
            labels[row, ids[ids != IGNORE_INDEX]] = 1
        labels[:, BACKGROUND] = 1
        return labels


def _find_image(folder: Path, name: str, split_path: Path) -> Path:
    for suffix in (".jpg", ".jpeg", ".png"):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise DataError(
        f"{folder / name}.jpg: {split_path} lists this image, but there is no such file; add it or remove it"
    )
