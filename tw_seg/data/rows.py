"""Some images of a data set as a data set, without their masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tw_seg.data.dataset import SegmentationData
from tw_seg.types import Sample


class Rows:
    """Some images of a data set; their masks are not read.

    Args:
        data: The data set.
        rows: The places of the images in it.

    Attributes:
        classes: The class names.
        names: The names of the images.
        labels: Their image-level labels, float32, shape (rows, K).
        has_mask: That none has a mask.
    """

    def __init__(self, data: SegmentationData, rows: Sequence[int]) -> None:
        self._data, self._rows = data, [int(row) for row in rows]
        self.classes = data.classes
        self.names = tuple(data.names[row] for row in self._rows)
        self.labels = data.labels[self._rows]
        self.has_mask = np.zeros(len(self._rows), dtype=bool)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """The image at ``index``."""
        return self.load(index, mask=False)

    def load(self, index: int, *, mask: bool) -> Sample:
        """The image at ``index``, without its mask.

        Raises:
            DataError: If the file is unreadable.
        """
        load = getattr(self._data, "load", None)
        sample: Sample = self._data[self._rows[index]] if load is None else load(self._rows[index], mask=False)
        return sample._replace(mask=None, regions=None)
