"""SegmentationTask: what every training run does, whatever the model."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR

from tw_seg.arguments import check_numbers
from tw_seg.errors import InputError
from tw_seg.files import write_text
from tw_seg.losses import SegmentationLoss
from tw_seg.metrics import SegmentationMetrics, predict_masks
from tw_seg.models.factory import create_model
from tw_seg.models.gated import GatedSegmenter, calibrate_gate, passing
from tw_seg.models.segmenter import HeatmapSegmenter
from tw_seg.models.weights import read_weights
from tw_seg.training.run_directory import run_directory
from tw_seg.types import Batch, SegOutput

Stage = Literal["train", "val", "test"]
METRICS = ("val", "test", "gate")
"""What has metrics of its own; ``"gate"`` is ``test`` once more, with gated masks."""
GATE_FILE = "gate.json"
SCHEDULERS = ("cosine", "onecycle", "none")
SCALE_PARAMETERS = ("log_scale", "offset")
"""Names of the parameters, directly on a model, that turn heatmaps into mask logits."""
DECODERS = ("decoder.decoder_weights.", "net.decoder.", "net.segmentation_head.")
"""Where in a model the weights are that are the decoder's alone: an untied heatmap decoder's, a U-Net's."""


class Prediction(NamedTuple):
    """What ``predict`` returns for one batch.

    Attributes:
        names: The N sample names.
        masks: N masks of class indices, int64, each (h, w): at the native size of the image, if the batch knows
            it; empty for a model without masks.
        probabilities: Image-level probabilities, float, shape (N, K).
    """

    names: tuple[str, ...]
    masks: tuple[Tensor, ...]
    probabilities: Tensor


