"""Data sets, label budgets and batches."""

from __future__ import annotations

from tw_seg.data.budget import LabelBudget, select_budget
from tw_seg.data.dataset import SegmentationData
from tw_seg.data.layouts.coco import COCODataset
from tw_seg.data.layouts.cvat import CVATDataset
from tw_seg.data.layouts.cvat_masks import CVATMasks
from tw_seg.data.layouts.digits import DigitScenes
from tw_seg.data.layouts.folder import FolderDataset
from tw_seg.data.layouts.label_studio import LabelStudioDataset
from tw_seg.data.layouts.labelme import LabelmeDataset
from tw_seg.data.layouts.triangles import Triangles
from tw_seg.data.layouts.voc import VOCDataset

DATASETS: dict[str, type[SegmentationData]] = {
    "digits": DigitScenes,
    "triangles": Triangles,
    "voc": VOCDataset,
    "folder": FolderDataset,
    "coco": COCODataset,
    "cvat": CVATDataset,
    "cvat_masks": CVATMasks,
    "label_studio": LabelStudioDataset,
    "labelme": LabelmeDataset,
}
"""Data sets by the name that configs use; each is called with ``split=`` and its own arguments."""

__all__ = [
    "COCODataset",
    "CVATDataset",
    "CVATMasks",
    "DATASETS",
    "DigitScenes",
    "FolderDataset",
    "LabelBudget",
    "LabelStudioDataset",
    "LabelmeDataset",
    "Triangles",
    "VOCDataset",
    "select_budget",
]
