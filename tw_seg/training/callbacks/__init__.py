"""What happens beside training: seeds, files, pictures, exports, a gate. Each callback does one thing.

An exponential moving average of the weights needs no callback of ours: Lightning has ``EMAWeightAveraging``.
"""

from tw_seg.training.callbacks.averaging import AveragedViews
from tw_seg.training.callbacks.best_checkpoint import BestCheckpoint
from tw_seg.training.callbacks.examples import ExampleImages
from tw_seg.training.callbacks.export import ExportClassifier
from tw_seg.training.callbacks.gate import GatedInference
from tw_seg.training.callbacks.predictions import PREDICTIONS, PredictionWriter
from tw_seg.training.callbacks.report import TestReport
from tw_seg.training.callbacks.run_config import RunConfig
from tw_seg.training.callbacks.step_seed import StepSeed

__all__ = [
    "PREDICTIONS",
    "AveragedViews",
    "BestCheckpoint",
    "ExampleImages",
    "ExportClassifier",
    "GatedInference",
    "PredictionWriter",
    "RunConfig",
    "StepSeed",
    "TestReport",
]
