from __future__ import annotations

import pytest
import torch
from torch import nn

from tw_seg.errors import InputError
from tw_seg.models.backbones import create_classifier
from tw_seg.models.weights import find_head, find_weights_file, load_strict, load_weights, read_weights


class SmallNet(nn.Module):
    def __init__(self, in_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3)
        self.head = nn.Linear(width, num_classes)


def test_what_a_weights_name_means(tmp_path):
    assert find_weights_file(None) is None
    assert find_weights_file("IMAGENET1K_V1") is None
    assert find_weights_file("c3_in1k") is None
    assert find_weights_file("weights.pth") is not None
    assert find_weights_file(f"{tmp_path}/w.safetensors") == tmp_path / "w.safetensors"
    with pytest.raises(InputError, match=r"must end with \.safetensors"):
        find_weights_file("runs/classifier.ckpt")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(InputError, match="none.pth does not exist"):
        read_weights(tmp_path / "none.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            read_weights(tmp_path / name)
    torch.save({"state_dict": {"w": torch.zeros(1)}, "epoch": 3}, tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match=r"flat dict of tensors.*\['state_dict', 'epoch'\]"):
        read_weights(tmp_path / "checkpoint.pth")
    torch.save(SmallNet(3, 2, 2), tmp_path / "module.pth")  # a pickled module would run code
    with pytest.raises(InputError, match="module.pth cannot be read"):
        read_weights(tmp_path / "module.pth")


def test_partial_weights_name_what_is_missing_and_load_nothing():
    model = SmallNet(3, 2, width=4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {**SmallNet(3, 2, width=5).state_dict(), "extra": torch.zeros(1)}
    del state["head.bias"]
    with pytest.raises(InputError) as raised:
        load_strict(model, state, source="weights.pth")
    message = str(raised.value)
    assert "weights.pth does not fit SmallNet: of 4 keys" in message
    assert "1 missing: head.bias" in message
    assert "1 unexpected: extra" in message
    assert "stem.weight (5, 3, 3, 3) instead of (4, 3, 3, 3)" in message
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_loading_does_not_change_the_state_it_is_given():
    state = SmallNet(3, 9, width=4).state_dict()
    load_weights(SmallNet(1, 2, width=4), state, classes=2, source="state")
    assert state["head.weight"].shape == (9, 4) and state["stem.weight"].shape == (4, 3, 3, 3)


def test_a_model_without_a_head_is_an_error():
    with pytest.raises(InputError, match="no nn.Linear or nn.Conv2d with 3 outputs"):
        find_head(nn.Sequential(nn.Linear(2, 4)), 3)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2"])
def test_real_weights_load_with_and_without_their_head(shared_data, name):
    path = shared_data / "weights" / f"{name}_imagenet.pth"
    thousand = create_classifier(name, str(path), classes=1000).eval()
    seven = create_classifier(name, str(path), classes=7).eval()
    head = find_head(seven, 7)
    state = seven.state_dict()
    own = [k for k in state if not k.startswith(head)]
    assert all(torch.equal(thousand.state_dict()[k], state[k]) for k in own)


def test_real_partial_weights_are_refused(shared_data):
    path = shared_data / "weights" / "resnet18_imagenet_to_layer3.pth"
    with pytest.raises(InputError, match=r"resnet18_imagenet_to_layer3.pth does not fit ResNet.*missing: layer4"):
        create_classifier("resnet18", str(path), classes=1000)
