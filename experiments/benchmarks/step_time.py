"""Time of a training step: heatmap segmenter and multi-task U-Net against the plain classifier's, interleaved.

    python -m experiments.benchmarks.step_time

The step is the main job's: forward, loss, backward, AdamW, on one batch of random images. An exact decode of K classes
for a share of the batch costs at best ``1 + K * share`` classifier steps, which is printed beside the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tw_seg import Batch, create_model
from tw_seg.losses import SegmentationLoss
from tw_seg.training.sampled_classes import find_classes, segment_sampled_classes

ENCODER = {
    "encoder_name": "timm/resnet10t",
    "encoder_kwargs": {"channels": [48, 96, 128, 128], "output_stride": 8, "avg_down": False},
}
READ_OUT = ["conv1.5", "layer1", "layer2", "layer4"]
SAMPLED = "heatmap, untied, sampled classes"


def contenders(classes: int) -> dict[str, torch.nn.Module]:
    """The models, by the name that is printed."""
    untied, tied = ({"read_out": READ_OUT, "tie_weights": tie_weights} for tie_weights in (False, True))
    heatmap = {**ENCODER, "classes": classes, "compress": 2.0}
    return {
        "classifier": create_model("classifier", **ENCODER, classes=classes),
        "heatmap, untied": create_model("heatmap", **heatmap, decoder_kwargs=untied),
        SAMPLED: create_model("heatmap", **heatmap, decoder_kwargs=untied),
        "heatmap, tied": create_model("heatmap", **heatmap, decoder_kwargs=tied),
        "multi-task U-Net": create_model("multitask_unet", **ENCODER, classes=classes),
    }


def stepper(model: Any, batch: Batch, negatives: int | None) -> Callable[[], None]:
    """One training step of a model on a batch, with all classes or with some that are absent."""
    loss = SegmentationLoss(1.0, 1.0, bce=1.0, aux=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        if negatives is None:
            output = model(batch.images, samples=batch.labelled)
        else:
            needed = (batch.labels[batch.labelled] > 0) | find_classes(batch.masks, batch.labels.shape[1])
            output = segment_sampled_classes(model, batch.images, batch.labelled, needed, negatives=negatives)
        decoded = len(output.mask_logits)
        shown = batch._replace(labelled=batch.labelled[:decoded], masks=batch.masks[:decoded])
        optimizer.zero_grad()
        loss(output, shown)[0].backward()
        optimizer.step()

    return step


def measure(
    *, batch_size: int, labelled: int, classes: int, present: int, negatives: int, size: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each repeat of each contender, taken in turn after one warm-up each."""
    shown = torch.rand(batch_size, classes).argsort(1)[:, : present + 1]  # so many classes in each image
    shown[:, 0] = 0
    masks = shown[:labelled].gather(1, torch.randint(0, present + 1, (labelled, size * size)))
    batch = Batch(
        images=torch.randn(batch_size, 3, size, size),
        labels=torch.zeros(batch_size, classes).scatter_(1, shown, 1.0),
        labelled=torch.arange(labelled),
        masks=masks.view(labelled, size, size),
        native_masks=(),
        names=tuple(map(str, range(batch_size))),
    )
    steps = {
        name: stepper(model.train(), batch, negatives if name == SAMPLED else None)
        for name, model in contenders(classes).items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _describe_ratios(values: Sequence[float], base: Sequence[float]) -> str:
    """The median of the ratios of pairs, and their range."""
    ratios = [value / other for value, other in zip(values, base, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main(args: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=22)
    parser.add_argument("--labelled", type=int, default=6)
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--present", type=int, default=2, help="classes that an image shows, without the background")
    parser.add_argument("--negatives", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    options = vars(parser.parse_args(args))
    seconds = measure(**options)
    bases = ("classifier", "multi-task U-Net")
    titles = "".join(f" relative to the {base}'s |" for base in bases)
    print(f"| step | median s |{titles}\n|---|---|{'---|' * len(bases)}")
    for name, values in seconds.items():
        shown = "".join(f" {_describe_ratios(values, seconds[base])} |" for base in bases)
        print(f"| {name} | {statistics.median(values):.3f} |{shown}")
    ideal = 1 + options["classes"] * options["labelled"] / options["batch_size"]
    print(f"\n1 + K * labelled share = {ideal:.2f}; {options}, torch {torch.__version__}")


if __name__ == "__main__":
    main(sys.argv[1:])
