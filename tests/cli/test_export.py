"""``tw-seg export``: from a run to files, and what it prints and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnxruntime
import torch
import yaml

import tw_seg
from tests.training.tiny import ENCODER
from tw_seg.cli import main
from tw_seg.cli.lightning import run_command

CONFIG = {
    "model": {**ENCODER, "model": "heatmap", "model_kwargs": {"decoder_kwargs": {"read_out": "layer3"}}},
    "data": {
        "dataset_kwargs": {"size": 32},
        "split_kwargs": {split: {"length": 4} for split in ("val", "test")} | {"train": {"length": 8}},
        "size": 32,
        "budget": 4,
        "batch_size": 4,
        "labelled_per_batch": 2,
    },
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 1,
        "limit_train_batches": 1,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    },
}


def fit(**model: object) -> None:
    Path("config.yaml").write_text(yaml.safe_dump({**CONFIG, "model": {**CONFIG["model"], **model}}))
    run_command(
        ["fit", "--config=config.yaml", "--run_dir=run", "--examples.every_n_epochs=0", "--test_after_fit=True"]
    )


def test_a_run_becomes_files(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fit()
    Path("run/gate.json").write_text('{"gate": 0.25}')
    capsys.readouterr()
    arguments = ["--formats", "onnx", "pt2", "hub", "--license", "mit", "--description", "digits"]
    assert main(["export", "run", "--out", "files", *arguments]) == 0
    printed = capsys.readouterr().out.splitlines()
    for line, name in zip(printed[1:], ("pt2", "onnx"), strict=False):
        equal = re.match(rf"{name}: ([\d.]+) % of the pixels of 4 pictures are equal, largest difference", line)
        assert equal and float(equal[1]) > 99
    assert printed[-1] == "written: files/model.onnx, files/model.pt2, files/hub"
    assert sorted(path.name for path in Path("files").iterdir()) == ["hub", "model.onnx", "model.pt2"]

    shared = tw_seg.load_model("files/hub")
    session = onnxruntime.InferenceSession("files/model.onnx", providers=["CPUExecutionProvider"])
    facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    metrics = shared.info.pop("metrics")
    assert facts == shared.info and facts["gate"] == 0.25 and facts["size"] == [32, 32] and facts["license"] == "mit"
    assert facts["class_names"][0] == "background" and "test/miou" in metrics
    # Weights of the shared model are those of the best checkpoint.
    state = torch.load("run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[f"model.{name}"]) for name, value in shared.state_dict().items())


def test_what_cannot_be_exported_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fit(model="unet", model_kwargs=None)
    capsys.readouterr()
    for arguments, message in [
        (["nowhere"], "there is no file or folder nowhere"),
        (["run", "nowhere.jpg"], "nowhere.jpg"),
        (["run", "--gate", "2"], "gate must be a probability"),
    ]:
        assert main(["export", *arguments, "--out", "files"]) == 2
        assert message in capsys.readouterr().err
    assert not Path("files").exists()
