"""``tw-seg data convert``: from every layout to every tool, and from predictions."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.data.layouts.drawn import CLASSES, save_image
from tests.data.layouts.small import WRITERS, write_cvat
from tw_seg.cli import main
from tw_seg.data import DATASETS
from tw_seg.data.export import EXPORTS
from tw_seg.data.opening import find_layout
from tw_seg.errors import DataError

READ = {"coco": "annotations/instances_train.json", "cvat": "annotations.xml", "label_studio": "annotations.json"}


@pytest.mark.parametrize("layout", WRITERS)
def test_the_layout_is_found(layout, tmp_path):
    WRITERS[layout](tmp_path)
    if layout == "labelme":
        with pytest.raises(DataError, match="say which layout it is with --layout"):
            find_layout(tmp_path)
    else:
        assert find_layout(tmp_path) == layout


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("tool", EXPORTS)
def test_masks_of_a_data_set(layout, tool, tmp_path, capsys):
    """What is read from the written file is what the data set has; pixels of boxes are ignored ones."""
    WRITERS[layout](tmp_path / "in")
    out = tmp_path / "out" / READ[tool]
    arguments = ["data", "convert", str(tmp_path / "in"), str(out), "--to", tool]
    assert main([*arguments, *(["--layout=labelme"] if layout == "labelme" else [])]) == 0
    assert f"1 images with their masks written: {out}" in capsys.readouterr().out
    source = DATASETS[layout](tmp_path / "in", "train" if layout == "coco" else None)
    expected = source[0].mask.copy()
    expected[expected >= len(source.classes)] = 255
    (tmp_path / "out" / "images").mkdir()
    for path in source._images:
        path.rename(tmp_path / "out" / "images" / path.name)
    read = DATASETS[tool](tmp_path / "out", "train" if tool == "coco" else None, classes=list(source.classes))
    np.testing.assert_array_equal(read[0].mask, expected)


@pytest.mark.parametrize("tool", EXPORTS)
def test_predictions(tool, tmp_path, capsys):
    masks = {}
    for name in ("a b.png", "sub/c.jpg", "left out.png"):
        save_image(tmp_path / "pictures" / name, (6, 7))
    (tmp_path / "out" / "masks").mkdir(parents=True)
    for name, value in (("a b.png", 1), ("sub__c.png", 2)):
        masks[name] = np.full((6, 7), value, dtype=np.uint8)
        Image.fromarray(masks[name]).save(tmp_path / "out" / "masks" / name)
    header = ",".join(f"probability/{name}" for name in CLASSES)
    (tmp_path / "out" / "images.csv").write_text(f"image,height,{header},pixels/x\n", encoding="utf-8")
    file = tmp_path / "tasks"
    command = ["data", "convert", str(tmp_path / "pictures"), str(file), "--to", tool]
    assert main([*command, "--predictions", str(tmp_path / "out")]) == 0
    assert "2 images with their masks written" in capsys.readouterr().out
    text = file.read_text(encoding="utf-8")
    assert "sub/c.jpg" in text and "left out" not in text
    if tool == "label_studio":
        found = [task["predictions"][0]["result"][0]["value"]["brushlabels"] for task in json.loads(text)]
        assert found == [[CLASSES[1]], [CLASSES[2]]]
    if tool == "cvat":
        assert text.count('source="auto"') == 2


def test_what_cannot_be_converted(tmp_path, capsys):
    write_cvat(tmp_path / "in")
    start = ["data", "convert", str(tmp_path / "in"), str(tmp_path / "out.json"), "--to", "coco"]
    for extra, message in [
        (["--layout=digits", "--dataset_kwargs=null"], "dataset_kwargs for 'digits'"),
        (["--split=train"], "nothing says which images belong to the split 'train'"),
        ([f"--predictions={tmp_path}"], "images.csv: cannot read the file"),
        (["--dataset_kwargs={unannotated: unlabelled, classes: [background, cow]}"], "no class 'cow'"),
    ]:
        assert main([*start, *extra]) == 2
        assert message in capsys.readouterr().err
    predictions = tmp_path / "predictions"
    predictions.mkdir()
    (predictions / "images.csv").write_text("image,cat\n")
    assert main([*start, f"--predictions={predictions}"]) == 2
    assert "expected columns probability/CLASS, found ['image', 'cat']" in capsys.readouterr().err
    (predictions / "images.csv").write_text("probability/background,probability/cat\n")
    assert main([*start, f"--predictions={predictions}"]) == 2
    assert "no mask belongs to a picture of" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([*start[:3], str(tmp_path / "file" / "out.json"), *start[4:]]) == 2
    assert "cannot be written (" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_masks_of_some_classes_are_no_masks_of_all(tmp_path, capsys):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    save_image(tmp_path / "images" / "a.png", (4, 4))
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "masks" / "a.png")
    arguments = ["data", "convert", str(tmp_path), str(tmp_path / "coco.json"), "--to", "coco"]
    (tmp_path / "image_labels.csv").write_text("image,annotated,cat,dog\na,cat,1,?\n")
    assert main(arguments) == 2
    assert "some masks show some of the classes only" in capsys.readouterr().err
    (tmp_path / "image_labels.csv").write_text("image,annotated,cat,dog\na,,1,0\n")
    assert main(arguments) == 0
