from __future__ import annotations

import logging
import urllib.error

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from tw_seg.errors import InputError
from tw_seg.models.backbones import create_classifier
from tw_seg.models.weights import find_head

SMALL = {"channels": [8, 8, 16, 16]}


class OwnNet(nn.Module):
    def __init__(self, in_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.head(self.stem(images).relu().mean((2, 3)))


def not_a_net(in_channels: int, num_classes: int) -> str:
    return "net"


@pytest.fixture
def squeezenet_hub(tmp_path, monkeypatch):
    """A hub cache that holds "pretrained" weights under the real file name, so the real code loads them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    model = torchvision.models.squeezenet1_1()
    name = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save(model.state_dict(), folder / name)
    return model.state_dict()


@pytest.mark.parametrize(
    ("name", "kwargs", "head"),
    [
        ("resnet18", None, "fc"),
        ("squeezenet1_1", None, "classifier.1"),
        ("mobilenet_v2", {"width_mult": 0.25}, "classifier.1"),
        ("timm/resnet10t", SMALL, "fc"),
        ("timm/resnet10t", {**SMALL, "output_stride": 8}, "fc"),
        (f"{__name__}:OwnNet", {"width": 6}, "head"),
    ],
)
@pytest.mark.parametrize("in_channels", [3, 5])
def test_every_source_of_names(name, kwargs, head, in_channels):
    model = create_classifier(name, in_channels=in_channels, classes=7, encoder_kwargs=kwargs)
    assert model(torch.randn(2, in_channels, 64, 64)).shape == (2, 7)
    assert find_head(model, 7) == head
    assert model.training


def test_output_stride_keeps_the_feature_map_large():
    model = create_classifier("timm/resnet10t", classes=7, encoder_kwargs={**SMALL, "output_stride": 8})
    assert model.forward_features(torch.randn(2, 3, 64, 64)).shape == (2, 16, 8, 8)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
@pytest.mark.parametrize(("name", "kwargs"), [("timm/resnet10t", SMALL), (f"{__name__}:OwnNet", {"width": 6})])
def test_weights_from_a_file(tmp_path, name, kwargs, suffix):
    saved = create_classifier(name, classes=7, encoder_kwargs=kwargs).eval()
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(saved.state_dict(), path)
    loaded = create_classifier(name, str(path), classes=7, encoder_kwargs=kwargs).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(images), saved(images))


def test_a_head_of_another_class_count_is_left_alone(tmp_path, caplog):
    saved = create_classifier("timm/resnet10t", classes=1000, encoder_kwargs=SMALL)
    save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    with caplog.at_level(logging.INFO, logger="tw_seg"):
        loaded = create_classifier(
            "timm/resnet10t", str(tmp_path / "weights.safetensors"), classes=7, encoder_kwargs=SMALL
        )
    assert "of 1000 classes, not 7, so the layer 'fc' begins anew" in caplog.text
    assert loaded.fc.weight.shape == (7, 16)
    state = loaded.state_dict()
    assert all(torch.equal(state[k], v) for k, v in saved.state_dict().items() if not k.startswith("fc."))


def test_an_rgb_stem_is_adapted_to_other_channels(tmp_path):
    saved = create_classifier("resnet18", classes=7)
    torch.save(saved.state_dict(), tmp_path / "weights.pth")
    grey = create_classifier("resnet18", str(tmp_path / "weights.pth"), in_channels=1, classes=7)
    torch.testing.assert_close(grey.conv1.weight, saved.conv1.weight.sum(1, keepdim=True))
    six = create_classifier("resnet18", str(tmp_path / "weights.pth"), in_channels=6, classes=7)
    torch.testing.assert_close(six.conv1.weight, saved.conv1.weight.repeat(1, 2, 1, 1) / 2)


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "DEFAULT"])
def test_torchvision_weights_by_name(squeezenet_hub, weights):
    thousand = create_classifier("squeezenet1_1", weights, classes=1000)
    assert all(torch.equal(v, squeezenet_hub[k]) for k, v in thousand.state_dict().items())
    seven = create_classifier("squeezenet1_1", weights, classes=7, in_channels=1)
    state = seven.state_dict()
    stem, head = "features.0.weight", "classifier.1"
    torch.testing.assert_close(state[stem], squeezenet_hub[stem].sum(1, keepdim=True))
    assert state[f"{head}.weight"].shape[0] == 7
    rest = [k for k in state if k != stem and not k.startswith(head)]
    assert all(torch.equal(state[k], squeezenet_hub[k]) for k in rest)


def test_torchvision_weights_that_cannot_be_fetched(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(InputError, match=r"could not be fetched .*no network.*give a local file"):
        create_classifier("squeezenet1_1", "DEFAULT", classes=7)


@pytest.mark.parametrize(("name", "weights"), [("resnet10t", "c3_in1k"), ("resnet10t.c3_in1k", "DEFAULT")])
def test_timm_weights_by_name(tmp_path, name, weights):
    saved = timm.create_model("resnet10t", **SMALL)
    torch.save(saved.state_dict(), tmp_path / "weights.pth")
    # timm's own loading code, with a file in place of its server.
    kwargs = {**SMALL, "pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth")}}
    model = create_classifier(f"timm/{name}", weights, classes=7, in_channels=1, encoder_kwargs=kwargs)
    state = model.state_dict()
    torch.testing.assert_close(state["conv1.0.weight"], saved.state_dict()["conv1.0.weight"].sum(1, keepdim=True))
    assert torch.equal(state["layer4.0.conv1.weight"], saved.state_dict()["layer4.0.conv1.weight"])
    assert state["fc.weight"].shape == (7, 16)


@pytest.mark.parametrize(
    ("name", "weights", "kwargs", "message"),
    [
        ("resnet81", None, None, "Close names: .*resnet18"),
        ("resnet10t", None, None, "did you mean 'timm/resnet10t'"),
        ("fcn_resnet50", None, None, "is no torchvision classifier"),
        ("timm/resnet10tt", None, None, "Close names: resnet10t"),
        ("timm/resnet10t.a1_in1k", None, None, r"has the tags \['c3_in1k'\]"),
        ("resnet18", "IMAGENET", None, r"unknown for resnet18. Use one of \['DEFAULT', 'IMAGENET1K_V1'\]"),
        ("timm/resnet10t", "imagenet", None, r"'DEFAULT', one of \['c3_in1k'\]"),
        ("resnet18", None, {"colour": 1}, "torchvision cannot build resnet18.*colour"),
        ("timm/resnet10t", None, {"colour": 1}, "timm cannot build resnet10t.*colour"),
        ("timm/resnet10t", None, {"num_classes": 1}, r"must not hold \['num_classes'\]"),
        ("no.such:net", None, None, "No module named 'no'"),
        (f"{__name__}:nothing", None, None, "nothing"),
        (f"{__name__}:not_a_net", None, None, "must return an nn.Module, got str"),
        (f"{__name__}:OwnNet", "DEFAULT", {"width": 2}, "not a weights name"),
    ],
)
def test_errors_say_what_to_do(name, weights, kwargs, message):
    with pytest.raises(InputError, match=message):
        create_classifier(name, weights, classes=7, encoder_kwargs=kwargs)


@pytest.mark.parametrize("counts", [{"classes": 0}, {"classes": 2, "in_channels": 0}])
def test_counts_must_be_positive(counts):
    with pytest.raises(InputError, match="at least 1"):
        create_classifier("resnet18", **counts)
