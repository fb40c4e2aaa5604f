"""Masks as tasks of Label Studio."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from tw_seg.data.export.masks import MaskedImage, list_classes
from tw_seg.data.layouts.brush_rle import encode_brush
from tw_seg.files import write_text

CONTROL, IMAGE = "tag", "image"
"""Names that the project's labelling interface has for its brush and its image; Label Studio's template has these."""


def write_label_studio(
    path: Path,
    images: Iterable[MaskedImage],
    classes: Sequence[str],
    *,
    predicted: bool = False,
    url: str = "/data/local-files/?d=",
) -> int:
    """Write a task for each image, with a brush mask for each class, as annotations or as predictions to begin with.

    See `tw_seg.data.export.masks.Export`; the layout ``label_studio`` reads the file, annotations only, as predictions
    are nobody's statement. Ignored pixels have a label of their own.

    Args:
        path: The file.
        images: The images.
        classes: The class names.
        predicted: Whether to write predictions.
        url: What stands before the file of an image in its address; by default that of files in Label Studio's own
            storage.

    Returns:
        How many images were written.
    """
    tasks = []
    for file, mask in images:
        results = [_describe(mask, class_id, name) for class_id, name in list_classes(mask, classes)]
        content: dict[str, Any] = {"result": results}
        tasks.append(
            {
                "data": {IMAGE: url + quote(file)},
                "annotations": [] if predicted else [content],
                "predictions": [{"model_version": "tw_seg", **content}] if predicted else [],
            }
        )
    write_text(path, json.dumps(tasks, ensure_ascii=False))
    return len(tasks)


def _describe(mask: np.ndarray, class_id: int, name: str) -> dict[str, Any]:
    return {
        "id": f"{CONTROL}-{class_id}",
        "type": "brushlabels",
        "from_name": CONTROL,
        "to_name": IMAGE,
        "original_height": mask.shape[0],
        "original_width": mask.shape[1],
        "image_rotation": 0,
        "value": {"format": "rle", "rle": list(encode_brush(mask == class_id)), "brushlabels": [name]},
    }
