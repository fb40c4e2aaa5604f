"""The metrics of one stage, kept over a data set: a stateful shell over torchmetrics.

Pixel scores come from one confusion matrix of the whole data set, at native mask size (never an average over images);
see `tw_seg.metrics.confusion`. Image-level scores leave out the background.

torchmetrics gives an absent class the weight 0 in a macro average, as the mean over the classes that occur has it here.
Per class it says 0, which reads like a failure; here it is NaN. If no pixel is labelled, every pixel score is NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.utilities.data import dim_zero_cat

from tw_seg.arguments import check_class_count, check_mask_ids
from tw_seg.errors import InputError
from tw_seg.metrics.confusion import dice_per_class, iou_per_class, pixel_accuracy
from tw_seg.processes import add_over_processes, count_processes
from tw_seg.types import BACKGROUND, IGNORE_INDEX

_UNKNOWN = -1  # an image-level label, as torchmetrics is told


class SegmentationMetrics(nn.Module):
    """All metrics of one stage (val or test), accumulated over a data set.

    Args:
        class_names: Names of the K classes; the first is the background.

    Raises:
        InputError: Fewer than 2 or more than 255 classes.

    Examples:
        >>> metrics = SegmentationMetrics(["background", "cat", "dog"])
        >>> metrics.update_masks([torch.tensor([[0, 1]])], [torch.tensor([[0, 0]])])
        >>> {name: round(float(value), 2) for name, value in metrics.compute_masks().items()}
        {'miou': 0.25, 'dice': 0.33, 'pixel_acc': 0.5, 'iou/background': 0.5, 'iou/cat': 0.0, 'iou/dog': nan}
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        count = len(self.class_names)
        check_class_count(count)
        self._losses: dict[str, Tensor] = {}  # the sum over images, and their number
        self.pixels = MetricCollection(
            {
                "miou": MulticlassJaccardIndex(count, average="macro", ignore_index=IGNORE_INDEX, validate_args=False),
                "dice": _MacroDice(count, ignore_index=IGNORE_INDEX, validate_args=False),
                "pixel_acc": _PixelAccuracy(count, ignore_index=IGNORE_INDEX, validate_args=False),
                "iou": _IoUPerClass(count, ignore_index=IGNORE_INDEX, validate_args=False),
            },
            compute_groups=[["miou", "dice", "pixel_acc", "iou"]],  # one confusion matrix for all
        )
        self.images = MetricCollection(
            # validate_args would forbid a single object class.
            {
                "cls/map": _AveragePrecision(count - 1, ignore_index=_UNKNOWN, validate_args=False),
                "cls/f1": _MacroF1(count - 1, average="none", ignore_index=_UNKNOWN, validate_args=False),
            },
            compute_groups=False,
        )

    def update_masks(self, predictions: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        """Add images: predicted and true masks, int64, pairwise of the same shape (h, w).

        Raises:
            InputError: Shapes differ, or a mask holds an id that is neither a class nor 255.
        """
        if len(predictions) != len(masks):
            raise InputError(f"expected one prediction per mask, got {len(predictions)} for {len(masks)}")
        for prediction, mask in zip(predictions, masks, strict=True):
            if prediction.shape != mask.shape:
                raise InputError(
                    f"a predicted mask {tuple(prediction.shape)} has another size than its mask "
                    f"{tuple(mask.shape)}: predict with predict_masks(mask_logits, batch.native_masks)"
                )
        if not masks:
            return
        target = torch.cat([mask.flatten() for mask in masks])
        check_mask_ids(target, len(self.class_names))
        self.pixels.update(torch.cat([prediction.flatten() for prediction in predictions]), target)

    def update_labels(self, logits: Tensor, labels: Tensor) -> None:
        """Add images: image-level logits and multi-hot labels, both (N, K); column 0 and NaN, unknown, are left out."""
        first = BACKGROUND + 1
        # Probabilities, not logits: torchmetrics would apply the sigmoid batch by batch, and only to batches
        # in which some value is outside [0, 1].
        known = labels.nan_to_num(_UNKNOWN)[:, first:].long()
        self.images.update(logits[:, first:].float().sigmoid(), known)

    def update_losses(self, losses: Mapping[str, Tensor], count: int) -> None:
        """Add losses, scalars by name, that are means over ``count`` images."""
        for name, value in losses.items():
            added = torch.stack([value.detach() * count, value.new_tensor(count)])
            self._losses[name] = self._losses[name] + added if name in self._losses else added

    def compute_losses(self) -> dict[str, Tensor]:
        """The mean of each loss over all images so far, of all processes."""
        # Not Lightning's: its mean over processes rounds the mean number of images down.
        sums = {name: add_over_processes(value) for name, value in self._losses.items()}
        return {name: total / count for name, (total, count) in sums.items()}

    def compute_masks(self) -> dict[str, Tensor]:
        """``miou``, ``dice``, ``pixel_acc`` and ``iou/<class>`` of all masks so far; NaN where undefined."""
        names = ("miou", "dice", "pixel_acc", *(f"iou/{name}" for name in self.class_names))
        if not self.pixels["miou"].update_called and count_processes() > 1:
            nothing = torch.empty(0, dtype=torch.int64, device=self.pixels["miou"].device)
            self.pixels.update(nothing, nothing)  # the others wait for what this process has
        if not self.pixels["miou"].update_called:
            return dict.fromkeys(names, torch.tensor(torch.nan, device=self.pixels["miou"].device))
        values = self.pixels.compute()
        scalars = (values["miou"], values["dice"], values["pixel_acc"], *values["iou"])
        return dict(zip(names, scalars, strict=True))

    def compute_labels(self) -> dict[str, Tensor]:
        """``cls/map`` and ``cls/f1`` of all images so far; NaN if there were none."""
        if not self.images["cls/map"].update_called:
            nan = torch.tensor(torch.nan, device=self.images["cls/map"].device)
            return {"cls/map": nan, "cls/f1": nan}
        return dict(self.images.compute())

    def reset(self) -> None:
        """Forget everything."""
        self._losses.clear()
        self.pixels.reset()
        self.images.reset()


class _IoUPerClass(MulticlassConfusionMatrix):
    def compute(self) -> Tensor:
        return iou_per_class(self.confmat)


class _MacroDice(MulticlassConfusionMatrix):
    def compute(self) -> Tensor:
        return dice_per_class(self.confmat).nanmean()


class _PixelAccuracy(MulticlassConfusionMatrix):
    def compute(self) -> Tensor:
        return pixel_accuracy(self.confmat)


class _AveragePrecision(MultilabelAveragePrecision):
    """Mean over the classes that at least one image shows: without one there is no recall."""

    def compute(self) -> Tensor:  # type: ignore[override]  # its own parent MultilabelAveragePrecision does too
        scores, target = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        shown = (target == 1).any(dim=0)
        count = int(shown.sum())
        if not count:
            return scores.new_full((), torch.nan)
        scores, target = scores[:, shown], target[:, shown]
        return multilabel_average_precision(scores, target, count, ignore_index=_UNKNOWN, validate_args=False)


class _MacroF1(MultilabelF1Score):
    """Mean over the classes that at least one image shows or is said to show, at probability 0.5."""

    def compute(self) -> Tensor:
        tp, fp, fn = (dim_zero_cat(state) for state in (self.tp, self.fp, self.fn))
        return ((2 * tp).float() / (2 * tp + fp + fn).float()).nanmean()