class SegmentationTask(pl.LightningModule):
    """Trains and evaluates one model; images without masks are classified, never decoded.

    Its hyper-parameters are names and numbers only, so a checkpoint loads with ``weights_only=True``.

    Args:
        model: Name of the model, a key of :data:`tw_seg.models.factory.MODELS`.
        model_kwargs: The model's own arguments; they win over the encoder arguments below.
        class_names: Names of the K classes, the background first.
        encoder_name: Encoder, by the name that :func:`tw_seg.models.backbones.create_classifier` knows.
        encoder_weights: Its pretrained weights, by name or file; ``None``: random.
        in_channels: Channels of the images.
        encoder_kwargs: Further arguments of the encoder.
        warm_start: File with the state of an image-level classifier (safetensors) to begin with. Not part of
            the checkpoint, which holds all weights anyway.
        ce: Weight of the pixel-wise cross-entropy.
        dice: Weight of the soft Dice loss.
        bce: Weight of the image-level loss.
        aux: Weight of deep supervision.
        lr: Peak learning rate of AdamW.
        weight_decay: Weight decay, of weights only (biases, norms and scales have none).
        decoder_lr_factor: Learning rate of the decoder's own weights (an untied heatmap decoder's, a U-Net's),
            relative to ``lr``.
        scale_lr_factor: Learning rate of a heatmap's scale and offset, relative to ``lr``.
        scheduler: ``"cosine"`` (to 0), ``"onecycle"`` or ``"none"``, all by step.
        warmup_steps: Steps of linear warm-up; ``"onecycle"`` climbs that long, or for 30 % of the run if 0.
        freeze_batchnorm: Keep the encoder's BatchNorm layers in eval mode in training: their statistics stay as
            they are, and the heatmap of an image does not depend on the others in its batch.
        gate_tolerance: ``predict`` decodes only the classes that pass a gate, the largest that changes the mIoU of
            the validation images by no more than this, and ``test`` logs what that does beside the metrics, see
            ``docs/gate.md``. ``None``: every class is decoded. Not part of the checkpoint either: a trained model
            may be used with a gate or without.

    Raises:
        InputError: An argument does not fit; ``warm_start`` is missing or from another encoder.
    """

    def __init__(
        self,
        model: str = "heatmap",
        model_kwargs: dict[str, Any] | None = None,
        *,
        class_names: list[str],
        encoder_name: str = "resnet18",
        encoder_weights: str | None = None,
        in_channels: int = 3,
        encoder_kwargs: dict[str, Any] | None = None,
        warm_start: str | None = None,
        ce: float = 1.0,
        dice: float = 1.0,
        bce: float = 1.0,
        aux: float = 0.4,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        decoder_lr_factor: float = 1.0,
        scale_lr_factor: float = 1.0,
        scheduler: Literal["cosine", "onecycle", "none"] = "cosine",
        warmup_steps: int = 0,
        freeze_batchnorm: bool = False,
        gate_tolerance: float | None = None,
    ) -> None:
        super().__init__()
        class_names = [str(name) for name in class_names]
        check_numbers(
            lr=lr,
            weight_decay=weight_decay,
            decoder_lr_factor=decoder_lr_factor,
            scale_lr_factor=scale_lr_factor,
            gate_tolerance=gate_tolerance or 0.0,
        )
        if scheduler not in SCHEDULERS or warmup_steps < 0:
            raise InputError(
                f"scheduler must be one of {', '.join(SCHEDULERS)} and warmup_steps >= 0, "
                f"got {scheduler!r} and {warmup_steps}"
            )
        self.save_hyperparameters(ignore=["warm_start", "gate_tolerance"])
        self.class_names = tuple(class_names)
        self._total_steps = 0  # known when training starts
        self.model = create_model(
            model,
            **{
                "encoder_name": encoder_name,
                "encoder_weights": encoder_weights,
                "in_channels": in_channels,
                "classes": len(class_names),
                "encoder_kwargs": encoder_kwargs,
                **(model_kwargs or {}),
            },
        )
        if gate_tolerance is not None and not isinstance(self.model, HeatmapSegmenter):
            raise InputError(f"gate_tolerance needs the model 'heatmap', which decodes class by class, got {model!r}")
        self.gate_tolerance = gate_tolerance
        self._gate: float | None = None  # known when testing or predicting starts
        if warm_start is not None:
            self.model.load_classifier_state(read_weights(warm_start))
        self.loss = SegmentationLoss(ce, dice, bce=bce, aux=aux)
        self.metrics = nn.ModuleDict({stage: SegmentationMetrics(class_names) for stage in METRICS})

    @property
    def num_classes(self) -> int:
        """Number of classes K, background included."""
        return len(self.class_names)

    def forward(self, images: Tensor, classes: Any = None, samples: Tensor | None = None) -> SegOutput:
        """The model's output for images (N, C, H, W); see :class:`tw_seg.types.SegOutput`."""
        output: SegOutput = self.model(images, classes=classes, samples=samples)
        return output

    # ------------------------------------------------------------------------------------------- batches

    def setup(self, stage: str) -> None:
        """Silence one warning of Lightning's: that the hook below is the task's, not the data module's."""
        warnings.filterwarnings("ignore", message="You have overridden `on_before_batch_transfer`")

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Check the batch while it is still in main memory, where reading it does not wait for a GPU."""
        check_batch(batch, self.num_classes)
        return batch

    # --------------------------------------------------------------------------------------------- steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one semi-supervised batch; only the rows ``batch.labelled`` are decoded."""
        return self._loss("train", batch, self(batch.images, samples=batch.labelled))

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Add a batch to the metrics of ``val``."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Add a batch to the metrics of ``test``; with a gate, also to those behind it."""
        if self._gate is not None and len(batch.labelled):
            output = self._gated(batch.images[batch.labelled], self._gate)
            self._update_masks("gate", batch, output)
            decoded = passing(output.logits, self._gate).sum(1).float().mean()
            self.log("test/gate/decoded", decoded, batch_size=len(batch.labelled), sync_dist=True)
        return self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Prediction:
        """Masks and image-level probabilities of all images of a batch, with a mask or not."""
        output = self(batch.images) if self._gate is None else self._gated(batch.images, self._gate)
        height, width = batch.images.shape[2:]
        sizes = batch.sizes or ((height, width),) * len(batch.images)
        masks = predict_masks(output.mask_logits, sizes[: len(output.mask_logits)])
        return Prediction(batch.names, tuple(masks), output.logits.float().sigmoid())

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of ``val``."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of ``test``; with a gate, also the mIoU behind it."""
        self._log_metrics("test")
        if self._gate is not None:
            gated = self._metrics("gate")
            self.log_dict({"test/gate/miou": gated.compute_masks()["miou"], "test/gate/probability": self._gate})
            gated.reset()

    def on_validation_start(self) -> None:
        """Calibrate a training-free model."""
        self._calibrate()

    def on_test_start(self) -> None:
        """Calibrate a training-free model, or the gate."""
        self._calibrate()
        self._calibrate_gate()

    def on_predict_start(self) -> None:
        """Calibrate a training-free model, or the gate."""
        self._calibrate()
        self._calibrate_gate()

    def on_train_start(self) -> None:
        """Count the steps for the schedule; freeze BatchNorm if asked to.

        The steps are not counted in `configure_optimizers`: that would make Lightning 2.6 set up the training
        data before it reads the checkpoint, and a resumed run would then not give its state to the data
        loader. Lightning keeps the modes of modules through validation.
        """
        self._total_steps = self._count_steps()
        if self.hparams["freeze_batchnorm"]:
            for name, module in self.model.named_modules():
                if isinstance(module, _BatchNorm) and not name.startswith(DECODERS):
                    module.eval()

    # -------------------------------------------------------------------------------------- optimisation

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and a schedule by step."""
        groups = self._parameter_groups()
        if not groups:
            raise InputError(
                f"model {self.hparams['model']!r} has no parameter to train: run it with `tw-seg test`, and "
                "give its classifier with --model.warm_start"
            )
        optimizer = torch.optim.AdamW(groups, lr=self.hparams["lr"])
        by_step: LRSchedulerConfigType = {"scheduler": LambdaLR(optimizer, lambda step: self._factor(step))}
        by_step["interval"] = "step"
        return {"optimizer": optimizer, "lr_scheduler": by_step}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        lr, decay = self.hparams["lr"], self.hparams["weight_decay"]
        decoder_lr = lr * self.hparams["decoder_lr_factor"]
        groups: dict[str, dict[str, Any]] = {
            "weights": {"params": [], "lr": lr, "weight_decay": decay},
            "biases": {"params": [], "lr": lr, "weight_decay": 0.0},
            "decoder weights": {"params": [], "lr": decoder_lr, "weight_decay": decay},
            "decoder biases": {"params": [], "lr": decoder_lr, "weight_decay": 0.0},
            "scales": {"params": [], "lr": lr * self.hparams["scale_lr_factor"], "weight_decay": 0.0},
        }
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                kind = ("decoder " if name.startswith(DECODERS) else "") + (
                    "weights" if parameter.ndim > 1 else "biases"
                )
                groups["scales" if name in SCALE_PARAMETERS else kind]["params"].append(parameter)
        return [{"name": name, **group} for name, group in groups.items() if group["params"]]

    def _factor(self, step: int) -> float:
        numbers = {"warmup": self.hparams["warmup_steps"], "total": self._total_steps}
        return schedule(self.hparams["scheduler"], step, **numbers)

    def _count_steps(self) -> int:
        total = self.trainer.estimated_stepping_batches
        kind, warmup = self.hparams["scheduler"], self.hparams["warmup_steps"]
        if kind != "none" and not math.isfinite(total):
            raise InputError(
                f"scheduler {kind!r} needs to know where training ends: set trainer.max_epochs or max_steps, "
                "or use the scheduler 'none'"
            )
        if kind != "none" and warmup >= total:
            raise InputError(f"warmup_steps={warmup} does not fit into a run of {total} steps: lower it")
        return int(total) if math.isfinite(total) else 0

    # ------------------------------------------------------------------------------------------- helpers

    def _calibrate(self) -> None:
        """Let a training-free model choose its threshold on the label budget's training images."""
        if self.model.needs_calibration:
            data = getattr(self.trainer, "datamodule", None)
            if data is None:
                raise InputError(
                    f"model {self.hparams['model']!r} is calibrated on labelled images: pass the trainer a "
                    "datamodule with a labelled_dataloader()"
                )
            self.model.calibrate(data.labelled_dataloader())

    def _calibrate_gate(self) -> None:
        """Find the gate on the validation images of the run, say what it does, and write that down."""
        self._gate = None
        if self.gate_tolerance is None:
            return
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise InputError(
                "gate_tolerance: a gate is calibrated on validation images: pass the trainer a datamodule with a "
                "val_dataloader()"
            )
        assert isinstance(self.model, HeatmapSegmenter)
        with self.trainer.precision_plugin.forward_context():  # in the precision of the masks to come
            report = calibrate_gate(self.model, data.val_dataloader(), self.gate_tolerance)
        self._gate = report.gate
        rank_zero_info(str(report))
        if self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            write_text(run_directory(self.trainer) / GATE_FILE, report.to_json())

    def _gated(self, images: Tensor, gate: float) -> SegOutput:
        assert isinstance(self.model, HeatmapSegmenter)
        output: SegOutput = GatedSegmenter(self.model, gate)(images)
        return output

    def _evaluate(self, stage: Stage, batch: Batch) -> dict[str, Tensor]:
        output = self(batch.images, samples=batch.labelled)
        self._loss(stage, batch, output)
        self._metrics(stage).update_labels(output.logits, batch.labels)
        self._update_masks(stage, batch, output)
        return {"logits": output.logits, "mask_logits": output.mask_logits}

    def _metrics(self, name: str) -> SegmentationMetrics:
        metrics = self.metrics[name]
        assert isinstance(metrics, SegmentationMetrics)
        return metrics

    def _update_masks(self, name: str, batch: Batch, output: SegOutput) -> None:
        scored = _scored(batch, output)
        masks = predict_masks(output.mask_logits, scored.native_masks)
        self._metrics(name).update_masks(masks, scored.native_masks)

    def _loss(self, stage: Stage, batch: Batch, output: SegOutput) -> Tensor:
        loss, parts = self.loss(output, _scored(batch, output))
        count = len(batch.images)
        across = stage != "train"  # means over an epoch are means over all devices
        self.log(f"{stage}/loss", loss, prog_bar=stage == "train", batch_size=count, sync_dist=across)
        named = {f"{stage}/{name}": value for name, value in parts.items()}
        self.log_dict(named, batch_size=count, sync_dist=across)
        return loss

    def _log_metrics(self, stage: Stage) -> None:
        metrics = self._metrics(stage)
        values = {**metrics.compute_masks(), **metrics.compute_labels()}
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name in ("miou", "cls/map"))
        metrics.reset()


