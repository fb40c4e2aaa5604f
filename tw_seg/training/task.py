"""SegmentationTask: what every training run does, whatever the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import LRSchedulerConfigType, OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from tw_seg.arguments import check_batch, check_class_names, check_numbers
from tw_seg.errors import InputError
from tw_seg.hyper_parameters import make_plain
from tw_seg.losses import SegmentationLoss
from tw_seg.losses.annotated import Unmasked
from tw_seg.losses.masked import mean_of
from tw_seg.metrics import SegmentationMetrics, predict_masks
from tw_seg.models.bundled import find_normalization
from tw_seg.models.factory import create_model
from tw_seg.models.weights import read_normalization, read_weights
from tw_seg.processes import add_over_processes, count_processes
from tw_seg.training.finite import check_finite
from tw_seg.training.optim import check_schedule, compute_lr_factor, count_steps, group_parameters
from tw_seg.training.sampled_classes import (
    SampledClasses,
    find_classes,
    read_sampled_classes,
    segment_sampled_classes,
)
from tw_seg.training.teacher import PseudoMasks, Teacher, read_pseudo_masks
from tw_seg.types import IGNORE_INDEX, Batch, Failure, SegOutput, Window

Stage = Literal["train", "val", "test"]
METRICS = ("val", "test")
"""Stages that have metrics of their own."""


class Prediction(NamedTuple):
    """What ``predict`` returns for one batch: of N images, each a picture or a window of one.

    Attributes:
        names: The N names of their pictures.
        sizes: The N sizes (h, w) of these pictures.
        windows: Which part of its picture each of them shows.
        mask_logits: Mask logits at the size of the images, shape (N, K, H, W); (0, K, H, W) of a model without masks.
        probabilities: Image-level probabilities, float, shape (N, K).
        thumbnails: The pictures in small beside their last windows, if they were asked for.
        failures: Pictures that could not be read.
        trust: How far each mask can be trusted, in [0, 1], shape (N,), if that was asked for.
    """

    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    windows: tuple[Window, ...]
    mask_logits: Tensor
    probabilities: Tensor
    thumbnails: tuple[np.ndarray | None, ...] = ()
    failures: tuple[Failure, ...] = ()
    trust: Tensor | None = None

    @property
    def masks(self) -> tuple[Tensor, ...]:
        """Masks of class indices, int64, each of its window's size in the picture; none of a model without masks."""
        shown = zip(self.mask_logits, self.windows, strict=False)
        return tuple(
            predict_masks(maps[None, :, : window.fit[0], : window.fit[1]], [(window.height, window.width)])[0]
            for maps, window in shown
        )


