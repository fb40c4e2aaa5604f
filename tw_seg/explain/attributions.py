"""Other methods that explain a predicted mask, as heatmaps (P, H, W): what MiSuRe is compared with.

Attributed is the sum of a class's mask logits over its predicted mask, held fixed. Models are in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam, Occlusion
from torch import Tensor, nn

from tw_seg.arguments import check_counts
from tw_seg.errors import InputError
from tw_seg.explain.model import ExplainedModel, class_probabilities
from tw_seg.explain.sufficient import Shown
from tw_seg.lrp import HeatmapDecoder
from tw_seg.resize import resize_maps
from tw_seg.types import SegOutput


def compute_seg_grad_cam(model: ExplainedModel, shown: Shown, layer: nn.Module) -> Tensor:
    """Seg-Grad-CAM (Vinogradova et al. 2020): the channels of a layer, weighted by their mean gradients; captum's.

    Args:
        model: The model.
        shown: The pairs.
        layer: The module whose output (N, C, h, w) is read; of an encoder-decoder usually the encoder's last.

    Returns:
        Shape (P, H, W), not negative.
    """
    maps = [shown.images.new_zeros(shown.pairs.predictions.shape)[:0]]
    for rows, score in _split(model, shown):
        method = LayerGradCam(score, layer)
        found = method.attribute(shown.images[shown.pairs.samples[rows]], relu_attributions=True)
        maps.append(resize_maps(found.detach(), shown.images.shape[2:])[:, 0])
    return torch.cat(maps)


def compute_occlusion(model: ExplainedModel, shown: Shown, *, window: int = 8, stride: int = 4) -> Tensor:
    """How much the summed logits fall when a window is hidden, by the same pixels as elsewhere; captum's.

    Args:
        model: The model.
        shown: The pairs.
        window: Side of the window in pixels.
        stride: By how many pixels it moves; at most ``window``.
    """
    check_counts(1, window=window, stride=stride)
    if stride > window or window > min(shown.images.shape[2:]):
        raise InputError(
            f"occlusion needs stride <= window <= the shorter side, got stride {stride}, window {window} and images of "
            f"{tuple(shown.images.shape[2:])}"
        )
    channels = shown.images.shape[1]
    maps = [shown.images.new_zeros(shown.pairs.predictions.shape)[:0]]
    for rows, score in _split(model, shown):
        samples = shown.pairs.samples[rows]
        with torch.no_grad():
            found = Occlusion(score).attribute(
                shown.images[samples],
                sliding_window_shapes=(channels, window, window),
                strides=(channels, stride, stride),
                baselines=shown.fills[samples],
            )
        maps.append(found[:, 0].to(shown.images))
    return torch.cat(maps)


def compute_rise(model: ExplainedModel, shown: Shown, *, masks: int = 500, cells: int = 8, seed: int = 0) -> Tensor:
    """RISE (Petsiuk et al. 2018): random masks, averaged with the probability of the predicted mask that each leaves.

    Args:
        model: The model.
        shown: The pairs.
        masks: Number of random masks, the same for all pairs: as many images of each pair are run.
        cells: Cells of a mask along a side, half of them shown; masks are enlarged smoothly and moved at random.
        seed: Of the masks.

    Returns:
        Shape (P, H, W), in [0, 1]: the mean probability over the masks that show a pixel.
    """
    check_counts(1, masks=masks, cells=cells)
    height, width = shown.images.shape[2:]
    generator = torch.Generator().manual_seed(seed)
    sums = shown.images.new_zeros(shown.pairs.predictions.shape)
    weights = shown.images.new_zeros(height, width)
    rows = torch.arange(len(sums), device=sums.device)
    step = -(-height // cells), -(-width // cells)  # the side of a cell, rounded up
    with torch.no_grad():
        for _ in range(masks):
            grid = (torch.rand(1, 1, cells + 1, cells + 1, generator=generator) < 0.5).float()
            large = resize_maps(grid, [(cells + 1) * side for side in step])[0, 0]
            top, left = (int(torch.randint(side, (), generator=generator)) for side in step)
            mask = large[top : top + height, left : left + width].to(sums)
            weights += mask
            for some in rows.split(model.batch_size):
                seen = shown.show(some, mask.expand(len(some), -1, -1))
                chances = class_probabilities(model(seen), shown.pairs.classes[some])
                inside = shown.pairs.predictions[some]
                means = (chances * inside).sum((1, 2)) / inside.sum((1, 2))
                sums[some] += means.to(sums)[:, None, None] * mask
    return sums / weights.clamp_min(torch.finfo(sums.dtype).tiny)


def compute_relevance(model: ExplainedModel, shown: Shown, composite: str = "epsilon_plus") -> Tensor:
    """LRP of a segmentation: the decoder of heatmaps applied to the summed logits of each predicted mask.

    Args:
        model: The model; its function must be a module that torch.fx can trace.
        shown: The pairs.
        composite: Which rule where, a name in ``tw_seg.lrp.composite.COMPOSITES``.

    Returns:
        Signed relevance, shape (P, H, W); sums to the summed logits less what biases absorb.

    Raises:
        InputError: The model is a plain function, or one of ours as a whole.
        TwSegError: It cannot be traced, or has an operation without a relevance rule.
    """
    if not isinstance(model.function, nn.Module):
        raise InputError("LRP looks inside a model: give the torch.nn.Module itself in place of a function")
    size = shown.images.shape[2:]
    samples, classes, predictions = shown.pairs
    result = shown.images.new_zeros(predictions.shape)
    if len(samples) == 0:
        return result
    with torch.no_grad():
        count = model(shown.images[:1]).shape[1]
        output = model.function(shown.images[:1])
        if isinstance(output, SegOutput):
            raise InputError(
                f"{type(model.function).__name__} checks its images, which cannot be traced: explain the network in "
                "it, of a U-Net its attribute net"
            )
        key = next((key for key in ("out", "logits") if key in output), None) if isinstance(output, Mapping) else None
        summed = SummedLogits(model.function, key, shown.images.new_zeros(1, count, *size)).eval()
        decoder = HeatmapDecoder(summed, composite, image_size=size)
        for sample in samples.unique().tolist():
            rows = (samples == sample).nonzero()[:, 0]
            summed.masks.zero_()[0, classes[rows]] = predictions[rows].to(summed.masks)
            result[rows] = decoder(shown.images[sample : sample + 1], classes=classes[rows]).heatmaps[0].to(result)
    return result


class SummedLogits(nn.Module):
    """A segmentation model as a classifier: its logits are sums of mask logits over given masks.

    Args:
        network: Images (N, C, H, W) -> mask logits (N, K, h, w), or a mapping of them.
        key: Where they are in the mapping; ``None`` for no mapping.
        masks: Weights of the pixels, (1, K, H, W).
    """

    masks: Tensor

    def __init__(self, network: nn.Module, key: str | None, masks: Tensor) -> None:
        super().__init__()
        self.network, self.key = network, key
        self.register_buffer("masks", masks)

    def forward(self, images: Tensor) -> Tensor:
        output = self.network(images) if self.key is None else self.network(images)[self.key]
        if output.shape[2:] != self.masks.shape[2:]:
            output = F.interpolate(output, size=self.masks.shape[2:], mode="bilinear", align_corners=False)
        return (output * self.masks).sum((2, 3))


def _split(model: ExplainedModel, shown: Shown) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """Pairs in batches, each with a function from their images, once or several times, to their summed logits."""
    pairs = torch.arange(len(shown.pairs.samples), device=shown.images.device)
    for rows in pairs.split(model.batch_size):
        if len(rows) == 0:
            return

        def score(images: Tensor, rows: Tensor = rows) -> Tensor:
            again = rows.repeat(len(images) // len(rows))
            logits = model(images)[torch.arange(len(images)), shown.pairs.classes[again]]
            return (logits * shown.pairs.predictions[again]).sum((1, 2))

        yield rows, score