def check_batch(batch: Batch, num_classes: int) -> None:
    """Check types, shapes and that the images are finite.

    Raises:
        InputError: Naming the samples if a value is not finite.
    """
    if not isinstance(batch, Batch):
        raise InputError(
            f"a batch must be a tw_seg.types.Batch, got {type(batch).__name__}: use tw_seg.data.loading.collate"
        )
    images, labels = batch.images, batch.labels
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"batch.images must be a float tensor (N, C, H, W), got {images.dtype} {tuple(images.shape)}: "
            "normalise images before they are collated"
        )
    if labels.shape != (len(images), num_classes):
        raise InputError(
            f"batch.labels must have the shape (N, K) = ({len(images)}, {num_classes}), got "
            f"{tuple(labels.shape)}: the data set and the task must know the same classes"
        )
    if batch.masks.shape[1:] != images.shape[2:] or len(batch.masks) != len(batch.labelled):
        raise InputError(
            f"batch.masks must have the shape (L, H, W) = {(len(batch.labelled), *images.shape[2:])}, got "
            f"{tuple(batch.masks.shape)}: transform an image and its mask together"
        )
    if images.is_cpu and not bool(images.sum().isfinite()):  # one cheap pass; the second only to say where
        bad = [name for name, image in zip(batch.names, images, strict=True) if not image.isfinite().all()]
        if bad:
            raise InputError(
                f"images must be finite, found NaN or infinity in {', '.join(bad[:5])} ({len(bad)} of "
                f"{len(images)} in the batch): check these files and the normalisation"
            )


