"""Shared models: what is loaded computes what was saved, without weights from elsewhere and without pickle."""

from __future__ import annotations

import copy
import json
import pickle
import socket
from pathlib import Path

import pytest
import torch
import torchvision
from huggingface_hub import HfApi, ModelCard
from torch import nn

import tw_seg
from tests.training.tiny import ENCODER
from tw_seg.errors import InputError
from tw_seg.lrp import Schedule
from tw_seg.models import hub
from tw_seg.models.base import SegModel
from tw_seg.models.bundled import BUNDLED_ENCODER
from tw_seg.models.classifier import ImageClassifier
from tw_seg.models.factory import MODELS, create_model
from tw_seg.models.segmenter import HeatmapSegmenter

INFO: hub.ModelInfo = {
    "class_names": ["background", "cat", "dog"],
    "mean": [0.5, 0.25, 0.125],
    "std": [1.0, 2.0, 3.0],
    "size": [48, 64],
    "gate": 0.1,
    "metrics": {"test/miou": 0.5},
    "data": "drawings of cats",
    "license": "mit",
}
OWN = {
    "heatmap": {
        "decoder_kwargs": {"composite": "epsilon_plus", "read_out": ["layer1", 0.5], "tie_weights": False},
        "compress": 2.0,
        "refine": 4,
    },
    "lrp_mask": {"decoder_kwargs": {"read_out": "layer3"}, "gate": 0.0, "threshold_rule": "calibrated"},
    "unet": {"decoder_channels": (8, 8, 8, 4, 4)},
    "deeplabv3plus": {"decoder_channels": 8, "class_prior": 0.5},
}


def factory(in_channels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("no network and no pickle")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)


def assert_same_outputs(one: SegModel, other: SegModel) -> None:
    images = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for a, b in zip(one.eval()(images)[:2], other(images)[:2], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_the_same(name, tmp_path, offline):
    torch.manual_seed(0)
    model = create_model(name, **ENCODER, classes=3, **OWN.get(name, {}))
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():  # BatchNorm's statistics, scales and thresholds too
                value.copy_(0.3 + 0.4 * torch.rand(value.shape)) if value.ndim < 2 else value.mul_(1.5)
    model.info = INFO
    assert model.save_pretrained(tmp_path / "shared") is None
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    loaded = tw_seg.load_model(tmp_path / "shared")
    assert type(loaded) is MODELS[name] and not loaded.training and loaded.info == INFO
    assert_same_outputs(model, loaded)
    again = type(model).from_pretrained(str(tmp_path / "shared"))
    again.save_pretrained(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "shared" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_encoder_weights_are_not_needed_again(tmp_path, monkeypatch):
    model = HeatmapSegmenter(BUNDLED_ENCODER, "bundled", classes=3, decoder_kwargs={"read_out": "blocks.3"})
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["arguments"]["encoder_weights"] is None
    monkeypatch.setattr("tw_seg.models.bundled.distribution", lambda name: pytest.fail("read again"))
    assert_same_outputs(model, tw_seg.load_model(tmp_path))


def test_what_a_constructor_chose_by_the_weights_is_said(tmp_path):
    """GoogLeNet scales images anew with published weights; of a file that must be said."""
    state = torchvision.models.googlenet(init_weights=False, aux_logits=False).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    kwargs = {"transform_input": True, "aux_logits": False, "init_weights": False}
    model = ImageClassifier("googlenet", str(tmp_path / "weights.pth"), classes=3, encoder_kwargs=kwargs)
    model._arguments["encoder_kwargs"] = {"init_weights": False}  # as if the weights had chosen the other two
    model.save_pretrained(tmp_path / "shared")
    arguments = json.loads((tmp_path / "shared" / "config.json").read_text())["arguments"]
    assert arguments["encoder_kwargs"] == kwargs
    assert_same_outputs(model, tw_seg.load_model(tmp_path / "shared"))


def test_the_card_says_what_it_is(tmp_path):
    model = create_model("unet", **ENCODER, classes=3)
    model.info = INFO
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit" and card.data.library_name == "tw-seg"
    for text in (
        "UNet on timm/resnet10t",
        "background, cat, dog",
        "48 x 64",
        "drawings of cats",
        "| test/miou | 0.5 |",
    ):
        assert text in card.text
    bare = create_model("unet", **ENCODER, classes=3).generate_model_card().text
    assert "**Licence**: not stated" in bare and "Gate" not in bare


def test_objects_among_the_arguments(tmp_path):
    schedule = HeatmapSegmenter(**ENCODER, classes=3, decoder_kwargs={"schedule": Schedule(chunk_size=1)})
    schedule.save_pretrained(tmp_path)
    assert_same_outputs(schedule, tw_seg.load_model(tmp_path))
    model = create_model("unet", **ENCODER, classes=3)
    model._arguments["encoder_kwargs"] = {"act": nn.ReLU()}
    with pytest.raises(InputError, match="must be names and numbers"):
        model.save_pretrained(tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_code_that_a_model_names_is_imported_when_trusted(tmp_path):
    model = ImageClassifier(f"{__name__}:factory", classes=3)
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"names code to import, .*:factory.* trust_code=True"):
        tw_seg.load_model(tmp_path)
    assert_same_outputs(model, tw_seg.load_model(tmp_path, trust_code=True))


def test_bad_folders_and_arguments(tmp_path):
    model = create_model("unet", **ENCODER, classes=3)
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds a UNet, not a HeatmapSegmenter: use tw_seg.load_model"):
        HeatmapSegmenter.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="takes no classes"):
        type(model).from_pretrained(tmp_path, classes=5)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong, message in [("{", "cannot be read"), ("[]", "is not one of tw_seg"), ('{"class": "X"}', "is not one")]:
        (tmp_path / "config.json").write_text(wrong)
        with pytest.raises(InputError, match=message):
            tw_seg.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "class": "Newer"}))
    with pytest.raises(InputError, match="holds a Newer, which is none of HeatmapSegmenter"):
        tw_seg.load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model.safetensors"):
        tw_seg.load_model(tmp_path)
    with pytest.raises(InputError, match="no local folder, and config.json could not be fetched"):
        tw_seg.load_model("nobody/nothing", local_files_only=True, cache_dir=tmp_path)
    for info, message in [({"class_names": ["one"]}, "its 3 classes"), ({"author": "me"}, "not author")]:
        model.info = info
        with pytest.raises(InputError, match=message):
            model.save_pretrained(tmp_path / "info")


