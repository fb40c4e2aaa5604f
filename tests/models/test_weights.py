from __future__ import annotations

import argparse
import json
import logging
import struct

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from tw_seg.errors import InputError
from tw_seg.models.backbones import create_classifier
from tw_seg.models.weights import (
    find_head,
    find_weights_file,
    load_strict,
    load_weights,
    read_normalization,
    read_weights,
    remove_prefix,
)


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
        find_weights_file("runs/classifier.npz")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(InputError, match="none.pth does not exist"):
        read_weights(tmp_path / "none.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            read_weights(tmp_path / name)
    torch.save({"steps": [1, 2], "epoch": 3}, tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match=r"checkpoint.pth must hold a flat dict of tensors.*\['steps', 'epoch'\]"):
        read_weights(tmp_path / "checkpoint.pth")
    torch.save(SmallNet(3, 2, 2), tmp_path / "module.pth")  # a pickled module would run code
    with pytest.raises(InputError, match="module.pth: cannot be read"):
        read_weights(tmp_path / "module.pth")


def test_a_checkpoint_is_read_for_its_only_state_dict(tmp_path, caplog):
    path, weights = tmp_path / "last.ckpt", {"w": torch.ones(1)}
    rest = {"epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}, "args": argparse.Namespace(lr=0.1)}
    for entry in ("state_dict", "model", "model_state_dict", "net"):
        torch.save({entry: weights, **rest}, path)
        with caplog.at_level(logging.INFO, logger="tw_seg"):
            assert read_weights(path) == weights
        assert f"its entry {entry!r} is loaded" in caplog.text


def test_of_several_state_dicts_timm_takes_the_averages(tmp_path):
    path, weights, averages = tmp_path / "model_best.pth.tar", {"w": torch.ones(1)}, {"w": torch.zeros(1)}
    torch.save({"state_dict": weights, "state_dict_ema": averages}, path)
    assert read_weights(path, averages_first=True) == averages == timm.models.load_state_dict(path)
    with pytest.raises(InputError, match=r"holds several state dicts: 'state_dict', 'state_dict_ema'. Save one"):
        read_weights(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.0."])
def test_a_prefix_of_all_keys_is_removed(prefix, caplog):
    source, model = SmallNet(3, 2, width=4), SmallNet(3, 2, width=4)
    with caplog.at_level(logging.INFO, logger="tw_seg"):
        load_strict(model, {prefix + k: v for k, v in source.state_dict().items()}, source="w.pth")
    assert f"w.pth: all keys begin with the prefix {prefix!r}" in caplog.text
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())


def test_what_a_checkpoint_holds_beside_the_prefix_is_told(caplog):
    source, model = SmallNet(3, 5, width=4), SmallNet(3, 2, width=4)
    state = {f"model.{k}": v for k, v in source.state_dict().items()} | {"loss.weight": torch.ones(2)}
    load_weights(model, state, classes=2, source="w.ckpt")
    assert torch.equal(model.stem.weight, source.stem.weight)
    assert (
        "w.ckpt: the keys with the prefix 'model.' are loaded without it, 1 others are not: loss.weight" in caplog.text
    )


def test_two_prefixes_are_an_error_that_names_them():
    state = SmallNet(3, 2, width=4).state_dict()
    both = {f"{prefix}{k}": v for prefix in ("model.", "average.") for k, v in state.items()}
    with pytest.raises(InputError, match=r"more than once, under the prefixes 'model.', 'average.'. Save those"):
        load_strict(SmallNet(3, 2, width=4), both, source="w.pth")


def test_behind_a_prefix_errors_name_keys_and_shapes():
    state = {f"module.{k}": v for k, v in SmallNet(3, 2, width=5).state_dict().items()}
    with pytest.raises(InputError, match=r"w.pth does not fit.*stem.weight \(5, 3, 3, 3\) instead of \(4, 3, 3, 3\)"):
        load_strict(SmallNet(3, 2, width=4), state, source="w.pth")


def test_a_prefix_keeps_the_versions_of_layers():
    state = torchvision.models.mnasnet0_5(num_classes=3).state_dict()
    assert state._metadata[""] == {"version": 2}
    wrapped = nn.DataParallel(torchvision.models.mnasnet0_5(num_classes=3))
    wrapped.module.load_state_dict(state)
    model = torchvision.models.mnasnet0_5(num_classes=3)
    found = remove_prefix(model, wrapped.state_dict(), source="w.pth")
    assert found._metadata[""] == {"version": 2} and found._metadata["layers.1"] == state._metadata["layers.1"]
    model.load_state_dict(found)


def test_a_file_without_versions_is_of_the_present_version(tmp_path):
    source = create_classifier("mnasnet0_5", classes=3)  # torchvision refuses a state without a version
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    loaded = create_classifier("mnasnet0_5", str(tmp_path / "w.safetensors"), classes=3)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in loaded.state_dict().items())


@pytest.mark.parametrize("keep_versions", [True, False])
def test_counters_of_batch_norm_may_be_missing(keep_versions):
    source, model = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
    source(torch.randn(2, 3, 4, 4))
    state = source.state_dict()
    del state["1.num_batches_tracked"]
    load_strict(model, state if keep_versions else dict(state), source="w.pth")
    assert torch.equal(model[1].running_mean, source[1].running_mean)
    assert model[1].num_batches_tracked == 0
    del state["1.running_mean"]
    with pytest.raises(InputError, match="1 missing: 1.running_mean"):
        load_strict(model, state, source="w.pth")


def test_weight_norm_of_older_torch():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    model = nn.Sequential(layer)
    old = {"0.weight_g": torch.rand(2, 1), "0.weight_v": torch.randn(2, 3), "0.bias": torch.randn(2)}
    load_strict(model, old, source="w.pth")
    v = old["0.weight_v"]
    torch.testing.assert_close(layer.weight, old["0.weight_g"] * v / v.norm(dim=1, keepdim=True))


def test_what_torch_refuses_after_renaming_changes_nothing():
    model = nn.Sequential(nn.Linear(2, 2), nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    old = {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2), "1.weight_g": torch.ones(5, 1)}
    with pytest.raises(InputError, match="w.pth does not fit Sequential"):
        load_strict(model, {**old, "1.weight_v": torch.ones(5, 3), "1.bias": torch.ones(2)}, source="w.pth")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


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


@pytest.mark.parametrize("save", [save_file, torch.save])
def test_a_file_without_tensors_or_with_nan_is_refused(save, tmp_path):
    """A library would fetch its own weights in place of none."""
    path = tmp_path / ("w.safetensors" if save is save_file else "w.pth")
    save({}, path)
    with pytest.raises(InputError, match=r"w\.\w+ holds no tensor"):
        create_classifier("timm/resnet10t", str(path), classes=5)
    save({"a.weight": torch.ones(2), "b.weight": torch.tensor([1.0, torch.nan])}, path)
    with pytest.raises(InputError, match=r"NaN or infinity in 1 tensors, b.weight first"):
        read_weights(path)


def write_safetensors(path, header: dict | bytes, data: bytes = b"", *, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def test_a_safetensors_file_without_lies(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"w": entry([2], [0, 8])}, struct.pack("<ff", 1, 2))
    assert read_weights(tmp_path / "a.safetensors")["w"].tolist() == [1, 2]


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"w": entry([2], [0, 800])}, None),
        ({"w": entry([2**40], [0, 8])}, None),
        ({"w": entry([2**32, 2**32], [0, 8])}, None),
        ({"w": entry([-2], [0, 8])}, None),
        ({"w": entry([2], [8, 0])}, None),
        ({"w": entry([2], [0, 8]), "v": entry([2], [4, 12])}, None),
        ({"w": entry([2], [0, 8], "OBJECT")}, None),
        (b"{" + b'"a":{' * 50_000, None),
        (b"[" * 50_000, None),
        (b"\xff\xfe", None),
        ({"w": entry([2], [0, 8])}, 2**62),
        ({"w": entry([2], [0, 8])}, 2**20),
    ],
)
def test_a_safetensors_header_that_lies(header, length, tmp_path):
    path = tmp_path / "lies.safetensors"
    write_safetensors(path, header, bytes(8), length=length)
    with pytest.raises(InputError, match=r"lies\.safetensors: cannot be read \(SafetensorError") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert read_normalization(path) is None  # what is wrong is said where the weights are read


@pytest.mark.parametrize("text", ["[" * 50_000, "1", "{}", '{"mean": 1, "std": 1}', '{"mean": ["a"], "std": [1]}'])
def test_metadata_that_is_no_normalization(text, tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"__metadata__": {"normalization": text}, "w": entry([2], [0, 8])}, bytes(8))
    with pytest.raises(InputError, match=r"a\.safetensors: its metadata 'normalization' is no mean and std"):
        read_normalization(path)
