"""Gated inference: decode the background, and of the other classes only those that the image probably shows.

A decode costs about one run of the classifier for each class of each image, and most classes are in no image. The
classifier says which: a class whose image-level probability is below the *gate* is left out. The mask changes only
where such a class would have won a pixel, and `calibrate_gate` measures on validation images how far the gate
may rise before that moves the mIoU.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tw_seg.errors import InputError
from tw_seg.metrics import confusion_matrix, mean_iou
from tw_seg.models.base import SegModel, spread_pairs
from tw_seg.resize import resize_logits
from tw_seg.types import BACKGROUND, IGNORE_INDEX, Batch, SegOutput

log = logging.getLogger(__name__)

GATES = (0.0, *(1 / (1 + math.exp(-quarter / 4)) for quarter in range(-48, 17)))
"""Candidates of the calibration: 0 (every class passes), then evenly spaced in the logit, from 6e-6 to 0.98."""


@dataclass(frozen=True)
class GateReport:
    """What a calibrated gate does to the images that it was calibrated on.

    Attributes:
        gate: Image-level probability from which on a class is decoded.
        tolerance: Largest change of the mIoU that was allowed.
        miou: Data-set level mIoU with every class decoded.
        gated_miou: The same with those that pass the gate.
        decoded: Mean number of classes decoded for an image, the background included.
        num_classes: Number of classes K, the background included.
        images: Number of images.
    """

    gate: float
    tolerance: float
    miou: float
    gated_miou: float
    decoded: float
    num_classes: int
    images: int

    def __str__(self) -> str:
        return (
            f"gate {self.gate:.3g}: mIoU {self.miou:.4f} without and {self.gated_miou:.4f} with it on {self.images} "
            f"images (tolerance {self.tolerance:g}), {self.decoded:.2f} of {self.num_classes} classes decoded for each"
        )

    def to_json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


class GatedSegmenter(nn.Module):
    """A trained heatmap segmenter that decodes, for each image, the background and the classes that pass a gate.

    One run of the classifier, then one decode of exactly the (image, class) pairs that pass, none for padding. On a
    GPU it waits once for a batch: the number of pairs is known only then.

    Args:
        model: The trained model. It is used as it is, not copied, and must be in evaluation mode.
        gate: Image-level probability from which on a class is decoded; 0 for every class. ``None``: not known
            until `calibrate` has found it, and the model refuses to run before.

    Attributes:
        gate: The same, or what `calibrate` found.

    Shapes:
        images (N, C, H, W) -> logits (N, K), mask_logits (N, K, H, W); see `forward`.

    Raises:
        InputError: If ``model`` does not decode class by class or ``gate`` no probability.

    Examples:
        >>> import torch
        >>> from tw_seg import HeatmapSegmenter
        >>> model = HeatmapSegmenter("resnet18", classes=5).eval()
        >>> GatedSegmenter(model, gate=0.5)(torch.rand(2, 3, 64, 64)).mask_logits.shape
        torch.Size([2, 5, 64, 64])
    """

    def __init__(self, model: SegModel, gate: float | None = None) -> None:
        super().__init__()
        if not model.can_gate:
            raise InputError(
                f"a gate needs a model that decodes class by class, a HeatmapSegmenter, got {type(model).__name__}"
            )
        if gate is not None and not 0 <= gate <= 1:
            raise InputError(f"gate must be a probability in [0, 1], or None to calibrate it, got {gate}")
        self.model = model
        self.gate = gate

    @torch.no_grad()
    def forward(self, images: Tensor) -> SegOutput:
        """Classify all images and segment each with the classes that pass.

        Args:
            images: Shape (N, C, H, W), normalised.

        Returns:
            Logits (N, K) and mask logits (N, K, H, W). Those of a class that does not pass are
            `get_rejected_logit`: no argmax takes them, and their softmax is 0. Where nothing passes, the mask is
            background. No gradient, no aux.

        Raises:
            InputError: Without a gate, in training mode, or for images of the wrong type or shape.
        """
        if self.gate is None:
            raise InputError(
                "the gate is not calibrated: call calibrate(loader) with validation images first, or choose a "
                "probability yourself, GatedSegmenter(model, gate=0.1); gate=0 decodes every class"
            )
        _check_evaluation_mode(self.model)
        tape, logits = self.model.record(images)
        samples, classes = select_classes(logits, self.gate).nonzero().unbind(1)
        maps = self.model.decode_pairs(tape, samples, classes).mask_logits
        rejected = get_rejected_logit(maps.dtype)
        return SegOutput(logits, spread_pairs(maps, samples, classes, logits.shape, rejected))

    def calibrate(self, loader: Iterable[Batch], tolerance: float = 0.001) -> GateReport:
        """Set the gate to the largest one that changes the mIoU by no more than ``tolerance``, and log the report.

        Arguments, result and errors are those of `calibrate_gate`.
        """
        report = calibrate_gate(self.model, loader, tolerance)
        self.gate = report.gate
        log.info("%s", report)
        return report

    def extra_repr(self) -> str:
        return f"gate={self.gate}"


def select_classes(logits: Tensor, gate: float | Tensor) -> Tensor:
    """Find the classes that pass the gate: the background, and those whose probability is not below the gate.

    Probabilities are compared in double precision, so that a gate means the same in a mask and in a calibration.

    Args:
        logits: Image-level logits (..., K).
        gate: A probability, or several, (G, 1); 0 lets every class pass.

    Returns:
        Bool, (..., K).

    Examples:
        >>> select_classes(torch.tensor([[-9.0, 0.1, -0.1]]), 0.5).tolist()
        [[True, True, False]]
    """
    passes = ~(logits.double().sigmoid() < gate)  # NaN leaves no class out
    passes[..., BACKGROUND] = True
    return passes


def get_rejected_logit(dtype: torch.dtype) -> float:
    """Mask logit of a class that does not pass the gate: half the lowest number of the type.

    Not minus infinity, which becomes NaN, and wins every argmax, when mask logits are resized (0 times infinity).
    """
    return torch.finfo(dtype).min / 2


@torch.no_grad()
def calibrate_gate(model: SegModel, loader: Iterable[Batch], tolerance: float = 0.001) -> GateReport:
    """Find the largest gate of `GATES` that, as every smaller one, changes the mIoU by at most ``tolerance``.

    The mIoU is that of `tw_seg.metrics`: of the whole data set, at native mask size, without ignored pixels. A
    gate may also raise it, by removing wrong classes: that is a change too, which a larger tolerance permits.

    Args:
        model: The trained model, in evaluation mode.
        loader: Validation batches; only images with masks are used. Never those of the final test.
        tolerance: Largest absolute change of the mIoU, 0 to 1.

    Returns:
        The gate and what it does to these images.

    Raises:
        InputError: No pixel is labelled, a mask holds an unknown class, or ``tolerance`` is out of range.
    """
    if not 0 <= tolerance <= 1:
        raise InputError(f"tolerance must be a change of the mIoU, from 0 to 1, got {tolerance}")
    _check_evaluation_mode(model)
    like, k = next(model.parameters()), model.num_classes
    device = like.device
    gates = torch.tensor(GATES, dtype=torch.float64, device=device)
    confusions = torch.zeros((len(gates), k, k), dtype=torch.int64, device=device)
    decoded = torch.zeros(len(gates), dtype=torch.int64, device=device)
    images = 0
    for batch in loader:
        rows = batch.labelled.to(device)
        if len(rows) == 0:
            continue
        if len(batch.native_masks) != len(rows):
            raise InputError(
                f"a batch of {len(rows)} labelled images has {len(batch.native_masks)} native masks: give the loader "
                "for validation, whose batches hold them"
            )
        output = model(batch.images.to(like), samples=rows)
        for row, maps, mask in zip(output.logits[rows], output.mask_logits, batch.native_masks, strict=True):
            passes = select_classes(row, gates[:, None])
            confusions += count_confusions(maps, mask.to(device), row, passes)
            decoded += passes.sum(1)
            images += 1
    if not confusions.any():
        raise InputError(
            f"a gate is calibrated on labelled pixels, found none in {images} images with masks: give a loader of "
            "validation images with masks that are not all ignored"
        )
    miou = mean_iou(confusions).double()
    allowed = ((miou - miou[0]).abs() <= tolerance).long().cumprod(0)
    best = int(allowed.sum()) - 1
    return GateReport(
        gate=GATES[best],
        tolerance=tolerance,
        miou=float(miou[0]),
        gated_miou=float(miou[best]),
        decoded=int(decoded[best]) / images,
        num_classes=k,
        images=images,
    )


def count_confusions(mask_logits: Tensor, mask: Tensor, logits: Tensor, passes: Tensor) -> Tensor:
    """Count the confusion matrices of one image under several gates, at the native size of its mask.

    A higher gate leaves a part of the classes of a lower one, the most probable: so classes come in by falling
    probability, and each shows up in the pixels that it takes from those before it. One pass serves all gates.

    Args:
        mask_logits: Of every class, (K, H, W).
        mask: The true mask, int64 (h, w), 255 to ignore.
        logits: Image-level logits (K,).
        passes: Which classes pass, bool (G, K), for each of G gates.

    Returns:
        Counts (G, K, K), the true class first.

    Raises:
        InputError: The mask holds an id that is neither a class nor 255.
    """
    k = len(logits)
    kept = mask != IGNORE_INDEX
    truth = mask[kept]
    scores = resize_logits(mask_logits[None], mask.shape)[0][:, kept]
    best, winner = scores[BACKGROUND], torch.full_like(truth, BACKGROUND)
    counts = [confusion_matrix(truth, winner, k)]
    for label in _sort_by_probability(logits):
        # Of equal scores the first class wins, as in an argmax.
        wins = (scores[label] > best) | ((scores[label] == best) & (label < winner))
        best, winner = torch.where(wins, scores[label], best), winner.masked_fill(wins, label)
        counts.append(confusion_matrix(truth, winner, k))
    return torch.stack(counts)[passes.sum(1) - 1]


def _sort_by_probability(logits: Tensor) -> list[int]:
    """The object classes, the most probable first."""
    order = logits.double().sigmoid().argsort(descending=True, stable=True).tolist()
    return [label for label in order if label != BACKGROUND]


def _check_evaluation_mode(model: nn.Module) -> None:
    if model.training:
        raise InputError("a gated model is for inference, but the model is in training mode: call model.eval() first")
