"""The numerical heart: layer-wise relevance propagation in coefficient form, torch only."""

from tw_seg.lrp.decode.readout import Decoded
from tw_seg.lrp.decode.schedule import Schedule
from tw_seg.lrp.decoder import HeatmapDecoder

__all__ = ["Decoded", "HeatmapDecoder", "Schedule"]
