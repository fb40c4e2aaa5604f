"""MiSuRe beside other explanations of a segmentation, on pictures in which it is known what a mask follows from.

    python -m experiments.explain.compare runs/unet/checkpoints/best.ckpt --size 48 --output runs/explain

Prints a table with a line for each method: means over the pairs of a picture and a class that a trained U-Net predicts.
Writes it, and a picture, into a folder. Scores: docs/explain.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tw_seg.data import Triangles
from tw_seg.data.loading.transforms import EvalTransform
from tw_seg.explain.attributions import compute_occlusion, compute_relevance, compute_rise, compute_seg_grad_cam
from tw_seg.explain.hiding import FILLS
from tw_seg.explain.minimal import Optimisation, find_minimal_regions
from tw_seg.explain.misure import prepare
from tw_seg.explain.model import ExplainedModel
from tw_seg.explain.scores import (
    energy_inside,
    measure_deletion,
    measure_insertion,
    measure_sufficient_size,
    point_inside,
)
from tw_seg.explain.sufficient import Shown, find_sufficient_regions
from tw_seg.files import write_text
from tw_seg.pictures import draw_heatmap, draw_image, join_tiles, save_picture
from tw_seg.training.task import SegmentationTask

MIN_DICE = 0.9
COLUMNS = (
    "method",
    "size at sufficiency",
    "insertion",
    "deletion",
    "energy in cues",
    "energy in mask",
    "points at a cue",
    "images / pair",
    "s / pair",
)


def main(args: Sequence[str] | None = None) -> int:
    """Explain, score, print; the exit status."""
    parser = argparse.ArgumentParser("python -m experiments.explain.compare", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="of a U-Net that was trained on Triangles")
    parser.add_argument("--size", type=int, default=48, help="side of the pictures")
    parser.add_argument("--pictures", type=int, default=12, help="how many pictures of the test split")
    parser.add_argument("--fill", choices=FILLS, default="mean", help="what hidden pixels become")
    parser.add_argument("--layer", default="encoder.model.layer4", help="of the U-Net, read by Seg-Grad-CAM")
    parser.add_argument("--rise_masks", type=int, default=300, help="random masks of RISE")
    parser.add_argument("--output", type=Path, default=Path("runs/explain"), help="a folder")
    given = parser.parse_args(args)
    task = SegmentationTask.load_from_checkpoint(given.checkpoint, map_location="cpu", weights_only=True)
    data = Triangles("test", size=given.size, length=given.pictures)
    transform = EvalTransform((given.size, given.size))
    images = torch.stack([transform(data[i].image, None)[0] for i in range(len(data))])
    network = task.get_submodule("model.net").eval()
    model = ExplainedModel(network)
    shown = prepare(model, images, None, fill=given.fill, seed=0)
    if len(shown.pairs.samples) == 0:
        print("the model predicts no class in any picture: train it longer")
        return 1
    maps, costs = explain(model, shown, network.get_submodule(given.layer), given.rise_masks)
    cues = torch.from_numpy(np.stack([data.cues(i) for i in shown.pairs.samples.tolist()]))
    lines = [f"{len(cues)} pairs, {given.size} x {given.size}, hidden pixels: {given.fill}, Dice >= {MIN_DICE}", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name, heatmaps in maps.items():
        lines.append(f"| {name} | " + " | ".join([*score(model, shown, heatmaps, cues), *costs[name]]) + " |")
    text = "\n".join([*lines, "", *describe_regions(maps, cues), ""])
    print(text)
    write_text(given.output / "table.md", text)
    rows = [draw_pair(shown, maps, cues, row) for row in range(min(6, len(cues)))]
    save_picture(given.output / "picture.png", np.concatenate(rows).repeat(2, 0).repeat(2, 1))
    return 0


def explain(
    model: ExplainedModel, shown: Shown, layer: torch.nn.Module, rise_masks: int
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Heatmaps of each method, and what a pair of it cost: images through the model, seconds."""
    maps: dict[str, Tensor] = {}
    costs: dict[str, list[str]] = {}

    def dilate() -> Tensor:
        return find_sufficient_regions(model, shown, min_dice=MIN_DICE).regions.float()

    def optimise() -> Tensor:
        sufficient = find_sufficient_regions(model, shown, min_dice=MIN_DICE)
        found = find_minimal_regions(model, shown, sufficient, min_dice=MIN_DICE, options=Optimisation())
        return found.masks * found.regions + found.regions.float()  # the region ranks above the rest of the picture

    methods = {
        "MiSuRe": optimise,
        "sufficient region": dilate,
        "Seg-Grad-CAM": lambda: compute_seg_grad_cam(model, shown, layer),
        "LRP": lambda: compute_relevance(model, shown),
        "occlusion": lambda: compute_occlusion(model, shown, window=6, stride=3),
        "RISE": lambda: compute_rise(model, shown, masks=rise_masks),
    }
    for name, method in methods.items():
        images, start = model.images, time.perf_counter()
        maps[name] = method()
        seconds, count = time.perf_counter() - start, len(shown.pairs.samples)
        costs[name] = [f"{(model.images - images) / count:.0f}", f"{seconds / count:.2f}"]
    return maps, costs


def score(model: ExplainedModel, shown: Shown, heatmaps: Tensor, cues: Tensor) -> list[str]:
    """The cells of a line: means over the pairs."""
    size = measure_sufficient_size(model, shown, heatmaps, min_dice=MIN_DICE) / cues[0].numel()
    numbers = [
        size,
        measure_insertion(model, shown, heatmaps).area,
        measure_deletion(model, shown, heatmaps).area,
        energy_inside(heatmaps, cues),
        energy_inside(heatmaps, shown.pairs.predictions),
        point_inside(heatmaps, cues).float(),
    ]
    return [f"{values.nanmean():.2f}" for values in numbers]


def describe_regions(maps: dict[str, Tensor], cues: Tensor) -> list[str]:
    """How much of the cues a region holds, and of the region is cues."""
    lines = []
    for name in ("MiSuRe", "sufficient region"):
        regions = maps[name] > 0
        both = (regions & cues).sum((1, 2))
        recall, precision = both / cues.sum((1, 2)), both / regions.sum((1, 2))
        lines.append(
            f"{name}: {regions.float().mean():.2f} of a picture; holds {recall.mean():.2f} of the cues, "
            f"{precision.nanmean():.2f} of it is cues"
        )
    return lines


def draw_pair(shown: Shown, maps: dict[str, Tensor], cues: Tensor, row: int) -> np.ndarray:
    """The picture, the predicted mask, the cues and a heatmap of each method in a row."""
    image = draw_image(shown.images[shown.pairs.samples[row]].numpy())
    columns = [shown.pairs.predictions, cues, *maps.values()]
    tiles = [image, *(draw_heatmap(column[row].float().numpy()) for column in columns)]
    return np.pad(join_tiles(tiles), ((0, 2), (0, 0), (0, 0)), constant_values=255)


if __name__ == "__main__":
    sys.exit(main())
