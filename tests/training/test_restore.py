"""Checkpoints from elsewhere: code that they name is imported only if it is trusted, and their errors name the file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from tests.training.tiny import ENCODER, NAMES
from tw_seg.cli import main
from tw_seg.errors import InputError
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.restore import load_run
from tw_seg.training.task import SegmentationTask

MODULE = "foreign_code"
SOURCE = """
from pathlib import Path
from torch import nn
Path("ran").touch()
RULES = {}
def factory(in_channels, num_classes):
    layers = nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    return nn.Sequential(*layers)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory, with a module that leaves a file when it is imported, and a picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    Image.new("RGB", (20, 20)).save("a.png")
    yield tmp_path
    sys.modules.pop(MODULE, None)


def write_checkpoint(change: Any = None, **kwargs: Any) -> Path:
    """A checkpoint as Lightning writes it, with other hyper-parameters than those that it was made with."""
    task = SegmentationTask(**{"model": "classifier", "class_names": NAMES, **ENCODER, **kwargs})
    arguments = {**dict(task.hparams), **(change or {})}
    path = Path("runs/one/checkpoints/best.ckpt")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "state_dict": task.state_dict(),
        "hyper_parameters": arguments,
        "datamodule_hyper_parameters": dict(SegmentationDataModule(labelled_per_batch=0).hparams),
        "pytorch-lightning_version": "2.6.6",
    }
    torch.save(content, path)
    Path("ran").unlink(missing_ok=True)
    sys.modules.pop(MODULE, None)
    return path


def test_what_names_no_code_is_loaded():
    task, data = load_run(write_checkpoint())
    assert task.class_names == tuple(NAMES) and data.hparams["dataset"] == "digits" and not task.training


@pytest.mark.parametrize(
    "change",
    [
        {"encoder_name": f"{MODULE}:factory"},
        {"model_kwargs": {"encoder_name": f"{MODULE}:factory"}},
        {"model": "heatmap", "model_kwargs": {"decoder_kwargs": {"custom_rules": f"{MODULE}:RULES"}}},
        {"encoder_kwargs": {"anything": [{"deep": f"{MODULE}:RULES"}]}},
    ],
)
def test_code_that_a_checkpoint_names(change):
    path = write_checkpoint(change)
    with pytest.raises(InputError, match=rf"best.ckpt names code to import, '{MODULE}:\w+'.* --trust_code"):
        load_run(path)
    assert not Path("ran").exists()


def test_it_is_imported_when_it_is_trusted():
    path = write_checkpoint(encoder_name=f"{MODULE}:factory", encoder_kwargs=None)
    task, _ = load_run(path, trust_code=True)
    assert Path("ran").exists() and task.hparams["encoder_name"] == f"{MODULE}:factory"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_path": f"{MODULE}.factory"}, "names a class to make"),
        ({"_instantiator": f"{MODULE}.factory"}, "names a class to make"),
        ({"encoder_name": 3}, "no model can be made of it"),
        ({"class_names": ["background"]}, "no model can be made of it"),
        ({"encoder_kwargs": {"checkpoint_path": "a.png"}}, "no model can be made of it .*checkpoint_path"),
        ({"model": "os.system"}, "no model can be made of it .*Unknown model"),
    ],
)
def test_hyper_parameters_that_make_no_model(change, message):
    path = write_checkpoint(change)
    with pytest.raises(InputError, match=rf"best.ckpt: .*{message}") as error:
        load_run(path)
    assert "\n" not in str(error.value) and not Path("ran").exists()


@pytest.mark.parametrize("content", [[], {"hyper_parameters": []}, {"state_dict": {}}, torch.eye(2)])
def test_files_that_are_no_checkpoint(content):
    torch.save(content, "a.ckpt")
    with pytest.raises(InputError, match=r"a\.ckpt: expected"):
        load_run(Path("a.ckpt"))


def test_weights_that_a_checkpoint_names_are_not_read(monkeypatch):
    monkeypatch.setattr("tw_seg.models.weights.read_torch_file", lambda path: pytest.fail(f"read {path}"))
    for change in ({"encoder_weights": "a/b.pth"}, {"model_kwargs": {"encoder_weights": "a/b.pth"}}):
        load_run(write_checkpoint(change))


@pytest.mark.parametrize(
    "command",
    [
        "predict runs/one a.png --out out",
        "next runs/one --pictures a.png --out out",
        "export runs/one a.png --out out --formats hub",
        "explain runs/one a.png --out out",
        "reliability fit runs/one",
        "reliability score runs/one a.png --out out",
        "test --ckpt_path runs/one/checkpoints/best.ckpt",
        "validate --ckpt_path runs/one/checkpoints/best.ckpt",
    ],
)
def test_no_command_imports_it(command, capsys):
    write_checkpoint({"encoder_name": f"{MODULE}:factory"})
    assert main(command.split()) == 2
    assert f"names code to import, '{MODULE}:factory'" in capsys.readouterr().err
    assert not Path("ran").exists() and not Path("out").exists()


CALLBACK = {"class_path": f"{MODULE}.Callback"}


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"encoder_name": f"{MODULE}:factory"}},
        {"trainer": {"callbacks": [CALLBACK]}},
        {"trainer": {"callbacks": f"{MODULE}.Callback"}},
        {"trainer": "other.yaml"},
        {"trainer": {"callbacks": ["other.yaml"]}},
        {"trust_code": True, "trainer": {"logger": CALLBACK}},
    ],
)
def test_the_configuration_of_a_run_imports_nothing_either(config, capsys):
    write_checkpoint()
    for place in (Path("other.yaml"), Path("runs/one/other.yaml")):
        place.write_text(yaml.safe_dump({"callbacks": [CALLBACK]}))
    Path("runs/one/config.yaml").write_text(yaml.safe_dump(config))
    assert main(["test", "runs/one"]) == 2
    assert "config.yaml names code to import" in capsys.readouterr().err
    assert not Path("ran").exists()


@pytest.mark.parametrize("config", ["a: [", "!!python/object/apply:os.system ['touch ran']", "[]", "- " * 300])
def test_a_configuration_that_is_none(config, capsys):
    write_checkpoint()
    Path("runs/one/config.yaml").write_text(config)
    assert main(["test", "runs/one"]) == 2
    assert "runs/one/config.yaml: " in capsys.readouterr().err
    assert not Path("ran").exists()


def test_python_in_a_configuration_of_the_user(capsys):
    Path("own.yaml").write_text("model: !!python/object/apply:os.system ['touch ran']")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config=own.yaml"])
    assert stop.value.code == 2 and not Path("ran").exists()
