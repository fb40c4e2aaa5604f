"""``tw-seg next``: from a checkpoint to a list of images and to a task of an annotation tool."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.cli.test_lightning import CONFIG
from tests.data.check.messy import picture, write
from tw_seg.cli import main
from tw_seg.cli.next import COLUMNS
from tw_seg.data.layouts.cvat import CVATDataset
from tw_seg.metrics import predict_masks
from tw_seg.training.restore import find_checkpoint, load_run
from tw_seg.training.survey import choose_next, survey_images


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run directory, beside the data set that it was trained on with 4 masks of 10."""
    home = tmp_path_factory.mktemp("trained")
    kinds = ("c", "d", "cd", "c", "d")
    write(home / "data", {f"im{i}": ("train" if i < 10 else "val", kinds[i % 5]) for i in range(12)})
    Image.fromarray(picture(3)).save(home / "data" / "images" / "im4.png")  # a copy
    (home / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    own = ["--data.dataset=folder", "--data.split_kwargs=null", "--data.budget=4"]
    own.append(f"--data.dataset_kwargs={{root: {home / 'data'}}}")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["fit", "--config=config.yaml", *own, "--run_dir=run"]) == 0
    return home


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_list_masks_and_a_task(trained, tmp_path, capsys):
    assert main(["next", str(trained / "run"), "--count", "3", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("3 of 6 images: ")
    rows = read(tmp_path / "out" / "next.csv")
    assert tuple(rows[0]) == COLUMNS and [row["rank"] for row in rows] == ["1", "2", "3"]
    task, data = load_run(find_checkpoint(trained / "run"))
    train, inside, outside = data.divide_by_budget()
    names = [row["image"] for row in rows]
    assert len(inside) == 4 and set(names) <= {train.names[row] for row in outside} and len(set(names)) == 3
    choices, survey = choose_next(task, data, 3)
    assert names == [survey.names[choice.row] for choice in choices]
    (tmp_path / "images").symlink_to(trained / "data" / "images")
    (tmp_path / "out" / "task.xml").rename(tmp_path / "annotations.xml")
    cvat = CVATDataset(tmp_path, classes=list(task.class_names))
    for name in names:
        mask = np.array(Image.open(tmp_path / "out" / "masks" / f"{name}.png"))
        pixels = data._eval_transform(np.array(Image.open(trained / "data" / "images" / f"{name}.png")), None)[0]
        with torch.no_grad():
            (expected,) = predict_masks(task(pixels[None]).mask_logits, [(48, 48)])
        np.testing.assert_array_equal(mask, expected.numpy())
        np.testing.assert_array_equal(cvat[cvat.names.index(name)].mask, mask)


def test_all_there_are_without_a_count(trained, tmp_path, capsys):
    assert main(["next", str(trained / "run"), "--out", str(tmp_path), "--task", "none"]) == 0
    assert capsys.readouterr().out.startswith("6 of 6 images: ")
    assert main(["next", str(trained / "run"), "--count", "0", "--out", str(tmp_path / "none")]) == 2
    assert "count must be" in capsys.readouterr().err


def test_new_pictures_and_label_studio(trained, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    for index in range(20, 26):
        Image.fromarray(picture(index)).save(tmp_path / "new" / f"p{index}.jpg")
    (tmp_path / "new" / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    arguments = ["next", str(trained / "run"), "--pictures", str(tmp_path / "new"), "--task", "label_studio"]
    assert main([*arguments, "--count", "2", "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert "2 of 6 images" in captured.out and "broken.png" in captured.err
    rows = read(out / "next.csv")
    assert all(float(row["label_uncertainty"]) > 0 for row in rows)  # nobody says what these show
    tasks = json.loads((out / "task.json").read_text())
    assert [Path(task["data"]["image"].partition("=")[2]).stem for task in tasks] == [row["image"] for row in rows]
    assert all("predictions" in task for task in tasks)


def test_what_there_is_is_not_replaced(trained, tmp_path, capsys):
    arguments = ["next", str(trained / "run"), "--count", "1", "--out", str(tmp_path), "--task", "none"]
    assert main(arguments) == 0
    before = (tmp_path / "next.csv").read_text()
    assert not list(tmp_path.glob("task*"))
    assert main(arguments) == 2
    assert "is there already; give another --out, or --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0 and (tmp_path / "next.csv").read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "0"], "count must be a whole number >= 1, got 0"),
        (["--count", "7"], "from 1 to the 6 candidates, got 7"),
        (["--pictures", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments(trained, tmp_path, capsys, options, message):
    assert main(["next", str(trained / "run"), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_generated_images_have_no_task(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
    assert main(["fit", "--config", "config.yaml", "--run_dir", "run"]) == 0
    assert main(["next", "run", "--count", "2", "--out", "out"]) == 2
    assert "DigitScenes makes its images itself" in capsys.readouterr().err and not Path("out").exists()
    assert main(["next", "run", "--count", "2", "--out", "out", "--task", "none"]) == 0
    assert len(read(Path("out/next.csv"))) == 2


def test_the_survey_is_that_of_single_images(trained):
    task, data = load_run(find_checkpoint(trained / "run"))
    train = data.divide_by_budget()[0]
    data.hparams["eval_batch_size"] = 3
    whole = survey_images(task, data, train)
    data.hparams["eval_batch_size"] = 1
    single = survey_images(task, data, train)
    assert whole.names == single.names == train.names
    np.testing.assert_allclose(whole.evidence.add_up(), single.evidence.add_up(), atol=1e-5)
    np.testing.assert_allclose(whole.features, single.features, atol=1e-4)
    copies = [whole.names.index(name) for name in ("im3", "im4")]
    np.testing.assert_allclose(*whole.features[copies], atol=1e-4)
