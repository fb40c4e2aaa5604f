"""A small data set in the layout of each annotation tool, one image with a mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.data.layouts import test_coco, test_cvat, test_cvat_masks, test_label_studio, test_labelme


def write_coco(root: Path) -> None:
    ring = {"category_id": 4, "segmentation": [test_coco.square(4, 4, 5)]}
    test_coco.draw(root, ring, {"category_id": 9, "bbox": [12, 12, 4, 4]})


def write_cvat(root: Path) -> None:
    test_cvat.draw(root, ("polygon", {"points": "3,2;15,2;15,10"}))


def write_cvat_masks(root: Path) -> None:
    test_cvat_masks.write(root, [np.eye(9, 12, dtype=np.uint8)])


def write_label_studio(root: Path) -> None:
    test_label_studio.draw(root, test_label_studio.region("polygonlabels", points=test_label_studio.SQUARE))


def write_labelme(root: Path) -> None:
    test_labelme.write(root, "a.png", test_labelme.shape("polygon", test_labelme.CORNERS))


WRITERS = {
    "coco": write_coco,
    "cvat": write_cvat,
    "cvat_masks": write_cvat_masks,
    "label_studio": write_label_studio,
    "labelme": write_labelme,
}
