"""What is measured on which machine: cases, contenders and how often."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from experiments.benchmarks import targets
from experiments.benchmarks.case import Case
from experiments.benchmarks.compare import Settings
from experiments.benchmarks.contenders import TRAINING
from experiments.benchmarks.inference import INFERENCE

PARTS = ("training", "inference", "scaling", "profile")


@dataclass(frozen=True)
class Entry:
    """A case with its contenders; ``axis`` is what it is a point of, in the scaling part."""

    part: str
    case: Case
    contenders: tuple[str, ...]
    axis: str | None = None


@dataclass(frozen=True)
class Suite:
    """Cases in the order in which they run, how long each may take, and what is profiled."""

    entries: tuple[Entry, ...]
    settings: Settings
    profiles: tuple[tuple[str, Case], ...]


OWN = ("ours", "ours, recompute", "ours, two-phase")
CORE = ("ours", "ours, memory budget", "double backpropagation", "classifier", "multi-task U-Net")
WITH_PUBLISHED = (*CORE, "published, per class")
ALL_AT_ONCE = "published, all at once"
DOUBLE = ("ours", "ours, memory budget", "double backpropagation", "classifier")
FLAT = ("ours, recompute", "ours, two-phase")


def _sweep(base: Case, contenders: Sequence[str], **axes: Sequence[int]) -> Iterator[Entry]:
    """One axis at a time, everything else as in the base. ``sizes`` are sides, their axis counts pixels."""
    for axis, values in axes.items():
        for value in values:
            case = {
                "classes": lambda v: replace(base, classes=v),
                # The labelled share stays; a single image is labelled.
                "batch": lambda v: replace(base, batch=v, labelled=max(1, round(v * base.share))),
                "pixels": lambda v: replace(base, size=v),
                "share": lambda v: replace(base, labelled=v),
            }[axis](value)
            label = {"pixels": "size", "share": "labelled"}.get(axis, axis)
            yield Entry("scaling", replace(case, name=f"{label} = {value}"), tuple(contenders), axis)


def _flat(base: Case) -> Iterator[Entry]:
    for name, classes in ((targets.FEW, 11), (targets.MANY, 81)):
        yield Entry("scaling", replace(base, name=name, classes=classes), FLAT)


def _all_labelled(base: Case) -> Iterator[Entry]:
    full = replace(base, labelled=base.batch)
    yield Entry("training", replace(full, name=targets.ALL_LABELLED), DOUBLE)
    yield Entry("training", replace(full, name=targets.ALL_LABELLED_FROZEN, batch_norm="eval"), DOUBLE)


def _inference(base: Case, contenders: Sequence[str] = tuple(INFERENCE)) -> Entry:
    case = replace(base, part="inference", labelled=base.batch)
    return Entry("inference", case, tuple(contenders))


def _headline(base: Case, contenders: Sequence[str] = tuple(TRAINING)) -> Iterator[Entry]:
    yield Entry("training", base, tuple(contenders))
    yield from _all_labelled(base)
    yield _inference(replace(base, name=targets.INFERENCE))


def cpu() -> Suite:
    """About an hour on 2 slow cores with the published code."""
    base = Case(targets.HEADLINE, "resnet50", classes=21, size=128, batch=4, labelled=2)
    small = Case("scaling", "resnet18", classes=21, size=64, batch=4, labelled=2)
    single = replace(base, batch=1, labelled=1, batch_norm="eval")
    vgg = Case("VGG-16", "vgg16", classes=2, size=224, batch=2, labelled=1)
    entries = [
        # All at once, the published code wants more than 10 GiB here: it is measured at 64 px.
        *_headline(base, tuple(name for name in TRAINING if name != ALL_AT_ONCE)),
        Entry("training", replace(base, name="ResNet-18", encoder="resnet18"), CORE),
        # A VGG-16 with its gradients and AdamW's state takes 2 GiB: few contenders fit beside each other.
        Entry("training", vgg, ("ours", "double backpropagation", "classifier", "published, per class")),
        Entry("training", replace(base, name="2 classes", classes=2), WITH_PUBLISHED),
        Entry("training", replace(base, name="64 px", size=64), (*WITH_PUBLISHED, ALL_AT_ONCE)),
        Entry("training", replace(base, name="256 px", size=256, batch=2, labelled=1), DOUBLE),
        Entry("training", replace(single, name="512 px", size=512, classes=11), DOUBLE),
        Entry("training", replace(single, name="1 image"), DOUBLE),
        Entry("training", replace(base, name="32 images", batch=32, labelled=8, size=64), DOUBLE),
        _inference(replace(vgg, name="inference, VGG-16", classes=11, batch=1)),
        _inference(replace(base, name="inference, exported"), ("ours", "ours, exported (.pt2)", "ours, ONNX")),
        *_flat(base),
        *_sweep(
            small,
            OWN,
            classes=(2, 11, 21, 81),
            batch=(2, 4, 8, 16),
            pixels=(32, 64, 128),
            share=(1, 2, 4),
        ),
    ]
    settings = Settings(repeats=5, least_seconds=0.5, least_turns=3, budget_seconds=20, limit_seconds=600)
    return Suite(tuple(entries), settings, (("ours", base), ("classifier", base)))


def cuda() -> Suite:
    """The paper's protocol in every precision, one setting varied at a time, and the grid."""
    base = _cuda_base()
    variants = {
        "TF32": replace(base, precision="tf32"),
        "bf16": replace(base, precision="bf16"),
        "channels_last": replace(base, channels_last=True),
        "TF32, channels_last": replace(base, precision="tf32", channels_last=True),
        "bf16, channels_last": replace(base, precision="bf16", channels_last=True),
        "torch.compile": replace(base, compile=True),
        "bf16, channels_last, torch.compile": replace(base, precision="bf16", channels_last=True, compile=True),
    }
    uncompiled = tuple(name for name in TRAINING if name != ALL_AT_ONCE)
    compiled = ("ours", "ours, recompute", "classifier", "multi-task U-Net")
    grid = itertools.product(("resnet18", "resnet50", "vgg16"), (2, 11, 21, 81), (64, 128, 256, 512), (1, 8, 32))
    entries = [
        *_headline(base),
        *(
            Entry("training", replace(case, name=name), compiled if case.compile else uncompiled)
            for name, case in variants.items()
        ),
        *(_inference(replace(case, name=f"inference, {name}")) for name, case in variants.items() if not case.compile),
        Entry("training", replace(base, name="ResNet-18", encoder="resnet18"), WITH_PUBLISHED),
        Entry("training", replace(base, name="VGG-16", encoder="vgg16"), WITH_PUBLISHED),
        _inference(replace(base, name="inference, VGG-16", encoder="vgg16")),
        *_flat(base),
        *_sweep(
            base,
            OWN,
            classes=(2, 5, 11, 21, 41, 81),
            batch=(2, 4, 8, 16, 32),
            pixels=(64, 128, 256, 512),
            share=(1, 2, 5, 10),
        ),
        *(_grid_entry(base, *point) for point in grid),
    ]
    settings = Settings(repeats=7, least_seconds=0.5, least_turns=3, budget_seconds=20, limit_seconds=600)
    return Suite(tuple(entries), settings, (("ours", base), ("classifier", base)))


