"""TestReport: what ``test`` leaves for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from tw_seg.arguments import check_counts
from tw_seg.data.layouts.readers import read_column
from tw_seg.pictures import draw_image
from tw_seg.report.evaluation import Evaluation
from tw_seg.report.files import PAGE, write_report
from tw_seg.report.page import Shown, show_image
from tw_seg.resize import resize_logits
from tw_seg.training.run_directory import find_run_directory
from tw_seg.training.task import SegmentationTask
from tw_seg.types import Batch

FOLDER = "report"


class TestReport(Callback):
    """Writes ``report/report.html``, ``classes.csv``, ``images.csv`` and ``report.json`` into the run directory.

    See ``docs/report.md``. Scores are of the whole data set at the native size of the masks, as those that ``test``
    logs; intervals are those of a bootstrap over images, or over groups of images.

    Args:
        resamples: Bootstrap samples; 0 for no intervals.
        groups: A CSV file with a column ``image`` and the next, such as an ``image_labels.csv``; ``None``: every image
            by itself.
        group_column: The column of that file that says which images are drawn together.
        show: Number of images in each row of pictures.

    Raises:
        InputError: For a negative number.
    """

    __test__ = False  # no test of pytest's

    def __init__(
        self, resamples: int = 1000, groups: str | None = None, *, group_column: str = "group", show: int = 6
    ) -> None:
        check_counts(0, resamples=resamples, show=show)
        self.resamples, self.groups, self.group_column, self.show = resamples, groups, group_column, show
        self._evaluation: Evaluation | None = None
        self._shown: dict[str, Shown] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SegmentationTask)
        self._evaluation, self._shown = None, {}
        if trainer.world_size > 1:
            rank_zero_warn("no report is written: it needs one process, trainer.devices=1")
        elif not getattr(trainer, "fast_dev_run", False):
            self._evaluation = Evaluation(pl_module.class_names)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the images of a batch."""
        if self._evaluation is None:
            return
        masked = {int(image): row for row, image in enumerate(batch.labelled)} if len(outputs["mask_logits"]) else {}
        for index, name in enumerate(batch.names):
            row = masked.get(index)
            mask = None if row is None else batch.native_masks[row]
            maps = None if mask is None else resize_logits(outputs["mask_logits"][row][None], mask.shape)[0]
            predicted = self._evaluation.add(
                name, outputs["logits"][index], batch.labels[index], mask_logits=maps, mask=mask
            )
            if predicted is not None and mask is not None:
                image = draw_image(batch.images[index].float().cpu().numpy())
                self._shown[name] = show_image(image, mask.cpu().numpy(), predicted)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the report."""
        if self._evaluation is None or not self._evaluation.names:
            return
        assert isinstance(pl_module, SegmentationTask)
        groups = None if self.groups is None else read_column(Path(self.groups), self.group_column)
        with torch.inference_mode(False):
            results = self._evaluation.compute(groups, resamples=self.resamples)
        run = find_run_directory(trainer)
        drawn = "" if groups is None else f" in {len(set(groups.values()))} groups ({self.group_column})"
        facts = {
            "model": pl_module.hparams["model"],
            "encoder": pl_module.hparams["encoder_name"],
            "checkpoint": trainer.ckpt_path or "none",
            "images": f"{len(self._evaluation.names)}, {len(self._evaluation.masked)} with a mask{drawn}",
            "classes": len(self._evaluation.classes),
        }
        folder, title = run / FOLDER, f"Test of {run.name}"
        write_report(folder, self._evaluation, results, title=title, facts=facts, shown=self._shown, show=self.show)
        rank_zero_info(f"report: {folder / PAGE}")
        self._evaluation, self._shown = None, {}
