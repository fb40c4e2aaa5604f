"""A folder with one image of each kind of supervision, from its files to the loss and through whole runs."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.training.tiny import ENCODER
from tw_seg.cli import main
from tw_seg.errors import InputError
from tw_seg.losses import SegmentationLoss
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.types import SegOutput

CLASSES = ("background", "cat", "dog")
HEIGHT, WIDTH = 32, 48
BOX = (4, 5, 20, 17)  # x_min, y_min, x_max, y_max
POINTS = ((1, 30, 10), (0, 5, 25))  # class, x, y
ALL = {0, 1, 2}


def draw() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[6:16, 5:18] = 1
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Each image with what is known of it."""
    root = tmp_path / "own"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    scribble = np.where((draw() == 1) & (np.arange(HEIGHT) == 10)[:, None], 1, 255).astype(np.uint8)
    scribble[30, :] = 0
    masks = {"full": draw(), "some": draw(), "scribble": scribble, "both": scribble, "val": draw()}
    rows = {
        "full": "train,1,0,",
        "some": "train,1,?,cat",
        "scribble": "train,1,,",
        "boxed": "train,?,0,",
        "points": "train,?,1,",
        "both": "train,1,1,",
        "labels": "train,0,1,",
        "nothing": "train,,?,",
        "val": "val,1,0,",
        "val boxed": "val,1,?,cat",
    }
    for i, name in enumerate(rows):
        picture = np.random.default_rng(i).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / "images" / f"{name}.png")
        if name in masks:
            Image.fromarray(masks[name]).save(root / "masks" / f"{name}.png")
    table = "".join(f"{name},{row}\n" for name, row in rows.items())
    (root / "image_labels.csv").write_text("image,split,cat,dog,annotated\n" + table)
    edges = ",".join(map(str, BOX))
    boxes = "".join(
        f"{name},{kind},{edges}\n" for name, kind in (("boxed", "cat"), ("both", "dog"), ("val boxed", "cat"))
    )
    (root / "boxes.csv").write_text("image,class,x_min,y_min,x_max,y_max\n" + boxes)
    points = "".join(f"points,{CLASSES[k]},{x},{y}\n" for k, x, y in POINTS)
    (root / "points.csv").write_text("image,class,x,y\n" + points)
    return root


def find_sets(name: str, y: int, x: int) -> set[int]:
    """The classes that a pixel may have, from what the files say."""
    drawn = int(draw()[y, x])
    in_box = BOX[0] <= x < BOX[2] and BOX[1] <= y < BOX[3]
    scribbled = {1} if drawn == 1 and y == 10 else {0} if y == 30 else None
    if name == "full":
        return {drawn}
    if name == "some":  # nobody knows of dogs, and nobody drew them
        return {1} if drawn else {0, 2}
    if name == "scribble":
        return scribbled or ALL
    if name == "boxed":
        return {0, 1} if in_box else {0}
    if name == "points":
        hit = [k for k, px, py in POINTS if (px - x) ** 2 + (py - y) ** 2 <= 9]
        return set(hit) or ALL
    assert name == "both"
    return scribbled or ({0, 2} if in_box else {0})


def module(root: Path, **kwargs: Any) -> SegmentationDataModule:
    still = dict.fromkeys(("scale", "shift", "rotate", "color", "recolor"), 0.0)
    given = {"budget": "all", "batch_size": 8, "labelled_per_batch": 6, "size": (HEIGHT, WIDTH)}
    return SegmentationDataModule("folder", {"root": str(root)}, **{**given, "augmentation": still, **kwargs})


