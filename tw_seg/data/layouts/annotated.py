"""The base of the layouts in which an annotation tool's file says what is drawn on which image."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from tw_seg.data.layouts.colors import IGNORE_NAMES
from tw_seg.data.layouts.file_names import (
    FileTree,
    find_near_name,
    is_file,
    normalize_name,
    show_names,
    strip_suffix,
)
from tw_seg.data.layouts.image_files import ImageFiles
from tw_seg.data.layouts.readers import BACKGROUND_NAME, check_classes, make_unknown_labels, read_classes
from tw_seg.data.layouts.shapes import Shape, Size, check_size, draw_mask
from tw_seg.data.layouts.splits import choose_rows, spell_split
from tw_seg.data.layouts.usable import OnError, find_usable, list_unique, raise_error
from tw_seg.errors import DataError, InputError
from tw_seg.types import BACKGROUND, IGNORE_INDEX

BACKGROUND_NAMES = (BACKGROUND_NAME, "_background_")

Unannotated = Literal["background", "unlabelled"]


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """What a file of annotations says of one image.

    Attributes:
        files: Names of its file, below the folder of images, the likeliest first; or the path itself.
        source: The file of annotations.
        size: Height and width of the image that was annotated, if the file says so.
        shapes: What is drawn, in the order of drawing.
        shown: Further classes that the image shows, somewhere.
        is_annotated: Whether anybody looked at it: without that, the lack of shapes means nothing.
        split: The split that the file puts it into, if any.
    """

    files: tuple[str, ...] | Path
    source: Path
    size: Size | None
    shapes: tuple[Shape, ...] = ()
    shown: frozenset[str] = frozenset()
    is_annotated: bool = True
    split: str | None = None

    @property
    def title(self) -> str:
        """Its name for messages."""
        return self.files.name if isinstance(self.files, Path) else self.files[0]


@dataclass(frozen=True, slots=True)
class Annotations:
    """What a file of annotations holds.

    Attributes:
        images: Every image once.
        classes: The classes in the file's own order; ``None``: it has no such list.
    """

    images: tuple[AnnotatedImage, ...]
    classes: tuple[str, ...] | None


class AnnotatedImages(ImageFiles):
    """Images whose masks are drawn from shapes. A layout reads its file, in `_read_annotations`; all else is here.

    Args:
        root: The folder.
        split: Name of the split; ``None`` takes all images. Where the path ``annotations`` holds ``{split}``, that file
            is the split; else ``split_by`` says which images belong to it, or else the file itself.
        annotations: File or folder of the annotations, below ``root``.
        images: Folder of the images, below ``root``; it may hold ``{split}`` as well. Default: ``images``, or ``root``
            itself if there is no such folder.
        classes: Class names in the order of the class ids, ``"background"`` first; shapes of others are left out, so
            their pixels are background. Default: the lines of ``classes.txt``, or else the file's own list, or else
            every class that is drawn, sorted.
        ignore: Classes whose pixels are 255.
        unannotated: Whether an annotated image without any shape is ``"background"`` or ``"unlabelled"``.
        split_by: See `tw_seg.data.layouts.splits.choose_rows`.
        need_labels: Without it, to predict, no annotation is looked at but the list of images, and no label but the
            background's is known. All images are taken where nothing tells the splits apart.
        on_error: Is called with each error that concerns a single image, which is then left out; by default the first
            is raised.

    Attributes:
        classes: The class names; index 0 is the background.
        names: Paths of the images below their folder, without suffix where that is enough to tell them apart.
        labels: Image-level multi-hot labels of what is drawn, float32, shape (N, K); NaN where nobody annotated.
        has_mask: Which images were annotated, bool, shape (N,).

    Raises:
        DataError: If a file is missing or inconsistent; images and shapes are checked when asked for.
    """

    default_annotations: ClassVar[str]

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | None = None,
        *,
        annotations: str | None = None,
        images: str | None = None,
        classes: Sequence[str] | None = None,
        ignore: Sequence[str] = IGNORE_NAMES,
        unannotated: Unannotated = "background",
        split_by: Mapping[str, Any] | None = None,
        need_labels: bool = True,
        on_error: OnError = raise_error,
    ) -> None:
        if unannotated not in ("background", "unlabelled"):
            raise InputError(f"unannotated must be 'background' or 'unlabelled', got {unannotated!r}")
        root = Path(root)
        by_path = "{split}" in (annotations or self.default_annotations)
        if by_path and split_by is not None:
            raise InputError("give split_by, or {split} in the path annotations, not both")
        source = _fill_in(root, annotations or self.default_annotations, split)
        folder = _find_folder(root, images, split)
        found = self._read_annotations(source, folder)
        if not found.images:
            raise DataError(f"{source}: there is no image in it; add images and export the annotations again")
        tree = FileTree(folder)
        listed, paths = find_usable(found.images, lambda image: _find_file(image, tree), on_error)
        once = list_unique(list(map(str, paths)), source, on_error)
        listed, paths = [listed[i] for i in once], [paths[i] for i in once]
        names = _name_images(paths, folder)
        rows = np.arange(len(names))
        if split_by is not None and split is not None:
            rows = choose_rows(names, split, split_by, root=root)
        elif split is not None and not by_path:
            rows = _find_rows(listed, split, source, need_labels=need_labels)
        if classes is None and (root / "classes.txt").is_file():
            classes = read_classes(root / "classes.txt")
        self.classes = _choose_classes(found, classes, ignore, source=source, need_labels=need_labels)
        self._ids = {name: BACKGROUND for name in BACKGROUND_NAMES} | {name: k for k, name in enumerate(self.classes)}
        self._ids |= {name: IGNORE_INDEX for name in ignore if name not in self._ids}
        self.names = tuple(names[row] for row in rows)
        self._images = [paths[row] for row in rows]
        self._annotated = [listed[row] for row in rows]
        known = [need_labels and self._is_known(image, unannotated) for image in self._annotated]
        self._masks = [one.source if is_known else None for one, is_known in zip(self._annotated, known, strict=True)]
        self.has_mask = np.array(known, dtype=bool)
        self.labels = self._collect_labels() if need_labels else make_unknown_labels(len(rows), len(self.classes))
        self.mask_search = f"masks are drawn from the shapes in {source}, and no image of this split has one"

    @classmethod
    def list_splits(cls, root: str | os.PathLike[str]) -> tuple[str | None, ...]:
        """The splits that have a file each; only ``None``, all images, where one file has them all."""
        before, _, after = cls.default_annotations.partition("{split}")
        found = sorted(str(path.relative_to(root)) for path in Path(root).glob(f"{before}*{after}")) if after else []
        return tuple(name.removeprefix(before).removesuffix(after) for name in found) or (None,)

    @abstractmethod
    def _read_annotations(self, path: Path, folder: Path) -> Annotations:
        """Read the file or folder of annotations of the images in ``folder``."""

    def _is_known(self, image: AnnotatedImage, unannotated: Unannotated) -> bool:
        """Whether the mask of an image is known."""
        return image.is_annotated and (bool(image.shapes) or (unannotated == "background" and not image.shown))

    def _collect_labels(self) -> np.ndarray:
        labels = make_unknown_labels(len(self._annotated), len(self.classes))
        labels[self.has_mask, BACKGROUND + 1 :] = 0
        for row, image in enumerate(self._annotated):
            for name in (*(shape.label for shape in image.shapes), *image.shown):
                class_id = self._ids.get(name, IGNORE_INDEX)
                if class_id != IGNORE_INDEX:
                    labels[row, class_id] = 1
        return labels

    def _read_annotation(self, index: int, size: Size) -> tuple[np.ndarray, np.ndarray | None]:
        image = self._annotated[index]
        try:
            if image.size is not None:
                check_size(image.size, size, "the annotations are")
            shapes = [(shape, self._ids[shape.label]) for shape in image.shapes if shape.label in self._ids]
            return draw_mask(shapes, size, len(self.classes))
        except DataError as error:
            raise DataError(f"{image.source}: image {image.title!r} ({self._images[index]}): {error}") from error


def _fill_in(root: Path, pattern: str, split: str | None) -> Path:
    """The path that a pattern means for a split."""
    if "{split}" in pattern and split is None:
        raise DataError(f"{root / pattern}: which split? Give split=, or a path without {{split}}")
    path = root / pattern.replace("{split}", split or "")
    if "{split}" in pattern and not path.exists():
        found = sorted(str(other.relative_to(root)) for other in root.glob(pattern.replace("{split}", "*")))
        raise DataError(f"{path}: there is no such file for the split {split!r}; found: {show_names(found) or 'none'}")
    return path


def _find_folder(root: Path, images: str | None, split: str | None) -> Path:
    if images is None:
        return root / "images" if (root / "images").is_dir() else root
    folder = _fill_in(root, images, split)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of images; correct images=")
    return folder


def _find_file(image: AnnotatedImage, tree: FileTree) -> Path:
    if isinstance(image.files, Path):
        if not is_file(image.files):
            raise DataError(f"{image.files}: {image.source} names this image, but there is no such file; add it")
        return image.files
    for entry in image.files:
        found = tree.find_file(entry.replace("\\", "/"))
        if len(found) == 1:
            return found[0]
        if found:
            files = show_names([path.name for path in found])
            raise DataError(
                f"{image.source}: the image {entry!r} may be {files} in {found[0].parent}; leave one of them"
            )
    name = Path(image.files[0].replace("\\", "/")).name
    near = find_near_name(name, [path.name for paths in tree.top().values() for path in paths])
    there = [path.name for paths in tree.top().values() for path in paths]
    like = "" if near is None else f" ({near[0]!r} is like it, but {near[1]})"
    like = like or (f" (there is {show_names(there)})" if there else " (there is no image)")
    raise DataError(
        f"{tree.root / image.files[0]}: {image.source} lists this image, but there is no such file{like}; add it, or "
        "say with images= in which folder the images are"
    )


def _name_images(paths: Sequence[Path], folder: Path) -> list[str]:
    """Paths below the folder; with the suffix where two differ in that only."""
    below = [path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name) for path in paths]
    names = [normalize_name(path.as_posix()) for path in below]
    counts = Counter(map(strip_suffix, names))
    names = [short if counts[short := strip_suffix(name)] == 1 else name for name in names]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        first, second = [path for path, name in zip(paths, names, strict=True) if name == twice][:2]
        raise DataError(f"{first}: another image has the same name, {second}; rename one of them")
    return names


def _find_rows(images: Sequence[AnnotatedImage], split: str, source: Path, *, need_labels: bool) -> np.ndarray:
    """The rows that the file itself puts into a split."""
    splits = [image.split for image in images]
    if all(own is None for own in splits):
        if not need_labels:
            return np.arange(len(images))
        raise DataError(
            f"{source}: nothing says which images belong to the split {split!r}; give split_by={{'shares': {{'train': "
            "0.8, 'val': 0.2}}, a file per split (annotations= with {split}), or split=None for all"
        )
    rows = [row for row, own in enumerate(splits) if own == split]
    rows = rows or [row for row, own in enumerate(splits) if own and spell_split(own) == spell_split(split)]
    if not rows:
        found = ", ".join(sorted({own or "(none)" for own in splits}))
        raise DataError(f"{source}: the split {split!r} is empty; the file has: {found}")
    return np.array(rows)


def _choose_classes(
    found: Annotations, classes: Sequence[str] | None, ignore: Sequence[str], *, source: Path, need_labels: bool
) -> tuple[str, ...]:
    if classes is not None:
        chosen = check_classes(classes, "classes")
        lacking = sorted(set(chosen[1:]) - set(found.classes or chosen))
        if lacking and need_labels:
            raise DataError(
                f"{source}: no class {', '.join(map(repr, lacking))}; the file has {', '.join(found.classes or ())}: "
                "correct the class list"
            )
        return chosen
    names = found.classes
    if names is None:
        drawn = {shape.label for image in found.images for shape in image.shapes}
        names = tuple(sorted(drawn.union(*(image.shown for image in found.images))))
    objects = [name for name in names if name not in BACKGROUND_NAMES and name not in ignore]
    if not objects and not need_labels:
        return (BACKGROUND_NAME,)
    return check_classes([BACKGROUND_NAME, *objects], f"{source}: the classes")
