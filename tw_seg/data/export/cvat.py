"""Masks as CVAT's XML file, "CVAT for images 1.1"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement

import numpy as np

from tw_seg.data.export.masks import IGNORE_NAME, MaskedImage, count_runs, list_objects
from tw_seg.errors import InputError
from tw_seg.files import write_whole

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_cvat(path: Path, images: Iterable[MaskedImage], classes: Sequence[str], *, predicted: bool = False) -> int:
    """Write objects as masks, pixel for pixel; upload it to a task that has the same labels and images.

    See `tw_seg.data.export.masks.Export`; the layout ``cvat`` reads the file. Ignored pixels have a label of their own.

    Raises:
        InputError: A name holds a character that XML cannot.
    """
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    labels = SubElement(SubElement(SubElement(root, "meta"), "task"), "labels")
    known = [_check_name(name) for name in classes[1:]]
    count = 0
    for file, mask in images:
        place = {"name": _check_name(file), "width": str(mask.shape[1]), "height": str(mask.shape[0])}
        image = SubElement(root, "image", {"id": str(count), **place})
        count += 1
        for found in list_objects(mask, classes):
            if found.label not in known:
                known.append(IGNORE_NAME)
            runs = count_runs(np.flatnonzero(found.inside), found.inside.size)
            height, width = found.inside.shape
            box = {"left": found.left, "top": found.top, "width": width, "height": height, "z_order": 0}
            shape = {"label": found.label, "source": "auto" if predicted else "manual", "occluded": "0"}
            shape["rle"] = ", ".join(map(str, runs))
            SubElement(image, "mask", shape | {key: str(value) for key, value in box.items()})
    for name in known:
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        SubElement(label, "attributes")
    write_whole(path, lambda draft: ElementTree(root).write(draft, encoding="utf-8", xml_declaration=True))
    return count


def _check_name(name: str) -> str:
    if _NO_XML.search(name):
        raise InputError(f"{name!r} holds a character that XML cannot hold; rename the file or the class")
    return name