def _scored(batch: Batch, output: SegOutput) -> Batch:
    """The batch as far as the output can be scored: no masks for a model that makes none (a classifier)."""
    if len(output.mask_logits):
        return batch
    return batch._replace(labelled=batch.labelled[:0], masks=batch.masks[:0], native_masks=())


def schedule(kind: str, step: int, *, warmup: int, total: int) -> float:
    """Learning rate at a step, relative to its peak.

    Args:
        kind: ``"cosine"``: linear warm-up, then a half cosine to 0. ``"onecycle"``: from 1/25 up and down to
            1/250,000 by half cosines, as torch's ``OneCycleLR``. ``"none"``: linear warm-up, then 1.
        step: Optimiser steps taken so far, 0 for the first.
        warmup: Steps of the warm-up; ``"onecycle"`` climbs that long, or for 30 % of the run if 0.
        total: Steps of the run; not used for the first step.
    """
    if kind == "onecycle":
        climb = max((warmup or 0.3 * total) - 1, 1)
        if step <= climb:
            return _half_cosine(1 / 25, 1.0, step / climb)
        return _half_cosine(1.0, 1 / 25e4, (step - climb) / max(total - 1 - climb, 1))
    factor = min(1.0, (step + 1) / (warmup + 1))
    if kind == "cosine" and step > warmup:
        factor *= _half_cosine(1.0, 0.0, (step - warmup) / (total - warmup))
    return factor


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
