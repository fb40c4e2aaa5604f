"""Every configuration that is shipped is parsed and run, in process, on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from tests.data.layouts import test_coco as test_coco_layout
from tests.data.layouts import test_cvat as test_cvat_layout
from tests.data.layouts import test_label_studio as test_label_studio_layout
from tests.data.layouts import test_labelme as test_labelme_layout
from tests.data.layouts.drawn import CLASSES, save_image
from tests.training.tiny import ENCODER
from tw_seg.cli import main
from tw_seg.cli.lightning import run_command
from tw_seg.errors import InputError
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


SPLITS = {"train": 20, "val": 2, "test": 2}


def fit(file: str, root: Path, *extra: str):
    own = [f"--data.dataset_kwargs.root={root}", "--data.size=32", *extra]
    cli = execute("fit", [file, "model/unet.yaml"], root / "run", *TINY_ENCODER, *own)
    assert cli.trainer.global_step == 2 and cli.trainer.logged_metrics["train/loss"].isfinite()
    return cli


def test_coco(tmp_path):
    for split in ("train", "val"):
        names = [f"{split}{i}.jpg" for i in range(SPLITS[split])]
        (tmp_path / f"{split}2017").mkdir()
        shape = {"category_id": 4, "segmentation": [test_coco_layout.square(4, 4, 9)], "area": 81}
        content = test_coco_layout.describe(names=tuple(names))
        content["annotations"] = [
            {"id": i, "image_id": image["id"], "iscrowd": 0, **shape} for i, image in enumerate(content["images"])
        ]
        for name in names:
            save_image(tmp_path / f"{split}2017" / name, test_coco_layout.SIZE)
        test_coco_layout.write(tmp_path, content, f"{split}2017")
    assert fit("data/coco.yaml", tmp_path).model.class_names == CLASSES


def test_cvat(tmp_path):
    content = test_cvat_layout.start("cat", "dog")
    for i in range(40):
        save_image(tmp_path / "images" / f"{i}.png", (20, 30))
        image = test_cvat_layout.add_image(content, f"{i}.png", (20, 30))
        shape = {"label": ("cat", "dog")[i % 2], "points": "3,2;15,2;15,10"}
        test_cvat_layout.etree.SubElement(image, "polygon", shape)
    test_cvat_layout.write(tmp_path, content)
    assert fit("data/cvat.yaml", tmp_path).model.class_names == ("background", "cat", "dog")


def test_cvat_masks(tmp_path):
    names = [f"{i}" for i in range(40)]
    write_images({"images": "JPEGImages", "masks": "SegmentationClass"}, names, tmp_path)
    colors = np.array([(0, 0, 0), (250, 50, 83), (51, 221, 255)], dtype=np.uint8)
    for name in names:
        path = tmp_path / "SegmentationClass" / f"{name}.png"
        Image.fromarray(colors[np.array(Image.open(path))]).save(path)
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "default.txt").write_text("\n".join(names))
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\ncat:250,50,83::\ndog:51,221,255::\n")
    assert fit("data/cvat_masks.yaml", tmp_path).model.class_names == ("background", "cat", "dog")


def test_label_studio(tmp_path):
    for i in range(40):
        save_image(tmp_path / "images" / f"{i}.png", (20, 30))
    region = test_label_studio_layout.region("polygonlabels", "cat", points=test_label_studio_layout.SQUARE)
    test_label_studio_layout.write(tmp_path, *(test_label_studio_layout.task(f"{i}.png", region) for i in range(40)))
    assert fit("data/label_studio.yaml", tmp_path).model.class_names == ("background", "cat")


def test_labelme(tmp_path):
    for split, count in SPLITS.items():
        for i in range(count):
            shape = test_labelme_layout.shape("polygon", test_labelme_layout.CORNERS, "cat")
            test_labelme_layout.write(tmp_path / split, f"{split}{i}.png", shape)
    assert fit("data/labelme.yaml", tmp_path).model.class_names == ("background", "cat")


def test_download_of_voc(tmp_path, monkeypatch):
    root = tmp_path / "VOCdevkit" / "VOC2012"

    def download(folder, **kwargs):
        assert folder == tmp_path
        write_images({"images": "JPEGImages", "masks": "SegmentationClass"}, ["t1", "t2", "v1"], root)
        (root / "ImageSets" / "Segmentation").mkdir(parents=True)
        (root / "ImageSets" / "Segmentation" / "train.txt").write_text("t1\nt2\n")
        (root / "ImageSets" / "Segmentation" / "val.txt").write_text("v1\n")

    monkeypatch.setattr("torchvision.datasets.VOCSegmentation", download)
    few = ["--data.budget_share=1", "--data.batch_size=2", "--data.labelled_per_batch=2", "--data.steps_per_epoch=2"]
    assert len(fit("data/voc_download.yaml", root, *few).model.class_names) == 21


def test_infrared(tmp_path):
    """16-bit TIFFs of four channels; the checkpoint knows how they are read, and another reading is refused."""
    names = [f"{split}{i}" for split, count in SPLITS.items() for i in range(count)]
    write_images({"images": "images", "masks": "masks"}, names, tmp_path)
    for name in names:
        (tmp_path / "images" / f"{name}.jpg").unlink()
        pixels = np.random.default_rng(0).integers(0, 65536, (20, 24, 4), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "images" / f"{name}.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    rows = [f"{name},{name.rstrip('0123456789')},{1 - len(name) % 2},{len(name) % 2}" for name in names]
    (tmp_path / "image_labels.csv").write_text("\n".join(["image,split,even,odd", *rows]))
    cli = fit("data/infrared.yaml", tmp_path)
    assert cli.model.model.in_channels == 4
    own = [*TINY_ENCODER, f"--data.dataset_kwargs.root={tmp_path}", "--data.size=32", "--ckpt_path=best"]
    files = ["data/infrared.yaml", "model/unet.yaml"]
    execute("predict", files, tmp_path / "run", *own)
    assert len(list((tmp_path / "run" / "predictions" / "masks").glob("*.png"))) == 2
    with pytest.raises(InputError, match=r"data.value_range: the checkpoint was trained with .*65535.*this run has"):
        execute("predict", files, tmp_path / "run", *own, "--data.value_range=[0, 4095]")
    with pytest.raises(InputError, match=r"expects images with data.mean and data.std as mean \[0.2, 0.2, 0.2, 0.3\]"):
        execute("test", files, tmp_path / "run", *own, "--data.mean=[0.5, 0.5, 0.5, 0.5]")
    with pytest.raises(InputError, match=r"data.channels: the checkpoint was trained with 4, this run has 1"):
        execute("test", files, tmp_path / "run", *own, "--data.channels=1", "--data.mean=[0.5]", "--data.std=[0.2]")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (tmp_path / "images" / "val0.tif").rename(pictures / "new.tif")
    assert (
        main(["predict", str(tmp_path / "run"), str(pictures), "--out", str(tmp_path / "out"), "--accelerator=cpu"])
        == 0
    )
    assert np.array(Image.open(tmp_path / "out" / "masks" / "new.png")).shape == (20, 24)
    assert np.array(Image.open(next((tmp_path / "out" / "overlays").iterdir()))).shape[2] == 3


def test_every_file_is_tested_above():
    kinds = {"data", "encoder", "logger", "main_job", "model", "trainer"}
    assert {file.split("/")[0] for file in FILES} <= kinds
    data = {"digits", "digits_tiny", "folder", "magnetic_tile", "magnetic_tile_types", "msrc_objects", "voc"}
    data |= {"coco", "cvat", "cvat_masks", "infrared", "label_studio", "labelme", "voc_download"}
    assert {file for file in FILES if file.startswith("data/")} == {f"data/{name}.yaml" for name in data}
