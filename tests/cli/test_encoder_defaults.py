"""What a command does where encoder, weights, mean and standard deviation are not said."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import Namespace
from PIL import Image
from safetensors.torch import save_file

from tw_seg.cli.encoder_defaults import BUNDLED_HEATMAP, choose_encoder, choose_normalization
from tw_seg.cli.lightning import run_command
from tw_seg.errors import InputError
from tw_seg.models.weights import format_normalization, read_normalization
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.types import IMAGENET, SYMMETRIC, Normalization

LITE = "timm/tf_efficientnet_lite0"
CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"


@pytest.mark.parametrize(
    ("dataset", "given", "chosen"),
    [
        ("folder", ("auto", "auto"), (LITE, "bundled")),
        ("voc", ("auto", "auto"), (LITE, "bundled")),
        ("digits", ("auto", "auto"), ("resnet18", None)),
        ("folder", ("auto", None), ("resnet18", None)),
        ("folder", ("resnet18", "auto"), ("resnet18", None)),
        ("folder", (LITE, "auto"), (LITE, "bundled")),
        ("folder", (LITE, None), (LITE, None)),
        ("digits", ("auto", "bundled"), (LITE, "bundled")),
        ("folder", ("resnet18", "IMAGENET1K_V1"), ("resnet18", "IMAGENET1K_V1")),
        ("no_such_data", ("auto", "auto"), ("resnet18", None)),
    ],
)
def test_images_in_files_start_from_the_bundled_weights(dataset, given, chosen, caplog):
    caplog.set_level(logging.INFO)
    model = Namespace(encoder_name=given[0], encoder_weights=given[1])
    choose_encoder(model, dataset)
    assert (model.encoder_name, model.encoder_weights) == chosen
    assert ("--model.encoder_weights null" in caplog.text) is (given[1] == "auto" and chosen[1] == "bundled")


def test_a_heatmap_segmenter_on_the_bundled_encoder_is_read_where_it_trains():
    config = yaml.safe_load((CONFIGS / "model" / "heatmap_efficientnet_lite0.yaml").read_text())
    assert config["model"]["model_kwargs"] == BUNDLED_HEATMAP
    for name, kwargs, expected in (
        ("heatmap", None, BUNDLED_HEATMAP),
        ("heatmap", {"compress": 1.0}, {"compress": 1.0}),
        ("multitask_unet", None, None),
    ):
        model = Namespace(model=name, model_kwargs=kwargs, encoder_name="auto", encoder_weights="auto")
        choose_encoder(model, "folder")
        assert model.model_kwargs == expected
    model = Namespace(model="heatmap", model_kwargs=None, encoder_name="auto", encoder_weights=None)
    choose_encoder(model, "folder")
    assert model.encoder_name == "resnet18" and model.model_kwargs is None


def choose(mean=None, std=None, *, weights=None, warm_start=None, ckpt=None) -> Normalization:
    data = Namespace(channels=3, value_range=None, mean=mean, std=std)
    choose_normalization(data, encoder_weights=weights, warm_start=warm_start, ckpt=ckpt)
    return Normalization(tuple(data.mean), tuple(data.std))


def test_the_mean_is_that_of_the_weights():
    assert choose() == choose(weights="IMAGENET1K_V1") == IMAGENET
    assert choose(weights="bundled") == SYMMETRIC
    assert choose([0.5] * 3, weights="bundled") == SYMMETRIC
    assert choose((0.1, 0.2, 0.3)) == Normalization((0.1, 0.2, 0.3), IMAGENET.std)
    with pytest.raises(InputError, match=r"encoder_weights='bundled' expects .*\[0.5, 0.5, 0.5\].* leave both out"):
        choose(IMAGENET.mean, weights="bundled")


def test_the_mean_travels_with_a_classifier(tmp_path):
    tensors, odd = {"w": torch.ones(1)}, Normalization((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    path, plain = tmp_path / "one.safetensors", tmp_path / "plain.safetensors"
    save_file(tensors, path, format_normalization(odd))
    save_file(tensors, plain)
    assert read_normalization(path) == odd
    assert read_normalization(plain) is read_normalization(tmp_path / "none.safetensors") is None
    assert choose(warm_start=str(path)) == odd
    assert choose(warm_start=str(plain)) == IMAGENET
    assert choose(weights="bundled", warm_start=str(plain)) == SYMMETRIC
    with pytest.raises(InputError, match=r"one.safetensors expects images with data.mean"):
        choose(IMAGENET.mean, warm_start=str(path))


def test_the_mean_travels_with_a_checkpoint(tmp_path):
    path, old = tmp_path / "best.ckpt", tmp_path / "old.ckpt"
    torch.save(
        {"datamodule_hyper_parameters": dict(SegmentationDataModule(budget=1, mean=(0.1, 0.2, 0.3)).hparams)}, path
    )
    torch.save({}, old)
    assert choose(ckpt=str(path), weights="bundled") == Normalization((0.1, 0.2, 0.3), IMAGENET.std)
    assert choose(ckpt=str(old), weights="bundled") == IMAGENET
    with pytest.raises(InputError, match="best.ckpt expects images"):
        choose(IMAGENET.mean, ckpt=str(path))


def test_a_run_on_a_folder(tmp_path, monkeypatch, caplog):
    """Pre-training, the heatmap segmenter on it, and predict: none is told an encoder's weights, a mean or a std."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for folder in ("images", "masks"):
        Path("data", folder).mkdir(parents=True)
    table = ["image,split,cat"]
    for index in range(6):
        Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(f"data/images/{index}.png")
        Image.fromarray((np.indices((32, 32))[0] < 16 * (index % 2)).astype(np.uint8)).save(f"data/masks/{index}.png")
        table.append(f"{index},{'train' if index < 4 else 'val'},{index % 2}")
    Path("data/image_labels.csv").write_text("\n".join(table))
    limits = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.num_sanity_val_steps=0"]
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=False", "--trainer.enable_model_summary=False"]
    common = ["--data.dataset=folder", "--data.dataset_kwargs.root=data", "--data.size=32", "--data.batch_size=2"]
    fit = [*common, *limits, *quiet, "--examples.every_n_epochs=0"]
    caplog.set_level(logging.INFO)
    pretrain = ["--model.model=classifier", "--data.labelled_per_batch=0", "--best.monitor=val/cls/map"]
    run_command(["fit", *fit, *pretrain, "--run_dir=runs/classifier"])
    assert f"{LITE} starts from weights trained on ImageNet" in caplog.text
    config = yaml.safe_load(Path("runs/classifier/config.yaml").read_text())
    assert (config["model"]["encoder_name"], config["model"]["encoder_weights"]) == (LITE, "bundled")
    assert config["data"]["mean"] == [0.5, 0.5, 0.5]
    weights = "runs/classifier/classifier.safetensors"
    assert read_normalization(weights) == SYMMETRIC

    # A checkpoint replaces them, so they are neither read nor spoken of.
    assert "of 1000 classes, not 2, so the layer 'classifier' begins anew" in caplog.text
    caplog.clear()
    with pytest.MonkeyPatch.context() as gone:
        gone.setattr("tw_seg.models.backbones.read_bundled_weights", None)
        again = ["--config=runs/classifier/config.yaml", "--run_dir=runs/classifier", "--ckpt_path=best"]
        assert run_command(["validate", *again]).model.model.encoder_weights is None
    assert "begins anew" not in caplog.text

    own = ["--data.budget=2", "--data.labelled_per_batch=1", "--model.model_kwargs.decoder_kwargs.read_out=blocks.4"]
    heatmap = [*fit, *own, f"--model.encoder_name={LITE}", f"--model.warm_start={weights}", "--run_dir=runs/heatmap"]
    second = run_command(["fit", *heatmap, "--model.encoder_weights=null"])
    assert second.datamodule.normalization == second.model.normalization == SYMMETRIC
    predict = ["predict", *common, *quiet, "--data.budget=2", "--run_dir=runs/heatmap", "--ckpt_path=best"]
    assert run_command(predict).datamodule.normalization == SYMMETRIC
    with pytest.raises(InputError, match=r"classifier.safetensors expects images"):
        run_command(["fit", *heatmap, "--run_dir=runs/other", "--data.mean=[0.485, 0.456, 0.406]"])
