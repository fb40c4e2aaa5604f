"""Any labelled images in three parts: images/, masks/ and image_labels.csv."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tw_seg.data.layouts.image_files import ImageFiles
from tw_seg.data.layouts.readers import check_classes, check_unique, read_classes, read_label_table
from tw_seg.errors import DataError

_IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})


class FolderDataset(ImageFiles):
    """Images with image-level labels in a table, and masks for some or all of them.

    Layout: ``images/NAME.jpg`` (or png, bmp, tif, webp), ``masks/NAME.png`` (class ids, single-channel or
    palette; 255 = ignore; an image without one is unlabelled), ``image_labels.csv`` with a column ``image``
    (file name, with or without its suffix), optionally ``split``, and one 0/1 column for each class, and
    optionally ``classes.txt``.

    Args:
        root: The folder.
        split: Value of the column ``split``; ``None`` takes all rows.
        classes: Class names in the order of the class ids, ``"background"`` first; default: the lines of
            ``classes.txt``, or else every further column of the table.

    Attributes:
        classes: The class names; index 0 is the background.
        names: File names of the images without suffix.
        labels: Image-level multi-hot labels, float32, shape (N, K).
        has_mask: Which images have a mask, bool, shape (N,).

    Raises:
        DataError: If a file is missing or inconsistent; images and masks are read, and checked, when asked
            for.
    """

    def __init__(
        self, root: str | os.PathLike[str], split: str | None = None, *, classes: Sequence[str] | None = None
    ) -> None:
        root = Path(root)
        csv_path, classes_path = root / "image_labels.csv", root / "classes.txt"
        if classes is not None:
            classes = check_classes(classes, "classes")
        elif classes_path.is_file():
            classes = read_classes(classes_path)
        table = read_label_table(csv_path, classes)
        rows = np.arange(len(table.images))
        if split is not None:
            if table.splits is None:
                raise DataError(
                    f"{csv_path}: no column 'split' to find the split {split!r} in; add it, or use split=None"
                )
            rows = np.flatnonzero(np.array(table.splits) == split)
            if len(rows) == 0:
                found = ", ".join(sorted(set(table.splits)))
                raise DataError(f"{csv_path}: the split {split!r} is empty; the file has: {found}")
        images = _list_by_stem(root / "images")
        self._images = [_find_image(table.images[row], images, root / "images", csv_path) for row in rows]
        self.names = tuple(path.stem for path in self._images)
        check_unique(self.names, csv_path)
        self.classes = table.classes
        self.labels = table.labels[rows]
        masks = _list_by_stem(root / "masks") if (root / "masks").is_dir() else {}
        self._masks = [_find_mask(name, masks) for name in self.names]
        self.has_mask = np.array([path is not None for path in self._masks])


def _list_by_stem(folder: Path) -> dict[str, list[Path]]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot list the folder ({error.strerror}); check the path") from error
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        if path.suffix.lower() in _IMAGE_SUFFIXES:
            by_stem[path.stem].append(path)
    return dict(by_stem)


def _find_image(entry: str, by_stem: dict[str, list[Path]], folder: Path, csv_path: Path) -> Path:
    """The file that a row of the table means: by its whole name, or by its name without suffix."""
    exact = [path for path in by_stem.get(Path(entry).stem, []) if path.name == entry]
    found = exact or by_stem.get(entry, [])
    if not found:
        raise DataError(
            f"{folder / entry}: {csv_path} lists this image, but there is no such file; add it or remove it"
        )
    if len(found) > 1:
        files = ", ".join(path.name for path in found)
        raise DataError(f"{csv_path}: the image {entry!r} may be {files} in {folder}; write the name with its suffix")
    return found[0]


def _find_mask(name: str, by_stem: dict[str, list[Path]]) -> Path | None:
    found = by_stem.get(name, [])
    masks = [path for path in found if path.suffix.lower() == ".png"]
    if found and not masks:
        raise DataError(f"{found[0]}: masks must be PNG files (others change class ids); convert it")
    return masks[0] if masks else None
