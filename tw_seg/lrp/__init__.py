"""The numerical heart: layer-wise relevance propagation in coefficient form, torch only."""

from tw_seg.lrp.decode.schedule import Schedule
from tw_seg.lrp.decoder import Decoded, HeatmapDecoder

__all__ = ["Decoded", "HeatmapDecoder", "Schedule"]
