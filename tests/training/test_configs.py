"""Every configuration that is shipped is parsed and run, in process, on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from tests.training.tiny import ENCODER
from tw_seg.cli.lightning import run_command
from tw_seg.models.classifier import ImageClassifier

CONFIGS = Path(__file__).resolve().parents[2] / "experiments" / "configs"
FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.y*ml"))
TRAINING_FREE = ("model/cam.yaml", "model/gradcam.yaml", "model/input_x_gradient.yaml", "model/lrp_mask.yaml")
LITE = "model/heatmap_efficientnet_lite0.yaml"
TINY_ENCODER = [
    f"--model.encoder_name={ENCODER['encoder_name']}",
    f"--model.encoder_kwargs={ENCODER['encoder_kwargs']}",
]


def arguments(*files: str) -> list[str]:
    return [part for file in files for part in ("--config", str(CONFIGS / file))]


def execute(command: str, files: Iterable[str], run_dir: Path, *extra: str):
    cpu = ["--trainer.accelerator=cpu", "--data.num_workers=0", f"--run_dir={run_dir}"]
    return run_command([command, *arguments(*files, "trainer/smoke.yaml"), *cpu, *extra])


@pytest.mark.parametrize("file", FILES)
def test_a_file_says_what_it_is_for_and_sets_something(file):
    text = (CONFIGS / file).read_text()
    assert text.startswith("# ") and text.splitlines()[0].endswith(".")
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("model/") and f not in (*TRAINING_FREE, LITE)])
def test_models(file, tmp_path):
    cli = execute("fit", ["data/digits_tiny.yaml", file], tmp_path, *TINY_ENCODER)
    assert cli.trainer.global_step == 2
    assert cli.trainer.logged_metrics["train/loss"].isfinite()
    assert cli.trainer.logged_metrics[cli.config.fit.best.monitor] >= 0
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()
    has_classifier = cli.model.model.classifier_path is not None
    assert (tmp_path / "classifier.safetensors").is_file() is has_classifier


def test_a_model_of_one_encoder(tmp_path):
    files = ["data/digits_tiny.yaml", "encoder/efficientnet_lite0.yaml", LITE]
    assert execute("fit", files, tmp_path).trainer.logged_metrics["train/loss"].isfinite()


@pytest.mark.parametrize("file", TRAINING_FREE)
def test_training_free_models(file, tmp_path):
    torch.manual_seed(1)
    path = tmp_path / "classifier.safetensors"
    save_file(ImageClassifier(**ENCODER, classes=11).classifier.state_dict(), path)
    files = ["data/digits_tiny.yaml", file]
    cli = execute("test", files, tmp_path / "run", *TINY_ENCODER, f"--model.warm_start={path}")
    assert 0 <= cli.trainer.callback_metrics["test/miou"] <= 1


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith(("trainer/", "logger/"))])
def test_trainers_and_loggers(file, tmp_path):
    cli = execute("fit", ["data/digits_tiny.yaml", "model/heatmap.yaml", file], tmp_path, *TINY_ENCODER)
    assert cli.trainer.global_step == 2
    assert (tmp_path / "metrics" / "fit" / "metrics.csv").is_file()


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("encoder/")])
def test_encoders(file, tmp_path):
    assert execute("fit", ["data/digits_tiny.yaml", file, "model/pretrain.yaml"], tmp_path).trainer.global_step == 2


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("data/digits")])
def test_digits(file, tmp_path):
    few = ["--data.split_kwargs.train.length=80", "--data.split_kwargs.val.length=4"]
    cli = execute("fit", [file, "model/unet.yaml"], tmp_path, *TINY_ENCODER, *few)
    assert cli.trainer.global_step == 2
    assert (tmp_path / "label_budget.json").is_file()


def write_images(folders: dict[str, str], names: Iterable[str], root: Path) -> None:
    random = np.random.default_rng(0)
    for folder in folders.values():
        (root / folder).mkdir(parents=True)
    for name in names:
        mask = np.zeros((20, 24), dtype=np.uint8)
        mask[5:12, 5:12] = 1 + len(name) % 2
        Image.fromarray(random.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(
            root / folders["images"] / f"{name}.jpg"
        )
        Image.fromarray(mask).save(root / folders["masks"] / f"{name}.png")


def test_folder(tmp_path):
    splits = {"train": 20, "val": 2, "test": 2}
    rows = [(f"{split}{i}", split, len(f"{split}{i}") % 2) for split, n in splits.items() for i in range(n)]
    write_images({"images": "images", "masks": "masks"}, [row[0] for row in rows], tmp_path)
    table = [f"{name},{split},{1 - odd},{odd}" for name, split, odd in rows]
    (tmp_path / "image_labels.csv").write_text("\n".join(["image,split,even,odd", *table]))
    own = [f"--data.dataset_kwargs={{root: {tmp_path}}}", "--data.size=32"]
    cli = execute("fit", ["data/folder.yaml", "model/unet.yaml"], tmp_path / "run", *TINY_ENCODER, *own)
    assert cli.trainer.global_step == 2
    assert cli.model.class_names == ("background", "even", "odd")


def test_masks_from_image_labels_alone(tmp_path):
    """A folder without masks: a classifier is trained, and `lrp_mask` makes masks with it."""
    names = [f"{split}{i}" for split in ("train", "val") for i in range(4)]
    write_images({"images": "images", "masks": "spare"}, names, tmp_path)
    rows = [f"{name},{name.rstrip('0123')},{i % 2},{1 - i % 2}" for i, name in enumerate(names)]
    (tmp_path / "image_labels.csv").write_text("\n".join(["image,split,even,odd", *rows]))
    own = [f"--data.dataset_kwargs.root={tmp_path}", "--data.size=32", "--data.batch_size=2"]
    execute("fit", ["data/folder.yaml", "model/pretrain.yaml"], tmp_path / "fit", *TINY_ENCODER, *own)
    own += [f"--model.warm_start={tmp_path / 'fit' / 'classifier.safetensors'}", "--model.model_kwargs.gate=0"]
    execute("predict", ["data/folder.yaml", "model/lrp_mask.yaml"], tmp_path / "run", *TINY_ENCODER, *own)
    masks = sorted((tmp_path / "run" / "predictions" / "masks").glob("*.png"))
    assert [path.stem for path in masks] == [f"val{i}" for i in range(4)]
    shown = [np.array(Image.open(path)) for path in masks]
    assert all(mask.shape == (20, 24) and mask.max() <= 2 for mask in shown) and any(mask.any() for mask in shown)


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("data/magnetic_tile")])
def test_magnetic_tile(file, tmp_path):
    """Grey images, masks of 0 and 1, and a table with columns that are no classes."""
    write_images({"images": "images", "masks": "masks"}, names := [f"exp{i}" for i in range(8)], tmp_path)
    for name in names:
        Image.open(path := tmp_path / "images" / f"{name}.jpg").convert("L").save(path)
        mask = np.array(Image.open(path := tmp_path / "masks" / f"{name}.png")).clip(max=1)
        Image.fromarray(mask).save(path)
    rows = [f"{name},{'train' if i < 6 else 'val'},crack,{i},1" for i, name in enumerate(names)]
    (tmp_path / "image_labels.csv").write_text("\n".join(["image,split,defect_type,shot_group,defect", *rows]))
    own = [f"--data.dataset_kwargs.root={tmp_path}", "--data.size=32", "--data.batch_size=5"]
    cli = execute("fit", [file, "model/unet.yaml"], tmp_path / "run", *TINY_ENCODER, *own)
    assert cli.trainer.global_step == 2
    names = {"data/magnetic_tile.yaml": ["defect"]}.get(file, ["blowhole", "break", "crack", "fray", "uneven"])
    assert cli.model.class_names == ("background", *names)


@pytest.mark.parametrize(("file", "classes"), [("data/voc.yaml", 21), ("data/msrc_objects.yaml", 3)])
def test_voc(file, classes, tmp_path):
    names = {"train": [f"t{i}" for i in range(20)], "val": ["v0", "v10"]}
    folders = {"images": "JPEGImages", "masks": "SegmentationClass"}
    write_images(folders, names["train"] + names["val"], tmp_path)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, members in names.items():
        (lists / f"{split}.txt").write_text("\n".join(members))
    if classes != 21:
        (tmp_path / "classes.txt").write_text("background\ncow\nsheep\n")
    own = [f"--data.dataset_kwargs={{root: {tmp_path}}}", "--data.size=32"]
    cli = execute("fit", [file, "model/unet.yaml"], tmp_path / "run", *TINY_ENCODER, *own)
    assert cli.trainer.global_step == 2
    assert cli.model.num_classes == classes


def test_files_of_one_kind_add_up(tmp_path):
    """Callbacks are appended, later numbers win."""
    files = ["data/digits_tiny.yaml", "model/unet.yaml", "trainer/cpu.yaml", "trainer/ema.yaml", "logger/wandb.yaml"]
    cli = execute("fit", files, tmp_path, *TINY_ENCODER, "--model.lr=0.5")
    assert cli.model.hparams["lr"] == 0.5
    assert cli.trainer.max_epochs == 1
    assert "EMAWeightAveraging" in {type(callback).__name__ for callback in cli.trainer.callbacks}


@pytest.mark.parametrize("file", [f for f in FILES if f.startswith("main_job/")])
def test_main_job(file, tmp_path):
    model = f"model/{Path(file).name}"
    files = ["data/digits_tiny.yaml", model if model in FILES else "model/unet.yaml", file]
    assert execute("fit", files, tmp_path, *TINY_ENCODER).trainer.global_step == 2


def test_every_file_is_tested_above():
    kinds = {"data", "encoder", "logger", "main_job", "model", "trainer"}
    assert {file.split("/")[0] for file in FILES} <= kinds
    data = {"digits", "digits_tiny", "folder", "magnetic_tile", "magnetic_tile_types", "msrc_objects", "voc"}
    assert {file for file in FILES if file.startswith("data/")} == {f"data/{name}.yaml" for name in data}
