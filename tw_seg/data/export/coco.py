"""Masks as COCO's JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tw_seg.data.export.masks import IGNORE_NAME, DrawnObject, MaskedImage, count_runs, list_objects
from tw_seg.files import write_text


def write_coco(path: Path, images: Iterable[MaskedImage], classes: Sequence[str], *, predicted: bool = False) -> int:
    """Write objects as run lengths, pixel for pixel; ignored pixels are a crowd of a category of their own.

    See `tw_seg.data.export.masks.Export`; the layout ``coco`` reads the file.
    """
    numbers = {name: number for number, name in enumerate(classes) if number}
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (file, mask) in enumerate(images, 1):
        listed.append({"id": number, "file_name": file, "height": mask.shape[0], "width": mask.shape[1]})
        for found in list_objects(mask, classes):
            category = numbers.setdefault(found.label, len(classes))
            where = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            is_crowd = {"iscrowd": int(category == len(classes) and found.label == IGNORE_NAME)}
            annotations.append({**where, **is_crowd, **_describe(found, mask.shape)})
    content = {
        "info": {"description": "predictions of tw_seg" if predicted else "written by tw_seg"},
        "images": listed,
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": annotations,
    }
    write_text(path, json.dumps(content, ensure_ascii=False))
    return len(listed)


def _describe(found: DrawnObject, size: tuple[int, ...]) -> dict[str, Any]:
    from faster_coco_eval import mask as coco  # here: a tenth of a second that others need not wait

    height, width = size
    columns, rows = np.nonzero(found.inside.T)
    counts = count_runs((columns + found.left) * height + rows + found.top, height * width)
    runs = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {
        "segmentation": {"size": [height, width], "counts": runs["counts"].decode("ascii")},
        "area": int(found.inside.sum()),
        "bbox": [found.left, found.top, found.inside.shape[1], found.inside.shape[0]],
    }
