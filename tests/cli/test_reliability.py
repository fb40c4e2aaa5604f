"""``tw-seg reliability fit`` and ``score`` on a run of ``tw-seg fit``."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training.tiny import ENCODER
from tw_seg.cli import main
from tw_seg.data import DATASETS, DigitScenes
from tw_seg.explain.reliability.judge import judge_predictions
from tw_seg.explain.reliability.score import ReliabilityScore, rate_batch
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.restore import load_run
from tw_seg.training.run_directory import WholeCheckpointIO
from tw_seg.training.task import SegmentationTask

CLASSES = ("background", *(str(digit) for digit in range(10)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a checkpoint, whose model was not trained."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    task = SegmentationTask("heatmap", class_names=list(CLASSES), **ENCODER)
    with torch.no_grad():
        task.model.offset[0] = 0.2  # so that some masks are empty
    lengths = {"val": {"length": 24}, "test": {"length": 12}}
    data = SegmentationDataModule("digits", {"size": 32}, split_kwargs=lengths, budget=4, size=32, eval_batch_size=16)
    checkpoint = {
        "state_dict": task.state_dict(),
        "pytorch-lightning_version": "2.6.6",
        SegmentationTask.CHECKPOINT_HYPER_PARAMS_KEY: dict(task.hparams),
        SegmentationDataModule.CHECKPOINT_HYPER_PARAMS_KEY: dict(data.hparams),
    }
    (folder / "checkpoints").mkdir()
    WholeCheckpointIO().save_checkpoint(checkpoint, folder / "checkpoints" / "best.ckpt")
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def find_median(run: Path) -> float:
    """A Dice that half of the validation masks have."""
    task, data = load_run(run / "checkpoints" / "best.ckpt")
    return max(1e-6, float(judge_predictions(task.model, data.val_dataloader(), groups=["mask"]).dice.median()))


def read_rows(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "trust.csv").read_text().splitlines()))


def test_fit_then_score_test_and_pictures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    level = str(find_median(run))
    assert main(["reliability", "fit", str(run), "--min_dice", level]) == 0
    assert "24 validation images" in capsys.readouterr().out
    score = ReliabilityScore.load(run / "reliability.json")
    assert score.names == DigitScenes("val", size=32, length=24).names
    assert score.groups == ("mask", "image_level", "relevance", "flip")
    assert main(["reliability", "score", str(run), "--test", "--out", str(tmp_path / "test")]) == 0
    rows = read_rows(tmp_path / "test")
    assert len(rows) == 12 and all(0 <= float(row["trust"]) <= 1 and row["dice"] for row in rows)
    assert "| trust |" in (tmp_path / "test" / "measures.md").read_text()
    scene = DigitScenes("test", size=32)[0].image
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(scene).save(folder / "scene.png")
    assert main(["reliability", "score", str(run), str(folder), "--out", str(tmp_path / "own")]) == 0
    (row,) = read_rows(tmp_path / "own")
    assert row["image"] == "scene" and row["dice"] == "" and not (tmp_path / "own" / "measures.md").exists()
    task, data = load_run(run / "checkpoints" / "best.ckpt")
    with torch.no_grad():
        images = next(iter(data.test_dataloader())).images[:1]
        expected = rate_batch(score, task.model, images, task.model(images)).item()
    assert float(row["trust"]) == pytest.approx(expected, abs=1e-3)
    assert float(rows[0]["trust"]) == pytest.approx(expected, abs=1e-3)


def test_calibration_never_sees_test(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Watched(DigitScenes):
        def __init__(self, split: str, **kwargs: object) -> None:
            opened.append(split)
            super().__init__(split, **kwargs)

    monkeypatch.setitem(DATASETS, "digits", Watched)
    level = str(find_median(run))
    opened.clear()
    assert main(["reliability", "fit", str(run), "--min_dice", level, "--features", "output"]) == 0
    assert set(opened) == {"val"}


def test_a_score_is_not_judged_on_what_it_was_fitted_on(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reliability", "fit", str(run), "--min_dice", str(find_median(run)), "--features", "output"]) == 0
    content = json.loads((run / "reliability.json").read_text())
    content["images"].append(DigitScenes("test", size=32, length=12).names[3])
    (run / "reliability.json").write_text(json.dumps(content))
    assert main(["reliability", "score", str(run), "--test", "--out", str(tmp_path / "out")]) == 2
    assert "1 of these images were used to fit the score" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "{run}", "--min_dice", "1"), "masks have a Dice of at least 1 and 24 less"),
        (("fit", "{run}", "--min_dice", "2"), "min_dice must be in (0, 1]"),
        (("fit", "{run}", "--fill", "grey"), "fill must be one of"),
        (("fit", "{run}/nothing"), "give the run directory of `tw-seg fit`"),
        (("fit", "{run}", "--dataset_kwargs", '{"sides": 3}'), "dataset_kwargs for 'digits'"),
        (("score", "{run}", "--out", "{run}/out", "--test"), "reliability.json: cannot be read"),
        (("score", "{run}", "--out", "{run}/out"), "give pictures, or --test"),
        (("score", "{run}", "{run}", "--out", "{run}/out", "--test"), "and not both"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[str, ...], message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reliability", *(argument.replace("{run}", str(run)) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not (run / "out").exists() and not (run / "reliability.json").exists()


def test_a_classifier_makes_no_masks(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    task = SegmentationTask("classifier", class_names=list(CLASSES), **ENCODER)
    content["state_dict"] = task.state_dict()
    content[SegmentationTask.CHECKPOINT_HYPER_PARAMS_KEY] = dict(task.hparams)
    torch.save(content, tmp_path / "classifier.ckpt")
    assert main(["reliability", "fit", str(tmp_path / "classifier.ckpt")]) == 2
    assert "makes no masks" in capsys.readouterr().err


@pytest.mark.parametrize("action", [(), ("fit",), ("score",)])
def test_help(action: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["reliability", *action, "--help"])
    assert stop.value.code == 0 and "tw-seg reliability" in capsys.readouterr().out
