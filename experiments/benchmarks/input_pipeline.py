"""Images/s of the training loader, with and without the decoded-image cache, against what a training step takes.

    python -m experiments.benchmarks.input_pipeline --output input_pipeline.json

The files are made for the purpose, of the size of Pascal VOC's, unless ``--root`` is a folder in VOC layout. Loaders
and the step are timed in turn. The step is the main job's (forward, loss, backward, AdamW) on one of the loader's own
batches; the loaders are the data module's. Workers load while the step computes, without them loading adds to its time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from experiments.benchmarks.machine import machine
from tw_seg import Batch, create_model
from tw_seg.data.layouts.readers import read_image, read_mask
from tw_seg.data.layouts.voc import VOC_CLASSES
from tw_seg.data.loading.collate import collate
from tw_seg.data.loading.sampler import Draw
from tw_seg.data.loading.transforms import EvalTransform, TrainTransform
from tw_seg.files import write_text
from tw_seg.losses import SegmentationLoss
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.types import IGNORE_INDEX

BUDGET = 20


def write_photographs(root: Path, count: int, *, size: tuple[int, int] = (375, 500), seed: int = 0) -> Path:
    """Crops of real photographs as JPEG, with palette masks of random ellipses, in VOC layout; returns the root."""
    rng = np.random.default_rng(seed)
    photographs = [Image.fromarray(photo) for photo in load_sample_images().images]
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    height, width = size
    y, x = np.mgrid[:height, :width]
    rows = ["image," + ",".join(VOC_CLASSES[1:])]
    for index in range(count):
        left, top = rng.uniform(0, 100), rng.uniform(0, 40)
        box = (left, top, left + rng.uniform(400, 540), top + rng.uniform(300, 387))
        photo = photographs[index % len(photographs)].resize((width, height), Image.Resampling.BICUBIC, box)
        photo.save(root / "JPEGImages" / f"{index:05d}.jpg", quality=90)
        center_y, center_x, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.2, 0.5) * height
        distance = np.hypot(y - center_y, (x - center_x) / rng.uniform(0.5, 2)) / radius
        label = int(rng.integers(1, len(VOC_CLASSES)))
        ids = np.where(abs(distance - 1) < 0.03, IGNORE_INDEX, label * (distance < 1))
        mask = Image.fromarray(ids.astype(np.uint8))
        mask.putpalette([value for i in range(256) for value in (i, 255 - i, 7 * i % 256)])
        mask.save(root / "SegmentationClass" / f"{index:05d}.png")
        rows.append(f"{index:05d}," + ",".join(str(int(i == label)) for i in range(1, len(VOC_CLASSES))))
    (root / "image_labels.csv").write_text("\n".join(rows), encoding="utf-8")
    names = "\n".join(f"{index:05d}" for index in range(count))
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text(names, encoding="utf-8")
    return root


def data_module(root: Path, options: argparse.Namespace, *, cache: bool, workers: int) -> SegmentationDataModule:
    """The data module of one row of the table."""
    return SegmentationDataModule(
        "voc",
        {"root": str(root)},
        budget=min(BUDGET, options.images),
        batch_size=options.batch_size,
        labelled_per_batch=options.labelled,
        steps_per_epoch=options.batches,
        size=options.size,
        augmentation={"flip": True},
        num_workers=workers,
        cache_gib=options.cache_gib if cache else 0.0,
    )


def stepper(batch: Batch, classes: int, *, encoder: str, device: torch.device) -> Callable[[], None]:
    """One training step of a heatmap segmenter on a batch that is on the device."""
    model = create_model("heatmap", encoder_name=encoder, encoder_weights=None, classes=classes).to(device).train()
    batch = batch._replace(
        images=batch.images.to(device),
        labels=batch.labels.to(device),
        labelled=batch.labelled.to(device),
        masks=batch.masks.to(device),
    )
    loss, optimizer = SegmentationLoss(), torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        output = model(batch.images, samples=batch.labelled)
        optimizer.zero_grad()
        loss(output, batch)[0].backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Images/s of the step and of each loader, one number a repeat, after one warm-up each."""
    device = torch.device(options.device)
    loaders: list[dict[str, Any]] = []
    iterables: list[Iterable[Batch]] = []
    for cache in (False, True):
        for workers in options.workers:
            data = data_module(root, options, cache=cache, workers=workers)
            start = time.perf_counter()
            iterables.append(data.train_dataloader())
            fill = time.perf_counter() - start if cache else 0.0
            loaders.append({"cache": cache, "workers": workers, "fill_seconds": fill, "images_per_second": []})
    step = stepper(next(iter(iterables[0])), data.num_classes, encoder=options.encoder, device=device)
    speeds: list[float] = []
    for turn in range(options.repeats + 1):
        start = time.perf_counter()
        step()
        if turn:
            speeds.append(options.batch_size / (time.perf_counter() - start))
        for row, batches in zip(loaders, iterables, strict=True):
            start = time.perf_counter()
            images = sum(len(batch.images) for batch in batches)
            if turn:
                row["images_per_second"].append(images / (time.perf_counter() - start))
    return {"step": speeds, "loaders": loaders, "parts": parts(root, options)}


