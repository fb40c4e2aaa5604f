"""Masks as files of annotation tools: labelled data for others, or predictions to be corrected there."""

from __future__ import annotations

from tw_seg.data.export.coco import write_coco
from tw_seg.data.export.cvat import write_cvat
from tw_seg.data.export.label_studio import write_label_studio
from tw_seg.data.export.masks import Export

EXPORTS: dict[str, Export] = {"coco": write_coco, "cvat": write_cvat, "label_studio": write_label_studio}
"""Writers by the name of the layout that reads what they write."""