def test_pushing_uploads_the_files(monkeypatch):
    uploaded: dict[str, object] = {}

    def upload(self: HfApi, *, repo_id: str, folder_path: str | Path, **kwargs: object) -> str:
        uploaded[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())
        return "url"

    class Made:
        repo_id = "me/cats"

    monkeypatch.setattr(HfApi, "create_repo", lambda self, **kwargs: Made())
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    create_model("unet", **ENCODER, classes=3).push_to_hub("me/cats")
    assert uploaded == {"me/cats": ["README.md", "config.json", "model.safetensors"]}


def test_a_copy_and_a_pickle_know_their_arguments(tmp_path):
    model = create_model("unet", **ENCODER, classes=3)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert hub.describe_model(other) == hub.describe_model(model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[" * 100_000, "cannot be read .*nested too deeply"),
        ({"arguments": {"classes": 3}}, "config.json makes no UNet"),
        ({"arguments": {"classes": 3, "encoder_name": "resnet18", "more": 1}}, "config.json makes no UNet"),
        ({"arguments": {"classes": [], "encoder_name": "resnet18"}}, "config.json makes no UNet"),
        ({"arguments": {"classes": 3, "encoder_name": "os:system"}}, "config.json names code to import, 'os:system'"),
        ({"arguments": {"classes": 3, "encoder_name": "timm/hf-hub:me/x"}}, "names code to import"),
        (
            {"arguments": {"classes": 3, "encoder_name": "resnet18", "encoder_kwargs": {"checkpoint_path": "x"}}},
            "makes no",
        ),
    ],
)
def test_a_hostile_folder(config, message, tmp_path):
    create_model("unet", **ENCODER, classes=3).save_pretrained(tmp_path)
    text = config if isinstance(config, str) else json.dumps({"class": "UNet", "info": {}, **config})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        tw_seg.load_model(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_names_no_weights_to_read(tmp_path, offline):
    model = create_model("unet", **ENCODER, classes=3)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["arguments"]["encoder_weights"] = "DEFAULT"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same_outputs(model, tw_seg.load_model(tmp_path))
