"""Files of ``torch.save`` from elsewhere: nothing in them is run, and they cannot claim more than they hold."""

from __future__ import annotations

import os
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tw_seg.errors import InputError
from tw_seg.torch_files import read_torch_file


class Bomb:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def rewrite(path: Path, method: int, *further: str) -> None:
    """The same entries in a zip of another method, and further ones."""
    with zipfile.ZipFile(path) as file:
        entries = {entry: file.read(entry) for entry in file.namelist()}
    with zipfile.ZipFile(path, "w", method) as file:
        for entry, content in {**entries, **dict.fromkeys(further, b"1")}.items():
            file.writestr(entry, content)


def test_the_bomb_goes_off_where_nobody_takes_care(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Bomb(), "a.ckpt")
    torch.load("a.ckpt", weights_only=False)
    assert Path("ran").exists()


@pytest.mark.parametrize("place", ["alone", "inside", "zip-free", "plain pickle"])
def test_a_pickle_bomb(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.ckpt"
    if place == "plain pickle":
        path.write_bytes(pickle.dumps({"state_dict": Bomb()}, protocol=2))
    else:
        content = Bomb() if place == "alone" else {"state_dict": {"weight": torch.eye(2)}, "hyper_parameters": Bomb()}
        torch.save(content, path, _use_new_zipfile_serialization=place != "zip-free")
    with pytest.raises(InputError, match=r"a\.ckpt: cannot be read.*(could run code|damaged)") as error:
        read_torch_file(path)
    assert "\n" not in str(error.value) and not Path("ran").exists()


@pytest.mark.parametrize("mmap", [False, True])
def test_what_is_harmless_is_read(mmap, tmp_path):
    content = {"state": {"a": torch.eye(3), "b": torch.arange(4)[1:]}, "args": Namespace(lr=0.1), "names": ["a"]}
    torch.save(content, tmp_path / "a.pth")
    found = read_torch_file(tmp_path / "a.pth", mmap=mmap)
    assert found["args"] == content["args"] and found["names"] == ["a"]
    assert all(torch.equal(found["state"][key], value) for key, value in content["state"].items())


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save({"a": torch.zeros(1).expand(10**12)}, path), "shape .*for which it has no numbers"),
        (lambda path: torch.save([torch.eye(3).to_sparse()], path), "layout torch.sparse_coo"),
        (lambda path: torch.save(nn.Linear(2, 2), path), "could run code. Save a state dict alone"),
        (lambda path: rewrite(path, zipfile.ZIP_DEFLATED), "is compressed, which torch.save never does"),
        (lambda path: rewrite(path, zipfile.ZIP_STORED, "../../x"), r"'\.\./\.\./x' leads out of it"),
        (lambda path: rewrite(path, zipfile.ZIP_STORED, "/etc/x"), "'/etc/x' leads out of it"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "damaged"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_files_that_are_refused(write, message, tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"weight": torch.eye(2)}, path)
    write(path)
    with pytest.raises(InputError, match=message) as error:
        read_torch_file(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