def test_the_loss_of_a_batch_is_that_of_what_the_files_say(root):
    """Sums over the classes that each pixel may have, and over the labels that are known, by loops."""
    data = module(root)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    mask_logits = torch.randn(6, 3, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    batch = batch._replace(labels=batch.labels.double())
    _, parts = SegmentationLoss()(SegOutput(logits, mask_logits), batch)
    assert set(batch.names[:6]) == {"full", "some", "scribble", "boxed", "points", "both"}
    terms = []
    for row, name in enumerate(batch.names[:6]):
        exponentials = np.exp(mask_logits[row].numpy())
        for y, x in np.ndindex(HEIGHT, WIDTH):
            classes = find_sets(name, y, x)
            if classes != ALL:
                share = exponentials[sorted(classes), y, x].sum() / exponentials[:, y, x].sum()
                terms.append(-math.log(share))
    assert parts["seg/ce"].item() == pytest.approx(np.mean(terms), rel=1e-9)
    known = {
        ("full", 1): 1, ("full", 2): 0, ("some", 1): 1, ("scribble", 1): 1, ("boxed", 1): 1, ("boxed", 2): 0,
        ("points", 1): 1, ("points", 2): 1, ("both", 1): 1, ("both", 2): 1, ("labels", 1): 0, ("labels", 2): 1,
    }  # fmt: skip
    terms = []
    for (name, k), label in known.items():
        p = 1 / (1 + math.exp(-logits[batch.names.index(name), k].item()))
        terms.append(-math.log(p if label else 1 - p))
    assert parts["cls/bce"].item() == pytest.approx(np.mean(terms), rel=1e-9)


def test_validation_scores_the_pixels_whose_one_class_is_known(root):
    data = module(root)
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert batch.names == ("val", "val boxed") and batch.labelled.tolist() == [0, 1]
    assert batch.native_masks[0].unique().tolist() == [0, 1]
    assert batch.native_masks[1].unique().tolist() == [255]  # outside of the box: the background, or a dog
    assert batch.annotated.tolist() == [[True] * 3, [True, True, False]]


CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "model": {**ENCODER, "pseudo_masks": {"images": 1, "start": 1, "confidence": 0.0}},
    "data": {
        "dataset": "folder",
        "dataset_kwargs": {"root": "own"},
        "size": [HEIGHT, WIDTH],
        "budget": "all",
        "batch_size": 4,
        "labelled_per_batch": 3,
        "cache_gib": 0.1,
    },
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 1,
        "limit_train_batches": 2,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    },
}
HEATMAP = {"model": "heatmap", "model_kwargs": {"decoder_kwargs": {"read_out": "layer3"}, "class_prior": 0.5}}
GUIDANCE = {"energy": 0.1, "rrr": 1.0, "l1": 0.1, "ppce": 0.01}


@pytest.mark.parametrize(
    "options",
    [
        {**HEATMAP, "guidance": GUIDANCE, "sampled_classes": {"negatives": 1}},
        {"model": "multitask_unet", "guidance": {"l1": 0.1}, "unmasked": "leave_out"},
    ],
    ids=["heatmap", "multitask_unet"],
)
def test_a_run_with_an_image_of_each_kind(root, monkeypatch, options):
    monkeypatch.chdir(root.parent)
    Path("config.yaml").write_text(yaml.safe_dump({**CONFIG, "model": {**CONFIG["model"], **options}}))
    assert main(["fit", "--config", "config.yaml", "--run_dir", "run"]) == 0
    with open("run/metrics/fit/metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    losses = [name for name in rows[0] if name.startswith("train/") or name in ("val/loss", "val/miou", "val/cls/map")]
    assert {f"train/guidance/{name}" for name in options["guidance"]} < set(losses)
    values = {name: [float(row[name]) for row in rows if row[name]] for name in losses}
    assert all(found and np.isfinite(found).all() for found in values.values()), values
    assert (
        main(["test", "--config", "run/config.yaml", "--ckpt_path", "best", "--data.split_kwargs.test.split=val"]) == 0
    )


def test_image_level_training_uses_the_labels_that_are_known(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    model = {**ENCODER, "model": "classifier"}
    config = {**CONFIG, "model": model, "best": {"monitor": "val/cls/map"}}
    config["data"] = {**CONFIG["data"], "labelled_per_batch": 0, "budget": None}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "config.yaml", "--run_dir", "run"]) == 0


def test_nothing_to_train_on(root):
    for path in (*root.glob("masks/*"), root / "boxes.csv", root / "points.csv"):
        path.unlink()
    (root / "classes.txt").write_text("\n".join(CLASSES))
    (root / "image_labels.csv").write_text("image,split\nfull,train\nval,val\n")
    data = module(root, labelled_per_batch=0, budget=None)
    data.setup("fit")
    with pytest.raises(InputError, match="there is nothing to train on: no mask is used .*, and no image-level label"):
        data.train_dataloader()
