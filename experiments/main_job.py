"""The main job: a classifier becomes a segmentation model with 20 masks, beside a U-Net trained on the same data.

    python -m experiments.main_job

Stages, each one `tw-seg` command with files of ``experiments/configs``, each in a folder of the run directory:
``pretrain`` (image-level labels only), ``heatmap`` and ``multitask_unet`` (semi-supervised, the same masks), the
training-free rows, then ``results.csv``, ``results.md``, ``picture.png`` and one folder each of masks, overlays and
heatmaps of test images. The test set is read once, after all choices are made on val.

With ``--mask_classes`` the 20 masks show some classes only, image-level labels still name all: the table then tells the
classes that never had a mask apart. ``--steps 1600`` trains both models until they learn no more, which wants a GPU.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch

from tw_seg.data.layouts.digits import DigitScenes
from tw_seg.data.loading.transforms import EvalTransform
from tw_seg.files import next_free, write_text, write_whole
from tw_seg.metrics import predict_masks
from tw_seg.pictures import draw_heatmap, draw_mask, save_mask, save_picture
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.task import SegmentationTask
from tw_seg.types import SegOutput

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tw_seg.cli import lightning

CONFIGS = Path(__file__).parent / "configs"
TRAINED = {"heatmap": "heatmap segmenter (untied)", "multitask_unet": "multi-task U-Net"}
TRAINING_FREE = {
    "cam": "CAM, calibrated threshold",
    "gradcam": "Grad-CAM, calibrated threshold",
    "input_x_gradient": "input x gradient, calibrated threshold",
}
COLUMNS = ("miou", "dice", "pixel_acc", "cls/map", "cls/f1")
TITLES = {
    "miou": "mIoU",
    "dice": "Dice",
    "pixel_acc": "pixel accuracy",
    "cls/map": "image-level mAP",
    "cls/f1": "image-level F1",
    "iou with masks": "IoU of classes with masks",
    "iou without masks": "IoU of classes without",
}
EPOCH = 100  # steps, as in main_job/train.yaml
WARMUP = 0.2  # of all steps, as there


class Row(NamedTuple):
    """One line of the results table: test metrics by name, and what training cost."""

    model: str
    metrics: dict[str, float]
    seconds: float


def main(args: Sequence[str] | None = None) -> Path:
    """Run the main job; returns the run directory."""
    options = _parse(args)
    run_dir = next_free(Path(options.run_dir))
    started = time.perf_counter()
    say(f"run directory: {run_dir}")
    common = [f"--seed_everything={options.seed}", *options.set]
    length = [f"--trainer.max_epochs={options.steps // EPOCH}", f"--model.warmup_steps={int(WARMUP * options.steps)}"]
    annotated = [f"--data.mask_classes={json.dumps(options.mask_classes)}"] if options.mask_classes else []

    say("1/4 pre-training the classifier on image-level labels")
    pretrain = run_dir / "pretrain"
    command("fit", ["model/pretrain.yaml", "main_job/pretrain.yaml"], pretrain, common)
    warm = [f"--model.warm_start={pretrain / 'classifier.safetensors'}"]

    rows = []
    budget = [f"--data.budget={options.budget}", f"--data.split_seed={options.split_seed}"]
    for number, (name, title) in enumerate(TRAINED.items(), start=2):
        say(f"{number}/4 training the {title} with {options.budget} masks")
        files = [f"model/{name}.yaml", "main_job/train.yaml", f"main_job/{name}.yaml"]
        start = time.perf_counter()
        extra = [*length, *annotated, *common]
        if annotated and name == "heatmap":  # a class that never had a mask has no offset of its own to learn
            extra.append("--model.model_kwargs.share_offset=true")
        command("fit", files, run_dir / name, [*extra, *warm, *budget])
        seconds = time.perf_counter() - start
        # The same masks for all that follows.
        budget = ["--data.budget=null", f"--data.budget_file={run_dir / name / 'label_budget.json'}"]
        metrics = command("test", files, run_dir / name, [*extra, *budget, "--ckpt_path=best"])
        rows.append(Row(title, tell_apart(metrics, options.mask_classes), seconds))

    say("4/4 training-free rows, tables and pictures")
    for name, title in TRAINING_FREE.items():
        files = [f"model/{name}.yaml", "main_job/train.yaml"]
        metrics = command("test", files, run_dir / name, [*annotated, *common, *warm, *budget])
        rows.append(Row(title, tell_apart(metrics, options.mask_classes), 0.0))
    write_table(run_dir, rows)
    write_pictures(run_dir, count=options.pictures, mask_classes=options.mask_classes)
    say((run_dir / "results.md").read_text(encoding="utf-8"))
    say(f"done in {(time.perf_counter() - started) / 60:.1f} minutes")
    for name in ("results.md", "results.csv", "picture.png", "masks/", "overlays/", "heatmaps/"):
        say(f"  {run_dir / name}")
    return run_dir


def command(subcommand: str, files: Sequence[str], run_dir: Path, extra: Sequence[str]) -> dict[str, float]:
    """Run one `tw-seg` command; returns the metrics of ``test`` by name."""
    configs = [f"--config={CONFIGS / file}" for file in ("data/digits.yaml", "encoder/resnet10t.yaml", *files)]
    done = lightning.run_command([subcommand, *configs, f"--run_dir={run_dir}", *extra])
    metrics = done.trainer.callback_metrics
    return {name.removeprefix("test/"): float(v) for name, v in metrics.items() if name.startswith("test/")}


def tell_apart(metrics: dict[str, float], mask_classes: Sequence[str] | None) -> dict[str, float]:
    """Add the mean IoU of the objects that masks show and of those that none shows, where there are such."""
    if not mask_classes:
        return metrics
    scores = {name.removeprefix("iou/"): value for name, value in metrics.items() if name.startswith("iou/")}
    objects = [name for name, score in scores.items() if name != "background" and not math.isnan(score)]
    with_masks = [scores[name] for name in objects if name in mask_classes]
    without = [scores[name] for name in objects if name not in mask_classes]
    apart = {"iou with masks": with_masks, "iou without masks": without}
    return metrics | {name: float(np.mean(values)) for name, values in apart.items() if values}


def write_table(run_dir: Path, rows: Sequence[Row]) -> None:
    """``results.csv`` (every metric) and ``results.md`` (the main ones)."""
    shown = [name for name in TITLES if name in COLUMNS or any(name in row.metrics for row in rows)]
    names = [*shown, *sorted({k for row in rows for k in row.metrics if k.startswith("iou/")})]
    head = ["model", *names, "train_seconds"]
    body = [[r.model, *(r.metrics.get(n, float("nan")) for n in names), r.seconds] for r in rows]

    def write_csv(draft: Path) -> None:
        with open(draft, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *body])

    titles = ("model", *(TITLES[name] for name in shown), "training")
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in rows:
        numbers = " | ".join(f"{row.metrics.get(name, float('nan')):.3f}" for name in shown)
        lines.append(f"| {row.model} | {numbers} | {f'{row.seconds:.0f} s' if row.seconds else 'none'} |")
    write_whole(run_dir / "results.csv", write_csv)
    write_text(run_dir / "results.md", "\n".join(lines) + "\n")


def write_pictures(run_dir: Path, *, count: int, mask_classes: Sequence[str] | None = None) -> None:
    """Masks, overlays and heatmaps of the first test images, and one picture of both models beside the truth."""
    data = SegmentationDataModule.load_from_checkpoint(run_dir / "heatmap" / "checkpoints" / "best.ckpt")
    scenes = DigitScenes("test", **data.hparams["dataset_kwargs"])
    transform = EvalTransform(data.hparams["size"], mean=data.hparams["mean"], std=data.hparams["std"])
    samples = [scenes[index] for index in range(min(count, len(scenes)))]
    images = torch.stack([transform(sample.image, None)[0] for sample in samples])
    outputs = {name: _predict(run_dir / name, images) for name in TRAINED}
    masks = {name: _masks(output, [s.image.shape[:2] for s in samples]) for name, output in outputs.items()}
    heatmaps = outputs["heatmap"].mask_logits.numpy()
    for row, sample in enumerate(samples):
        predicted = masks["heatmap"][row]
        save_mask(run_dir / "masks" / f"{sample.name}.png", predicted)
        save_picture(run_dir / "overlays" / f"{sample.name}.png", overlay(sample.image, predicted))
        for label in np.flatnonzero(sample.labels):
            name = f"{sample.name}-{data.class_names[label]}.png"
            save_picture(run_dir / "heatmaps" / name, draw_heatmap(heatmaps[row, label]))
    # A star marks a class that never had a mask.
    names = tuple(n if not mask_classes or n in ("background", *mask_classes) else f"{n}*" for n in data.class_names)
    _picture(run_dir / "picture.png", samples[:8], masks, heatmaps, names)


def overlay(image: np.ndarray, mask: np.ndarray, *, alpha: float = 0.6) -> np.ndarray:
    """The image (H, W, 3) with the objects of a mask (H, W) tinted in their colours, uint8."""
    tint = np.where(mask[..., None] > 0, draw_mask(mask), image)
    return np.rint(image * (1 - alpha) + tint * alpha).astype(np.uint8)


def _predict(run_dir: Path, images: torch.Tensor) -> SegOutput:
    task = SegmentationTask.load_from_checkpoint(run_dir / "checkpoints" / "best.ckpt", map_location="cpu").eval()
    with torch.inference_mode():
        output: SegOutput = task(images)
    return output


def _masks(output: SegOutput, sizes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    return [mask.numpy() for mask in predict_masks(output.mask_logits, [(int(h), int(w)) for h, w in sizes])]


def _picture(path, samples, masks, heatmaps, class_names) -> None:  # type: ignore[no-untyped-def]
    columns = ["image", "truth", "multi-task U-Net", "heatmap segmenter", "heatmap of one class"]
    figure, axes = plt.subplots(
        len(samples), len(columns), figsize=(2 * len(columns), 2.1 * len(samples)), squeeze=False
    )
    for row, sample in enumerate(samples):
        shown = [k for k in np.flatnonzero(sample.labels) if k > 0]
        label = int(max(shown, key=lambda k: "*" in class_names[int(k)], default=0))
        tiles = [
            sample.image,
            draw_mask(sample.mask),
            draw_mask(masks["multitask_unet"][row]),
            draw_mask(masks["heatmap"][row]),
            draw_heatmap(heatmaps[row, label]),
        ]
        predicted = [np.unique(masks[name][row]) for name in ("multitask_unet", "heatmap")]
        notes = ["", _names(shown, class_names), *(_names(p[p > 0], class_names) for p in predicted)]
        for axis, tile, note in zip(axes[row], tiles, [*notes, class_names[label]], strict=True):
            axis.imshow(tile)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(note, fontsize=8)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=10)
    figure.tight_layout()
    write_whole(path, lambda draft: figure.savefig(draft, dpi=110, format="png"))
    plt.close(figure)


def _names(labels, class_names) -> str:  # type: ignore[no-untyped-def]
    return ", ".join(class_names[int(k)] for k in labels)


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", default="runs/main_job", help="a new folder; a number is added if it exists")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--split_seed", type=int, default=0, help="seed of the choice of masks")
    parser.add_argument("--budget", type=int, default=20, help="number of training images whose mask is used")
    parser.add_argument("--steps", type=_steps, default=400, help=f"of each model's training, a multiple of {EPOCH}")
    parser.add_argument("--mask_classes", nargs="+", metavar="CLASS", help="the only classes that masks show")
    parser.add_argument("--pictures", type=int, default=24, help="number of test images to write pictures of")
    parser.add_argument("--set", action="append", default=[], metavar="--KEY=VALUE", help="passed on to every command")
    return parser.parse_args(args)


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) < EPOCH or int(text) % EPOCH:
        raise argparse.ArgumentTypeError(f"must be a multiple of {EPOCH}, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main(sys.argv[1:])
