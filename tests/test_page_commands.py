"""The commands of the pages do what the pages say: run one after the other, on a folder of small pictures.

Only what makes a training short is added. `tests/test_own_data.py` runs those of the tutorial and of the README.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.app.tiny import make_picture, make_service
from tests.test_own_data import TINY, write_picture
from tests.test_readme import ROOT, commands
from tw_seg.app.session import Session
from tw_seg.app.strokes import Stroke
from tw_seg.cli import main

PAGES = ("training.md", "predict.md", "gate.md", "report.md", "lrp_mask.md", "data.md")

RUN_ELSEWHERE = {
    "voc.yaml": "tests/training/test_configs.py",
    "--trainer.devices": "tests/training/test_several_devices.py",
    "completion": "tests/cli/test_completion.py",
    "magnetic_tile.yaml": "tests/training/test_configs.py",
}
"""What needs data, devices or a shell that are not here, by a word of its command, and the test that runs the like."""


def write_data(root: Path) -> None:
    """A folder of 44 pictures with a dark (cat) or a bright (dog) square; 24 of 32 for training have a mask."""
    random, rows = np.random.default_rng(0), ["image,split,cat,dog,patient"]
    for index in range(44):
        write_picture(root, f"{index:02d}", 1 + index % 2, random, has_mask=index < 24 or index >= 32)
        split = "train" if index < 32 else "val" if index < 38 else "test"
        rows.append(f"{index:02d},{split},{1 - index % 2},{index % 2},{index // 2}")
    (root / "image_labels.csv").write_text("\n".join(rows) + "\n")
    (root / "classes.txt").write_text("background\ncat\ndog\n")


def shorten(arguments: list[str]) -> list[str]:
    """What is added to a command so that it takes seconds; an encoder with weights of its own stays."""
    if arguments[0] == "predict" and "--model.warm_start" in arguments:  # the model of a short training
        return [*TINY[:2], "--data.size=32", "--trainer.accelerator=cpu"]
    if arguments[0] == "next":
        return ["--count=2"]
    if arguments[0] != "fit":
        return []
    short = [option for option in TINY if not (option.startswith("--model.") and "lite0" in " ".join(arguments))]
    return [*short, "--trainer.max_epochs=2"] if "last" in arguments else short  # a run that goes on


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the configs."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status = main([*arguments, *shorten(arguments)])
    assert status == 0, f"{page}: tw-seg {shlex.join(arguments)}\n{capsys.readouterr().err}"


@pytest.mark.slow
def test_from_training_to_masks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(folder / "my_images")
    for name in ("my_pictures", "photographs", "photos/2026-07"):
        shutil.copytree("my_images/images", name)
    Path("photos/2026-07/00.png").rename("photos/2026-07/00.jpg")
    shutil.copy("photos/2026-07/00.jpg", "one.jpg")
    Path("chosen.txt").write_text("my_pictures/01.png\n")
    for page in PAGES:
        for program, *arguments in commands((ROOT / "docs" / page).read_text(encoding="utf-8")):
            words = [word for word in RUN_ELSEWHERE if word in " ".join(arguments)]
            if program != "tw-seg" or words:
                assert program in ("tw-seg", "pip")
                continue
            if arguments[:2] == ["data", "split"] and "--force" not in arguments:
                table = Path("my_images/image_labels.csv")  # not divided yet
                rows = [line.split(",") for line in table.read_text().splitlines()]
                table.write_text("".join(",".join(row[:1] + row[2:]) + "\n" for row in rows))
            run(page, arguments, capsys)
            if "--out" in arguments and arguments[0] != "data":  # each page begins where there is none
                shutil.rmtree(arguments[arguments.index("--out") + 1])


def test_corrections_are_a_data_set_to_train_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the page saves, and the commands of ``docs/app.md`` after it; ``tests/app`` runs ``tw-seg app`` itself."""
    session = Session(make_service(folder / "corrections"))
    for number in range(6):
        Image.fromarray(make_picture(seed=number)).save(f"{number}.png")
        session.open_picture(Path(f"{number}.png"))
        label = 1 + number % 2
        session.mark([Stroke(label=label, radius=0.1, points=((0.5, 0.5),)), Stroke(0, 0.05, ((0.1, 0.1),))])
    session.save(whole=False)
    done = []
    for _, *arguments in commands((ROOT / "docs" / "app.md").read_text(encoding="utf-8"))[1:]:
        if arguments[0] != "app":
            run("app.md", arguments, capsys)
            done.append(arguments[0])
    assert done == ["data", "data", "fit"]
    assert Path("runs/corrected/checkpoints/best.ckpt").is_file()
