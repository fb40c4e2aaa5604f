"""The loss of semi-supervised training: pixels where there are masks, image-level labels everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from tw_seg.arguments import check_numbers
from tw_seg.losses.annotated import Unmasked, check_unmasked, merge_open_classes
from tw_seg.losses.classification import multilabel_bce
from tw_seg.losses.heatmap_guidance import check_guidance, guide_heatmaps
from tw_seg.losses.pixels import cross_entropy, dice
from tw_seg.processes import AddUp, keep_sum
from tw_seg.types import Batch, SegOutput

PARTS = ("seg/ce", "seg/dice", "cls/bce", "seg/aux")


class SegmentationLoss(nn.Module):
    """Weighted sum of cross-entropy, Dice, image-level loss, deep supervision and what guides heatmaps.

    Args:
        ce: Weight of the pixel-wise cross-entropy.
        dice: Weight of the soft Dice loss.
        bce: Weight of the image-level multi-label loss.
        aux: Weight of deep supervision: the sum of ``ce * CE + dice * Dice`` over the tensors in
            ``SegOutput.aux``.
        unmasked: What classes that were not annotated do in the loss of a mask, see
            `tw_seg.losses.annotated.merge_open_classes`.
        guidance: Weights of losses that guide heatmaps into the regions of their classes, by the names in
            `tw_seg.losses.heatmap_guidance.GUIDANCE`; ``None``: none.

    Attributes:
        guidance: The same, as a dictionary.

    Raises:
        InputError: A weight is negative or not finite, ``unmasked`` none of its values, or ``guidance`` has another
            name.
    """

    def __init__(
        self,
        ce: float = 1.0,
        dice: float = 1.0,
        *,
        bce: float = 1.0,
        aux: float = 0.4,
        unmasked: Unmasked = "compete",
        guidance: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        check_unmasked(unmasked)
        self.unmasked = unmasked
        self.guidance = check_guidance(guidance)
        self.weights = dict(zip(PARTS, (ce, dice, bce, aux), strict=True))
        check_numbers(**{f"the weight of {name}": weight for name, weight in self.weights.items()})

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts."""
        return (*PARTS, *(f"guidance/{name}" for name in self.guidance))

    def forward(
        self, output: SegOutput, batch: Batch, *, heatmaps: Tensor | None = None, add_up: AddUp = keep_sum
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch.

        Args:
            output: The model's output; row i of ``mask_logits`` belongs to ``batch.masks[i]``.
            batch: The batch.
            heatmaps: What is guided, of the size of ``mask_logits``; without them, the mask logits themselves.
            add_up: Where it is one process' part of a batch: what makes sums over all of it, see
                `tw_seg.processes.add_over_processes`.

        Returns:
            The loss, a scalar to minimise, and its unweighted parts, detached, by `names`.

        Raises:
            InputError: Shapes or class ids do not fit together.
        """
        heatmaps = output.mask_logits if heatmaps is None else heatmaps
        output = _close(output, batch, self.unmasked)
        target = batch.masks, batch.regions
        parts = {
            "seg/ce": self._part("seg/ce", lambda: cross_entropy(output.mask_logits, *target, add_up=add_up)),
            "seg/dice": self._part("seg/dice", lambda: dice(output.mask_logits, *target, add_up=add_up)),
            "cls/bce": self._part("cls/bce", lambda: multilabel_bce(output.logits, batch.labels, add_up=add_up)),
            "seg/aux": self._deep(output, *target, add_up=add_up),
        }
        loss = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        if self.guidance:
            guiding, guided = self.guide(heatmaps, batch, add_up)
            loss, parts = loss + guiding, parts | guided
        return loss, {name: part.detach() for name, part in parts.items()}

    def guide(self, heatmaps: Tensor, batch: Batch, add_up: AddUp = keep_sum) -> tuple[Tensor, dict[str, Tensor]]:
        """The part of the loss that guides heatmaps.

        Args:
            heatmaps: What is guided, of every class in each of the L images with a mask, shape (L, K, h, w).
            batch: The batch, which says where each class may be.
            add_up: As in `forward`.

        Returns:
            A scalar to minimise, and its unweighted parts by name.
        """
        parts = guide_heatmaps(heatmaps, batch, self.guidance, add_up=add_up)
        loss = torch.stack([self.guidance[name] * part for name, part in parts.items()]).sum()
        return loss, {f"guidance/{name}": part for name, part in parts.items()}

    def _part(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """A part; without a weight it is only looked at, and keeps nothing for a backward pass."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.weights[name] > 0):
            return compute()

    def compare_masks(self, output: SegOutput, masks: Tensor, add_up: AddUp = keep_sum) -> Tensor:
        """The part of the loss that compares pixels: cross-entropy, Dice and their deep supervision.

        Args:
            output: The model's output for the images of the masks.
            masks: Masks of all classes, int64, shape (L, H, W).
            add_up: As in `forward`.

        Returns:
            A scalar to minimise.
        """
        deep = self._deep(output, masks, add_up=add_up)
        return self._compare(output, (output.mask_logits,), masks, add_up=add_up) + self.weights["seg/aux"] * deep

    def _deep(self, output: SegOutput, masks: Tensor, regions: Tensor | None = None, *, add_up: AddUp) -> Tensor:
        maps = output.aux if self.weights["seg/aux"] > 0 else ()
        return self._compare(output, maps, masks, regions=regions, add_up=add_up)

    def _compare(
        self,
        output: SegOutput,
        maps: Iterable[Tensor],
        masks: Tensor,
        *,
        regions: Tensor | None = None,
        add_up: AddUp,
    ) -> Tensor:
        total = output.logits.new_zeros(())
        for mask_logits in maps:
            total = total + self.weights["seg/ce"] * cross_entropy(mask_logits, masks, regions, add_up=add_up)
            total = total + self.weights["seg/dice"] * dice(mask_logits, masks, regions, add_up=add_up)
        return total


def _close(output: SegOutput, batch: Batch, unmasked: Unmasked) -> SegOutput:
    """The output with logits that the masks can be compared with, where they show some classes only."""
    annotated = batch.annotated
    if annotated is None or not len(output.mask_logits):
        return output
    labels, (height, width) = batch.labels[batch.labelled], batch.masks.shape[1:]

    def close(mask_logits: Tensor) -> Tensor:
        return merge_open_classes(mask_logits, annotated, labels, size=(height, width), unmasked=unmasked)

    return output._replace(mask_logits=close(output.mask_logits), aux=tuple(map(close, output.aux)))
