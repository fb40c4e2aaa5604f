"""What every data set offers: the protocol that loading relies on."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from tw_seg.types import Sample


class SegmentationData(Protocol):
    """What every data set offers. Its ``labels`` are float32, shape (N, K), as those of a `Sample`.

    A data set may also have ``has_mask`` (bool, shape (N,); without it every image has a mask),
    ``annotated`` (bool, shape (N, K); the classes that were annotated in each mask, without it all) and
    ``load(index, *, mask)``, which does not read the mask file unless ``mask`` is true. One with mask files has what
    `tw_seg.data.consistency.MaskFiles` asks for, ``mask_search``: where masks were looked for, for messages,
    ``list_splits(root)``, the splits that there are, and an argument ``on_error``, see `tw_seg.data.layouts.usable`.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...
