"""The layout of CVAT's export "Segmentation mask 1.1": that of Pascal VOC, with masks in colours."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tw_seg.data.layouts.colors import LABEL_MAP
from tw_seg.data.layouts.splits import spell_split
from tw_seg.data.layouts.usable import OnError, raise_error
from tw_seg.data.layouts.voc import VOCDataset, list_split_files
from tw_seg.errors import DataError


class CVATMasks(VOCDataset):
    """Images with masks in colours that ``labelmap.txt`` explains.

    Layout: ``labelmap.txt``, ``ImageSets/Segmentation/default.txt`` or a list for each subset,
    ``SegmentationClass/NAME.png``, and the images as ``JPEGImages/NAME.jpg`` (CVAT exports them when asked to) or below
    ``images=``. An image without a mask is unlabelled, and its labels are unknown.

    Args:
        root: The folder.
        split: A list of the export, in any spelling (``Train``); ``None``: the images of all lists.
        classes: Class names in the order of the class ids, ``"background"`` first; pixels of others are background.
            Default: those of ``labelmap.txt``.
        images: Folder of the images, below ``root``.
        split_by: Divides the images of all lists otherwise: see `tw_seg.data.layouts.splits.choose_rows`.
        need_labels: Without it, to predict, no mask is read; without a list of that split all images are taken.
        on_error: As for `VOCDataset`.

    Raises:
        DataError: As `VOCDataset`, or if there is no ``labelmap.txt``.
    """

    may_lack_labels: ClassVar[bool] = True

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        images: str = "JPEGImages",
        split_by: Mapping[str, Any] | None = None,
        need_labels: bool = True,
        on_error: OnError = raise_error,
    ) -> None:
        root = Path(root)
        if not (root / images).is_dir():
            raise DataError(f"{root / images}: there is no such folder of images; say with images= where they are")
        if split is not None and split_by is None:
            lists = list_split_files(root)
            same = [name for name in lists if name == split] or [
                name for name in lists if spell_split(name) == spell_split(split)
            ]
            split = same[0] if same else split if need_labels else None
        super().__init__(
            root,
            split,
            classes=classes,
            images=images,
            colors=LABEL_MAP,
            split_by=split_by,
            need_labels=need_labels,
            on_error=on_error,
        )