def parts(root: Path, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of one core for each part of the work on one image; medians over images."""
    names = (root / "ImageSets" / "Segmentation" / "train.txt").read_text(encoding="utf-8").split()
    names = names[: options.batch_size]
    images, masks = root / "JPEGImages", root / "SegmentationClass"
    plain = EvalTransform(options.size)
    augmented = TrainTransform(plain, {"flip": True})
    module = data_module(root, options, cache=True, workers=0)
    items = module.train_dataloader().dataset
    decoded = [read_image(images / f"{name}.jpg") for name in names]
    native = [read_mask(masks / f"{name}.png", num_classes=module.num_classes) for name in names]
    resized = [plain.resize(image) for image in decoded]
    finished = [items[Draw(row, False, (0, 0, row))] for row in range(len(names))]
    rows: dict[str, Callable[[int], object]] = {
        "read and decode the image": lambda row: read_image(images / f"{names[row]}.jpg"),
        "read and decode the mask (labelled rows)": lambda row: read_mask(
            masks / f"{names[row]}.png", num_classes=module.num_classes
        ),
        "resize": lambda row: plain.resize(decoded[row]),
        "augment and normalise": lambda row: augmented.finish(resized[row], None, key=(0, 0, row)),
        "augment and normalise, with mask (labelled rows)": lambda row: augmented.finish(
            resized[row], plain.resize_mask(native[row]), key=(0, 0, row)
        ),
        "of these, normalise": lambda row: plain.finish(resized[row], None),
        "collate": lambda row: collate(finished),
    }
    found = {}
    for name, work in rows.items():
        seconds = [_seconds(work, row) for row in range(len(names))]
        found[name] = 1000 * statistics.median(seconds) / (len(names) if name == "collate" else 1)
    return found


def _seconds(work: Callable[[int], object], row: int) -> float:
    start = time.perf_counter()
    work(row)
    return time.perf_counter() - start


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    step = statistics.median(results["step"])
    lines = [
        f"The step takes {_spread(results['step'])} images/s.\n",
        "| cache | workers | loader, images/s | relative to the step's | keeps up |\n|---|---|---|---|---|",
    ]
    for row in results["loaders"]:
        speed = statistics.median(row["images_per_second"])
        cache = f"yes (filled in {row['fill_seconds']:.1f} s)" if row["cache"] else "no"
        yes_or_no = "yes" if speed >= step else "no"
        verdict = yes_or_no if row["workers"] else f"adds {step / speed:.1%} to the step"
        spread = _spread(row["images_per_second"])
        lines.append(f"| {cache} | {row['workers']} | {spread} | {speed / step:.3g} x | {verdict} |")
    lines.append("\n| part | ms for one image |\n|---|---|")
    lines += [f"| {name} | {milliseconds:.3f} |" for name, milliseconds in results["parts"].items()]
    lines.append(f"\n{results['options']}, {results['machine']}")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print tables and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a folder in VOC layout with a split 'train'")
    parser.add_argument("--images", type=int, default=200, help="how many to make without --root")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--labelled", type=int, default=4, help="rows of a batch with a mask")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batches", type=int, default=25, help="batches of an epoch, and of a turn of a loader")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache_gib", type=float, default=2.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="a JSON file for the raw numbers")
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as folder:
        root = write_photographs(Path(folder) / "voc", options.images) if options.root is None else options.root
        results = measure(root, options)
    shown = {name: value for name, value in vars(options).items() if name not in ("root", "output")}
    results = {"machine": machine(), "options": shown | {"own_files": options.root is not None}} | results
    print(table(results))
    if options.output is not None:
        write_text(options.output, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
