"""Gated inference in Lightning: ``predict`` decodes likely classes only, ``test`` logs what that does."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info

from tw_seg.arguments import check_numbers
from tw_seg.errors import InputError
from tw_seg.files import write_text
from tw_seg.metrics import SegmentationMetrics, predict_masks
from tw_seg.models.gated import GatedSegmenter, calibrate_gate, select_classes
from tw_seg.training.run_directory import find_run_directory
from tw_seg.training.task import SegmentationTask
from tw_seg.types import Batch

GATE_FILE = "gate.json"


class GatedInference(Callback):
    """Lets ``predict`` decode only the classes that pass a gate, and ``test`` log the metrics behind it as well.

    The gate is found when testing or predicting starts: the largest one that changes the mIoU of the run's validation
    images by no more than ``tolerance``, see ``docs/gate.md``. It is written to ``gate.json`` in the run directory.
    Training and validation know no gate, and a checkpoint keeps none.

    Args:
        tolerance: Largest change of the mIoU, such as 0.001; ``None``: no gate, every class is decoded.

    Raises:
        InputError: ``tolerance`` is negative or not finite; the model does not decode class by class; the trainer has
            no datamodule with validation images.
    """

    def __init__(self, tolerance: float | None = None) -> None:
        check_numbers(tolerance=tolerance or 0.0)
        self.tolerance = tolerance
        self._gated: GatedSegmenter | None = None  # with a gate from when testing or predicting starts
        self._metrics: SegmentationMetrics | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a model that cannot be gated before anything is computed."""
        task = _as_task(pl_module)
        if self.tolerance is not None and not task.model.can_gate:
            raise InputError(
                f"gate.tolerance needs a model that decodes class by class, such as 'heatmap', got "
                f"{task.hparams['model']!r}"
            )

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        task = _as_task(pl_module)
        self._gated = self._calibrate(trainer, task)
        self._metrics = SegmentationMetrics(task.class_names).to(task.device)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Segment the labelled images once more, behind the gate."""
        if self._gated is None or len(batch.labelled) == 0:
            return
        assert self._metrics is not None and self._gated.gate is not None
        with trainer.precision_plugin.forward_context():
            output = self._gated(batch.images[batch.labelled])
        self._metrics.update_masks(predict_masks(output.mask_logits, batch.native_masks), batch.native_masks)
        decoded = select_classes(output.logits, self._gated.gate).sum(1).float().mean()
        pl_module.log("test/gate/decoded", decoded, batch_size=len(batch.labelled), sync_dist=True)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._gated is not None:
            assert self._metrics is not None and self._gated.gate is not None
            miou = self._metrics.compute_masks()["miou"]
            pl_module.log_dict({"test/gate/miou": miou, "test/gate/probability": self._gated.gate})

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        task = _as_task(pl_module)
        gated = self._calibrate(trainer, task)
        task.segment = None if gated is None else gated.forward

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._gated = self._metrics = _as_task(pl_module).segment = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")

    def _calibrate(self, trainer: pl.Trainer, task: SegmentationTask) -> GatedSegmenter | None:
        """Find the gate on the validation images of the run, say what it does, and write that down."""
        if self.tolerance is None:
            return None
        data = getattr(trainer, "datamodule", None)
        if data is None:
            raise InputError(
                "gate.tolerance: a gate is calibrated on validation images: pass the trainer a datamodule with a "
                "val_dataloader()"
            )
        with trainer.precision_plugin.forward_context():  # in the precision of the masks to come
            report = calibrate_gate(task.model, data.val_dataloader(), self.tolerance)
        rank_zero_info(str(report))
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            write_text(find_run_directory(trainer) / GATE_FILE, report.to_json())
        return GatedSegmenter(task.model, report.gate)


def _as_task(module: pl.LightningModule) -> SegmentationTask:
    assert isinstance(module, SegmentationTask)
    return module