class SegmentationTask(pl.LightningModule):
    """Trains and evaluates one model; images without masks are classified, never decoded.

    Its hyper-parameters are names and numbers only, so a checkpoint loads with ``weights_only=True``.

    Args:
        model: Name of the model, a key of `tw_seg.models.factory.MODELS`.
        model_kwargs: The model's own arguments, by names and numbers (a `tw_seg.lrp.Schedule` becomes
            such); they win over the encoder arguments below.
        class_names: Names of the K classes, the background first.
        encoder_name: Encoder, by the name that `tw_seg.models.backbones.create_classifier` knows. In the commands
            ``auto``: that of the bundled weights, or ``resnet18``.
        encoder_weights: Its pretrained weights, by name or file; ``None``: random. In the commands ``auto``: the
            bundled ones for images in files, random ones for generated images.
        in_channels: Channels of the images.
        encoder_kwargs: Further arguments of the encoder.
        warm_start: File with the state of an image-level classifier (safetensors) to begin with. Not part of
            the checkpoint, which holds all weights anyway.
        ce: Weight of the pixel-wise cross-entropy.
        dice: Weight of the soft Dice loss.
        bce: Weight of the image-level loss.
        aux: Weight of deep supervision.
        unmasked: What classes do in the loss of a mask in which they were not annotated: ``"compete"`` (each pixel
            speaks against those that the labels exclude), ``"fixed"`` (as constants) or ``"leave_out"``, see
            `tw_seg.losses.annotated.merge_open_classes`.
        guidance: Weights of losses that draw the heatmap of each class into its box, mask or pseudo-mask, such as
            ``{"energy": 0.1}``, by the names in `tw_seg.losses.heatmap_guidance.GUIDANCE`; ``None``: none.
        lr: Peak learning rate of AdamW.
        weight_decay: Weight decay, of weights only (biases, norms and scales have none).
        decoder_lr_factor: Learning rate of the decoder's own weights (an untied heatmap decoder's, a U-Net's),
            relative to ``lr``.
        scale_lr_factor: Learning rate of a heatmap's scale and offset, relative to ``lr``.
        scheduler: ``"cosine"`` (to 0), ``"onecycle"`` or ``"none"``, all by step.
        warmup_steps: Steps of linear warm-up; ``"onecycle"`` climbs that long, or for 30 % of the run if 0.
        pseudo_masks: Train unlabelled images with masks that a slow copy of the model makes of them, gated by their
            image-level labels, see `tw_seg.training.teacher.PseudoMasks`; ``None``: do not.
        sampled_classes: Decode in training, for each image, the classes that it shows and a few others, see
            `tw_seg.training.sampled_classes.SampledClasses`; ``None``: all.
        freeze_batchnorm: Keep the encoder's BatchNorm layers in eval mode in training: their statistics stay as
            they are, and the heatmap of an image does not depend on the others in its batch.

    Attributes:
        normalization: How the weights that it starts from expect images; ``None``: not known.
        segment: How ``predict`` segments images, if not as `forward` does; a callback may set it.
        rate: How ``predict`` rates masks, from images and the output for them to (N,); ``None``: not at all.

    Raises:
        InputError: An argument does not fit, or holds more than names and numbers; ``warm_start`` is missing or from
            another encoder.
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
        unmasked: Unmasked = "compete",
        guidance: dict[str, float] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        decoder_lr_factor: float = 1.0,
        scale_lr_factor: float = 1.0,
        scheduler: Literal["cosine", "onecycle", "none"] = "cosine",
        warmup_steps: int = 0,
        pseudo_masks: PseudoMasks | None = None,
        sampled_classes: SampledClasses | None = None,
        freeze_batchnorm: bool = False,
    ) -> None:
        super().__init__()
        class_names = [str(name) for name in class_names]
        check_class_names(class_names, name="class_names")
        check_numbers(
            lr=lr,
            weight_decay=weight_decay,
            decoder_lr_factor=decoder_lr_factor,
            scale_lr_factor=scale_lr_factor,
        )
        check_schedule(scheduler, warmup_steps)
        model_kwargs = make_plain(model_kwargs, "model_kwargs")
        encoder_kwargs = make_plain(encoder_kwargs, "encoder_kwargs")
        encoder_weights = make_plain(encoder_weights, "encoder_weights")
        guidance = make_plain(guidance, "guidance")
        pseudo_masks = make_plain(pseudo_masks, "pseudo_masks")
        sampled_classes = make_plain(sampled_classes, "sampled_classes")
        self._teaching = None if pseudo_masks is None else read_pseudo_masks(pseudo_masks)
        self._teacher: Teacher | None = None  # made when training starts
        self._teacher_state: dict[str, Any] | None = None
        self.save_hyperparameters(ignore=["warm_start"])
        self.class_names = tuple(class_names)
        self._trained_names: tuple[str, ...] = ()  # of the batch before
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
        self._sampling = None if sampled_classes is None else read_sampled_classes(sampled_classes, self.model)
        self.segment: Callable[[Tensor], SegOutput] | None = None
        self.rate: Callable[[Tensor, SegOutput], Tensor] | None = None
        self.normalization = find_normalization(self.model.encoder_weights)
        if warm_start is not None:
            self.model.load_classifier_state(read_weights(warm_start))
            self.normalization = read_normalization(warm_start) or self.normalization
        self.loss = SegmentationLoss(ce, dice, bce=bce, aux=aux, unmasked=unmasked, guidance=guidance)
        self.metrics = nn.ModuleDict({stage: SegmentationMetrics(class_names) for stage in METRICS})

    @property
    def num_classes(self) -> int:
        """Number of classes K, background included."""
        return len(self.class_names)

    @property
    def makes_masks(self) -> bool:
        """Whether the model segments at all: an image-level classifier has no scores of masks."""
        return self.model.makes_masks

    @property
    def mask_metrics(self) -> frozenset[str]:
        """What is logged of validation masks, and is NaN without any; not logged of a model that makes none."""
        return frozenset(f"val/{name}" for name in self._metrics("val").compute_masks())

    @property
    def monitor_modes(self) -> dict[str, str]:
        """What is logged of validation, and whether less (``"min"``) or more (``"max"``) of it is better."""
        scores = {**self._metrics("val").compute_masks(), **self._metrics("val").compute_labels()}
        losses = ("loss", *self.loss.names)
        return {f"val/{name}": "max" for name in scores} | {f"val/{name}": "min" for name in losses}

    def forward(self, images: Tensor, classes: Any = None, samples: Tensor | None = None) -> SegOutput:
        """The model's output for images (N, C, H, W); see `tw_seg.types.SegOutput`."""
        output: SegOutput = self.model(images, classes=classes, samples=samples)
        return output

    # ------------------------------------------------------------------------------------------- batches

    def setup(self, stage: str) -> None:
        """Silence one warning of Lightning's: that the hook below is the task's, not the data module's."""
        warnings.filterwarnings("ignore", message="You have overridden `on_before_batch_transfer`")

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Check the batch while it is still in main memory, where reading it does not wait for a GPU."""
        if len(batch.images) or not batch.failures:
            check_batch(batch, self.num_classes)
        return batch

    # --------------------------------------------------------------------------------------------- steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one semi-supervised batch; only rows with a mask or a pseudo-mask are decoded.

        Raises:
            NotFiniteError: It is NaN or infinite.
        """
        loss = self._train(batch)
        check_finite(loss, self.model, batch.names, self._trained_names, step=self.global_step)
        self._trained_names = batch.names
        return loss

    def _train(self, batch: Batch) -> Tensor:
        if self._teacher is None or self.global_step < self._teacher.options["start"]:
            return self._loss("train", batch, self._segment_rows(batch, batch.labelled))
        rows = self._choose_pseudo_rows(batch, self._teacher.options["images"])
        masks = self._teacher.make_masks(batch.images[rows], batch.labels[rows])
        output = self._segment_rows(batch, torch.cat([batch.labelled, rows]))
        own, others = _split_output(output, len(batch.labelled))
        pseudo = self.loss.compare_masks(others, masks, add_over_processes)
        if self.loss.guidance:
            seen = batch._replace(labelled=rows, masks=masks, annotated=None, regions=None)
            pseudo = pseudo + self.loss.guide(self.model.find_heatmaps(others, rows), seen, add_over_processes)[0]
        confident = (masks != IGNORE_INDEX).float()
        share = mean_of(confident, torch.ones_like(confident), add_up=add_over_processes)
        self.log("train/pseudo/loss", pseudo.detach(), batch_size=len(batch.images))
        self.log("train/pseudo/share", share, batch_size=len(batch.images))
        return self._loss("train", batch, own) + self._teacher.options["weight"] * pseudo

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Let the teacher follow the last step: now, as a checkpoint may be written before any hook after the step."""
        if self._teacher is not None:
            self._teacher.update(self.model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the teacher."""
        if self._teacher is not None:
            checkpoint["teacher"] = self._teacher.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the teacher of a run that is resumed."""
        self._teacher_state = checkpoint.get("teacher")

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Add a batch to the metrics of ``val``."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Add a batch to the metrics of ``test``."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Prediction:
        """Mask logits and image-level probabilities of all images of a batch, with a mask or not."""
        height, width = batch.images.shape[2:]
        sizes = batch.sizes or ((height, width),) * len(batch.images)
        windows = batch.windows or tuple(Window(0, 0, *size, fit=(height, width), last=True) for size in sizes)
        trust = None
        if len(batch.images):
            output = (self.segment or self)(batch.images)
            logits, mask_logits, _ = output
            trust = None if self.rate is None else self.rate(batch.images, output)
        else:  # all pictures failed
            logits, mask_logits = batch.labels, batch.images
        probabilities = logits.float().sigmoid()
        return Prediction(
            batch.names, sizes, windows, mask_logits, probabilities, batch.thumbnails, batch.failures, trust
        )

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of ``val``."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of ``test``."""
        self._log_metrics("test")

    def on_validation_start(self) -> None:
        """Calibrate a training-free model."""
        self._calibrate()

    def on_test_start(self) -> None:
        """Calibrate a training-free model."""
        self._calibrate()

    def on_predict_start(self) -> None:
        """Calibrate a training-free model."""
        self._calibrate()

    def on_train_start(self) -> None:
        """Count the steps for the schedule; make the teacher and freeze BatchNorm if asked to.

        The steps are not counted in `configure_optimizers`: that would make Lightning 2.6 set up the training
        data before it reads the checkpoint, and a resumed run would then not give its state to the data
        loader. Lightning keeps the modes of modules through validation.
        """
        if self._teaching is not None:
            self._teacher = Teacher(self.model, self._teaching, self._teacher_state)
        scheduler, warmup = self.hparams["scheduler"], self.hparams["warmup_steps"]
        self._total_steps = count_steps(self.trainer, scheduler, warmup=warmup)
        if self.hparams["freeze_batchnorm"]:
            for norm in self.model.encoder_batch_norms():
                norm.eval()

    # -------------------------------------------------------------------------------------- optimisation

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and a schedule by step."""
        rates = ("lr", "weight_decay", "decoder_lr_factor", "scale_lr_factor")
        groups = group_parameters(self.model, **{name: self.hparams[name] for name in rates})
        if not groups:
            raise InputError(
                f"model {self.hparams['model']!r} has no parameter to train: run it with `tw-seg test`, and "
                "give its classifier with --model.warm_start"
            )
        optimizer = torch.optim.AdamW(groups, lr=self.hparams["lr"])
        by_step: LRSchedulerConfigType = {"scheduler": LambdaLR(optimizer, lambda step: self._compute_lr_factor(step))}
        by_step["interval"] = "step"
        return {"optimizer": optimizer, "lr_scheduler": by_step}

    def _compute_lr_factor(self, step: int) -> float:
        scheduler, warmup = self.hparams["scheduler"], self.hparams["warmup_steps"]
        return compute_lr_factor(scheduler, step, warmup=warmup, total=self._total_steps)

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

    def _choose_pseudo_rows(self, batch: Batch, count: int) -> Tensor:
        """Rows of a batch that are trained with pseudo-masks: the first ``count`` after the labelled ones.

        They are counted in the whole batch, whose rows processes take in turn.
        """
        rows = torch.arange(len(batch.images), device=batch.labelled.device)
        labelled = add_over_processes(rows.new_tensor(len(batch.labelled)))
        position = rows * count_processes() + self.global_rank
        return rows[len(batch.labelled) :][(position < labelled + count)[len(batch.labelled) :]]

    def _segment_rows(self, batch: Batch, rows: Tensor) -> SegOutput:
        """Segment some rows for a training step, those with a mask first."""
        if self._sampling is None:
            return self(batch.images, samples=rows)
        needed = ~(batch.labels[rows] <= 0)  # not "> 0": NaN, which nobody knows, may be in a mask
        needed[: len(batch.masks)] |= find_classes(batch.masks, self.num_classes)
        if batch.regions is not None:
            needed[: len(batch.masks)] |= batch.regions.any(dim=1)
        return segment_sampled_classes(self.model, batch.images, rows, needed, **self._sampling)

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
        scored = _scored(batch, output)
        guided = self.loss.guidance and len(output.mask_logits)
        heatmaps = self.model.find_heatmaps(output, scored.labelled) if guided else None
        if stage != "train":
            loss, parts = self.loss(output, scored, heatmaps=heatmaps)
            self._metrics(stage).update_losses({"loss": loss, **parts}, len(batch.images))
            return loss
        loss, parts = self.loss(output, scored, heatmaps=heatmaps, add_up=add_over_processes)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.images))
        self.log_dict({f"train/{name}": value for name, value in parts.items()}, batch_size=len(batch.images))
        return loss

    def _log_metrics(self, stage: Stage) -> None:
        metrics = self._metrics(stage)
        masks = metrics.compute_masks() if self.model.makes_masks else {}
        values = {**metrics.compute_losses(), **masks, **metrics.compute_labels()}
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name in ("miou", "cls/map"))
        metrics.reset()


def _scored(batch: Batch, output: SegOutput) -> Batch:
    """The batch as far as the output can be scored: no masks for a model that makes none (a classifier)."""
    if len(output.mask_logits):
        return batch
    return batch._replace(
        labelled=batch.labelled[:0], masks=batch.masks[:0], native_masks=(), annotated=None, regions=None
    )


def _split_output(output: SegOutput, count: int) -> tuple[SegOutput, SegOutput]:
    """The output for the first ``count`` decoded samples, and for the others."""
    first = SegOutput(output.logits, output.mask_logits[:count], tuple(one[:count] for one in output.aux))
    others = SegOutput(output.logits, output.mask_logits[count:], tuple(one[count:] for one in output.aux))
    return first, others