def cuda_headline() -> Suite:
    """The rows of ``cuda`` that matter most, with fewer contenders and turns: about six minutes."""
    base = _cuda_base()
    full = replace(base, labelled=base.batch, name=targets.ALL_LABELLED)
    fast = replace(base, precision="bf16", channels_last=True)
    alone = ("ours", "classifier")
    entries = [
        Entry("training", base, (*WITH_PUBLISHED, "ours, untied")),
        _inference(replace(base, name=targets.INFERENCE), ("ours", "ours, gated", "zennit, per class", "classifier")),
        Entry("training", full, DOUBLE),
        Entry("training", replace(fast, name="bf16, channels_last"), WITH_PUBLISHED),
        Entry("training", replace(base, name="TF32", precision="tf32"), WITH_PUBLISHED),
        Entry("training", replace(fast, name="bf16, channels_last, torch.compile", compile=True), alone),
        Entry("training", replace(base, name="torch.compile", compile=True), alone),
        *_flat(base),
    ]
    settings = Settings(repeats=5, least_seconds=0.3, least_turns=3, budget_seconds=8, limit_seconds=150)
    return Suite(tuple(entries), settings, ())


def _cuda_base() -> Case:
    """The paper's protocol."""
    return Case(
        targets.HEADLINE, "resnet50", classes=21, size=256, batch=10, labelled=5, device="cuda", memory_budget=4.0
    )


def _grid_entry(base: Case, encoder: str, classes: int, size: int, batch: int) -> Entry:
    # One image of 64 px leaves BatchNorm one value per channel to normalise with.
    mode: Literal["train", "eval"] = "eval" if batch == 1 else "train"
    case = replace(base, encoder=encoder, classes=classes, size=size, batch=batch, labelled=(batch + 1) // 2)
    name = f"grid: {encoder}, K = {classes}, {size} px, {batch} images"
    return Entry("training", replace(case, name=name, batch_norm=mode), (*OWN[:2], "classifier"))


def smoke() -> Suite:
    """Seconds: that everything runs."""
    base = Case(targets.HEADLINE, "timm/resnet10t", classes=3, size=64, batch=2, labelled=1, chunk_size=2)
    small = replace(base, name=targets.INFERENCE, encoder="resnet18", size=32)  # captum has rules for this one
    entries = [
        Entry("training", base, WITH_PUBLISHED),
        _inference(small, ("ours", "ours, exported (.pt2)", "ours, ONNX", "captum LRP, per class", "classifier")),
        *_sweep(replace(base, size=32, batch_norm="eval"), ("ours",), classes=(2, 4)),
    ]
    settings = Settings(repeats=2, least_seconds=0.0, least_turns=1, budget_seconds=60, limit_seconds=120)
    return Suite(tuple(entries), settings, (("ours", base),))


SUITES = {"cpu": cpu, "cuda": cuda, "cuda_headline": cuda_headline, "smoke": smoke}
"""Name -> suite."""
