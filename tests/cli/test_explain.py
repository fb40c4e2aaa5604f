"""``tw-seg explain``: what it writes and what it refuses."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tw_seg.cli import main

HERE = "tests.cli.test_explain"


class Bright(nn.Module):
    """Class 1 where a pixel is red, class 2 where it is blue."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Conv2d(3, 2, 1, bias=False)
        nn.init.constant_(self.scale.weight, 0)
        with torch.no_grad():
            self.scale.weight[0, 0] = self.scale.weight[1, 2] = 5

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.pad(self.scale(images), (0, 0, 0, 0, 1, 0))


def bright(broken: bool = False) -> object:
    return 7 if broken else Bright()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255)), ("dark", (0, 0, 0))):
        picture = np.zeros((24, 30, 3), dtype=np.uint8)
        picture[6:14, 8:20] = colour
        Image.fromarray(picture).save(folder / f"{name}.png")
    return folder


def explain(*arguments: object) -> int:
    return main(["explain", f"{HERE}:bright", *map(str, arguments)])


def read_table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "explanations.csv").read_text().splitlines()))


def test_overlays_maps_and_a_table(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert explain(pictures, "--out", out, "--size", 24, 30, "--steps", 10) == 0
    rows = {row["picture"]: row for row in read_table(out)}
    assert {name: row["class"] for name, row in rows.items()} == {"red": "1", "blue": "2"}
    assert int(rows["red"]["mask_pixels"]) == int(rows["red"]["sufficient_pixels"]) == 8 * 12
    assert sorted(path.name for path in (out / "overlays").iterdir()) == ["blue-2.png", "red-1.png"]
    assert np.array(Image.open(out / "overlays" / "red-1.png")).shape == (24, 30, 3)
    with np.load(out / "maps" / "red.npz", allow_pickle=False) as maps:
        assert maps["classes"].tolist() == ["1"] and maps["mask"].sum() == 8 * 12
        assert maps["minimal"].sum() == int(rows["red"]["minimal_pixels"])
    assert "2 masks of 3 pictures explained" in capsys.readouterr().out
    assert explain(pictures, "--out", out) == 2 and "already holds explanations" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["occlusion", "rise", "lrp", "seg_grad_cam"])
def test_every_method(method: str, pictures: Path, tmp_path: Path) -> None:
    layer = ("--layer", "scale") if method == "seg_grad_cam" else ()
    options = ("--method", method, "--rise_masks", 20, "--size", 24, 30, "--fill", "zero", *layer)
    assert explain(pictures / "red.png", "--out", tmp_path / method, *options) == 0
    (row,) = read_table(tmp_path / method)
    assert row["picture"] == "red" and set(row) >= {"energy_inside", "points_inside", "sufficient_pixels"}
    with np.load(tmp_path / method / "maps" / "red.npz") as maps:
        assert maps["heatmap"].shape == (1, 24, 30) and np.isfinite(maps["heatmap"]).all()


def test_a_picture_that_cannot_be_read_does_not_stop_the_others(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    assert explain(pictures, "--out", tmp_path / "out", "--size", 16, "--steps", 0) == 1
    assert "broken.png: cannot read the image" in capsys.readouterr().err
    assert {row["picture"] for row in read_table(tmp_path / "out")} == {"red", "blue"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere: there is no such file or folder"),
        (("--layer", "layer9"), "there is no module 'layer9' in the model"),
        (("--layer", "scale"), "no other method takes one"),
        (("--part", "head"), "there is no module 'head' in the model"),
        (("--min_dice", "0"), "min_dice must be in (0, 1]"),
        (("--size", "1", "2", "3"), "size must be a number of pixels or (height, width)"),
        (("--model_kwargs", '{"broken": true}'), "must return a model, it returned int"),
        (("--batch_size", "0"), "batch_size must be a whole number >= 1"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[str, ...], message: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(pictures, *arguments, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tests.nothing:model", "model='tests.nothing:model' must be a checkpoint"),
        ("runs/none", "give the run directory of `tw-seg fit`"),
    ],
)
def test_models_that_are_none(model: str, message: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", model, str(pictures), "--out", "out"]) == 2
    assert message in capsys.readouterr().err
