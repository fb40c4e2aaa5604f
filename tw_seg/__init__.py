"""tw_seg: turn an image classifier into a segmentation model by unrolling its relevance propagation.

The names below are imported when they are first used, so that ``import tw_seg`` and ``tw-seg --help`` need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tw_seg.version import __version__

if TYPE_CHECKING:
    from tw_seg.errors import TwSegError
    from tw_seg.lrp import Decoded, HeatmapDecoder, Schedule
    from tw_seg.models.backbones import create_classifier
    from tw_seg.models.factory import create_model, load_model
    from tw_seg.models.segmenter import HeatmapSegmenter
    from tw_seg.types import IGNORE_INDEX, Batch, Sample, SegOutput

__all__ = [
    "IGNORE_INDEX",
    "Batch",
    "Decoded",
    "HeatmapDecoder",
    "HeatmapSegmenter",
    "Sample",
    "Schedule",
    "SegOutput",
    "TwSegError",
    "__version__",
    "create_classifier",
    "create_model",
    "load_model",
]

_MODULES = {
    "IGNORE_INDEX": "tw_seg.types",
    "Batch": "tw_seg.types",
    "Decoded": "tw_seg.lrp",
    "HeatmapDecoder": "tw_seg.lrp",
    "HeatmapSegmenter": "tw_seg.models.segmenter",
    "Sample": "tw_seg.types",
    "Schedule": "tw_seg.lrp",
    "SegOutput": "tw_seg.types",
    "TwSegError": "tw_seg.errors",
    "create_classifier": "tw_seg.models.backbones",
    "create_model": "tw_seg.models.factory",
    "load_model": "tw_seg.models.factory",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'tw_seg' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
