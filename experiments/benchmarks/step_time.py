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

import torch

from tw_seg import Batch, create_model
from tw_seg.losses import SegmentationLoss

ENCODER = {
    "encoder_name": "timm/resnet10t",
    "encoder_kwargs": {"channels": [48, 96, 128, 128], "output_stride": 8, "avg_down": False},
}
READ_OUT = ["conv1.5", "layer1", "layer2", "layer4"]


def contenders(classes: int) -> dict[str, torch.nn.Module]:
    """The models, by the name that is printed."""
    untied, tied = ({"read_out": READ_OUT, "tie_weights": tie_weights} for tie_weights in (False, True))
    heatmap = {**ENCODER, "classes": classes, "compress": 2.0}
    return {
        "classifier": create_model("classifier", **ENCODER, classes=classes),
        "heatmap, untied": create_model("heatmap", **heatmap, decoder_kwargs=untied),
        "heatmap, tied": create_model("heatmap", **heatmap, decoder_kwargs=tied),
        "multi-task U-Net": create_model("multitask_unet", **ENCODER, classes=classes),
    }


def stepper(model: torch.nn.Module, batch: Batch) -> Callable[[], None]:
    """One training step of a model on a batch."""
    loss = SegmentationLoss(1.0, 1.0, bce=1.0, aux=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        output = model(batch.images, samples=batch.labelled)
        decoded = len(output.mask_logits)
        shown = batch._replace(labelled=batch.labelled[:decoded], masks=batch.masks[:decoded])
        optimizer.zero_grad()
        loss(output, shown)[0].backward()
        optimizer.step()

    return step


def measure(*, batch_size: int, labelled: int, classes: int, size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat of each contender, taken in turn after one warm-up each."""
    batch = Batch(
        images=torch.randn(batch_size, 3, size, size),
        labels=torch.randint(0, 2, (batch_size, classes)).float(),
        labelled=torch.arange(labelled),
        masks=torch.randint(0, classes, (labelled, size, size)),
        native_masks=(),
        names=tuple(map(str, range(batch_size))),
    )
    steps = {name: stepper(model.train(), batch) for name, model in contenders(classes).items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main(args: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=22)
    parser.add_argument("--labelled", type=int, default=6)
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    options = vars(parser.parse_args(args))
    seconds = measure(**options)
    base = seconds["classifier"]
    print("| step | median s | relative to the classifier's (median of pairs, min to max) |\n|---|---|---|")
    for name, values in seconds.items():
        ratios = [value / other for value, other in zip(values, base, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {statistics.median(values):.3f} | {spread} |")
    ideal = 1 + options["classes"] * options["labelled"] / options["batch_size"]
    print(f"\n1 + K * labelled share = {ideal:.2f}; {options}, torch {torch.__version__}")


if __name__ == "__main__":
    main(sys.argv[1:])
