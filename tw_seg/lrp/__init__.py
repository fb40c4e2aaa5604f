"""Layer-wise relevance propagation in coefficient form, as differentiable operations of torch."""

from tw_seg.lrp.decode.readout import Decoded, Projected
from tw_seg.lrp.decode.schedule import Schedule
from tw_seg.lrp.decoder import HeatmapDecoder

__all__ = ["Decoded", "HeatmapDecoder", "Projected", "Schedule"]
