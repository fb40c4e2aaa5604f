"""The explanation of one picture as what people look at: a row for each class, maps, and the picture with both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_erosion
from torch import Tensor, nn

from tw_seg.arguments import check_shares
from tw_seg.errors import InputError
from tw_seg.explain.attributions import compute_occlusion, compute_relevance, compute_rise, compute_seg_grad_cam
from tw_seg.explain.hiding import check_fill
from tw_seg.explain.minimal import Optimisation, find_minimal_regions
from tw_seg.explain.misure import prepare
from tw_seg.explain.model import ExplainedModel
from tw_seg.explain.scores import energy_inside, measure_sufficient_size, point_inside
from tw_seg.explain.sufficient import Shown, find_sufficient_regions
from tw_seg.pictures import draw_heatmap, make_palette

METHODS = ("misure", "occlusion", "rise", "lrp", "seg_grad_cam")
"""MiSuRe's regions, or a heatmap of `tw_seg.explain.attributions`."""


@dataclass(frozen=True)
class Method:
    """How pictures are explained.

    Attributes:
        name: One of `METHODS`.
        fill: What hidden pixels become, a name in `tw_seg.explain.hiding.FILLS`.
        min_dice: Dice from which on a region is enough.
        steps: Steps of MiSuRe's search for the minimal region at most.
        rise_masks: Random masks of RISE.
        layer: The module that Seg-Grad-CAM reads; ``None`` with the others.

    Raises:
        InputError: A value is out of its range, or Seg-Grad-CAM has no layer.
    """

    name: str = "misure"
    fill: str = "zero"
    min_dice: float = 0.9
    steps: int = 100
    rise_masks: int = 500
    layer: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}, got {self.name!r}")
        check_fill(self.fill)
        check_shares(min_dice=self.min_dice)
        if (self.name == "seg_grad_cam") != (self.layer is not None):
            raise InputError(
                "seg_grad_cam needs a layer, for instance the encoder's last, and no other method takes one"
            )


class ExplainedPicture(NamedTuple):
    """The P classes that are predicted in a picture.

    Attributes:
        classes: Their ids, P.
        rows: Numbers of each by name, P; pixels are those that the model gets.
        maps: Arrays (P, H, W) by name: ``"mask"`` (bool), and ``"sufficient"``, ``"minimal"`` (bool) and ``"soft"`` of
            MiSuRe or the ``"heatmap"``.
        overlays: The picture with each, uint8 (h, w, 3), P.
    """

    classes: list[int]
    rows: list[dict[str, float]]
    maps: dict[str, np.ndarray]
    overlays: list[np.ndarray]


def explain_picture(model: ExplainedModel, image: Tensor, picture: np.ndarray, method: Method) -> ExplainedPicture:
    """Explain every class that is predicted in a picture.

    Args:
        model: The model, in evaluation mode.
        image: The picture as the model takes it, (1, C, H, W).
        picture: The picture, uint8, (h, w, 3).
        method: How.

    Raises:
        InputError: The method cannot explain this model, or mask logits are not finite.
    """
    with torch.inference_mode(False):
        shown = prepare(model, image, None, fill=method.fill, seed=0)
        rows, maps = _find_regions(model, shown, method) if method.name == "misure" else _weigh(model, shown, method)
    arrays = {"mask": shown.pairs.predictions.cpu().numpy(), **{name: one.cpu().numpy() for name, one in maps.items()}}
    classes = shown.pairs.classes.tolist()
    overlays = [_draw(picture, {name: one[row] for name, one in arrays.items()}, k) for row, k in enumerate(classes)]
    pixels = shown.pairs.predictions.sum((1, 2)).tolist()
    rows = [{"mask_pixels": count, **row} for count, row in zip(pixels, rows, strict=True)]
    return ExplainedPicture(classes, rows, arrays, overlays)


_Found = tuple[list[dict[str, float]], dict[str, Tensor]]  # rows, and maps by name


def _find_regions(model: ExplainedModel, shown: Shown, method: Method) -> _Found:
    sufficient = find_sufficient_regions(model, shown, min_dice=method.min_dice)
    minimal = find_minimal_regions(
        model, shown, sufficient, min_dice=method.min_dice, options=Optimisation(steps=method.steps)
    )
    rows = [
        {
            "sufficient_pixels": int(sufficient.regions[row].sum()),
            "sufficient_radius": int(sufficient.radii[row]),
            "sufficient_dice": float(sufficient.dice[row]),
            "minimal_pixels": int(minimal.regions[row].sum()),
            "minimal_dice": float(minimal.dice[row]),
            "reduced": int(minimal.reduced[row]),
        }
        for row in range(len(sufficient.radii))
    ]
    return rows, {"sufficient": sufficient.regions, "minimal": minimal.regions, "soft": minimal.masks}


def _weigh(model: ExplainedModel, shown: Shown, method: Method) -> _Found:
    if method.name == "occlusion":
        window = max(2, min(shown.images.shape[2:]) // 8)
        heatmaps = compute_occlusion(model, shown, window=window, stride=max(1, window // 2))
    elif method.name == "rise":
        heatmaps = compute_rise(model, shown, masks=method.rise_masks)
    elif method.name == "lrp":
        heatmaps = compute_relevance(model, shown)
    else:
        assert method.layer is not None
        heatmaps = compute_seg_grad_cam(model, shown, method.layer)
    masks = shown.pairs.predictions
    energies, points = energy_inside(heatmaps, masks).tolist(), point_inside(heatmaps, masks).tolist()
    sizes = measure_sufficient_size(model, shown, heatmaps, min_dice=method.min_dice).tolist()
    rows = [
        {"energy_inside": energy, "points_inside": int(point), "sufficient_pixels": size}
        for energy, point, size in zip(energies, points, sizes, strict=True)
    ]
    return rows, {"heatmap": heatmaps}


def _draw(picture: np.ndarray, maps: dict[str, np.ndarray], class_id: int) -> np.ndarray:
    """The picture, bright in the minimal region or under the heatmap, with the mask's outline in its colour."""
    size = picture.shape[1], picture.shape[0]

    def enlarge(region: np.ndarray) -> np.ndarray:
        return np.array(Image.fromarray(region).resize(size, Image.Resampling.NEAREST))

    if "heatmap" in maps:
        heat = np.array(Image.fromarray(draw_heatmap(maps["heatmap"])).resize(size, Image.Resampling.BILINEAR))
        result = 0.35 * picture.mean(2, keepdims=True) + 0.65 * heat
    else:
        weight = np.where(enlarge(maps["minimal"]), 1.0, np.where(enlarge(maps["sufficient"]), 0.55, 0.25))
        result = weight[..., None] * picture
    mask = enlarge(maps["mask"])
    width = max(1, min(size) // 150)
    outline = mask & ~binary_erosion(mask, iterations=width)
    result[outline] = make_palette()[max(1, class_id)]
    return result.round().astype(np.uint8)
