"""tw_seg: turn an image classifier into a segmentation model by unrolling its relevance propagation."""

from tw_seg.errors import TwSegError
from tw_seg.lrp import Decoded, HeatmapDecoder, Schedule
from tw_seg.models.backbones import create_classifier
from tw_seg.models.factory import create_model
from tw_seg.models.segmenter import HeatmapSegmenter
from tw_seg.types import IGNORE_INDEX, Batch, Sample, SegOutput

__version__ = "0.1.0"

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
    "create_classifier",
    "create_model",
]
