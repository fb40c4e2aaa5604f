"""``docs/own_data.md`` as a new user follows it: its commands, one after the other, on a folder that is made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.test_readme import ROOT, commands
from tests.training.tiny import ENCODER
from tw_seg.cli import main

TINY = [
    f"--model.encoder_name={ENCODER['encoder_name']}",
    f"--model.encoder_kwargs={ENCODER['encoder_kwargs']}",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.accelerator=cpu",
    "--data.size=32",
    "--data.batch_size=4",
    "--data.labelled_per_batch=2",
]


def write_picture(root: Path, name: str, label: int, random: np.random.Generator, *, has_mask: bool) -> None:
    """A picture with a dark (class 1) or a bright (class 2) square, and its mask if it has one."""
    mask = np.zeros((36, 48), dtype=np.uint8)
    top, left = random.integers(2, 20, 2)
    mask[top : top + 12, left : left + 14] = label
    picture = random.integers(60, 190, (36, 48, 3), dtype=np.uint8)
    picture[mask > 0] = 250 if label == 2 else 5
    for part, pixels in (("images", picture), *([("masks", mask)] if has_mask else [])):
        (root / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / part / f"{name}.png")


def write_images(root: Path) -> list[str]:
    """Pictures with a dark (cat) or a bright (dog) square; every second one of ``train`` has no mask."""
    random, rows = np.random.default_rng(0), ["image,split,cat,dog"]
    for index in range(16):
        split = "train" if index < 8 else "val" if index < 12 else "test"
        has_mask = split != "train" or index % 4 < 2
        write_picture(root, f"{index:04d}", 1 + index % 2, random, has_mask=has_mask)
        rows.append(f"{index:04d},{split},{1 - index % 2},{index % 2}")
    (root / "image_labels.csv").write_text("\n".join(rows) + "\n")
    return [f"{index:04d}.png" for index in range(16)]


def test_the_commands_lead_from_pictures_to_masks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = write_images(tmp_path / "my_images")
    done = []
    for program, *arguments in commands((ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")):
        assert program == "tw-seg"
        extra = {"fit": TINY, "next": ["--count=2"]}.get(arguments[0], [])
        assert main([*arguments, *extra]) == 0, capsys.readouterr().err
        done.append(arguments[0])
    assert done == ["data", "fit", "test", "predict", "next"]
    assert Path("sheet.png").is_file() and any(Path("next_20").iterdir())
    assert "Masks that would help most" in Path("runs/mine/report/report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in Path("masks_out/masks").iterdir()) == names
    for name in names:
        with Image.open(Path("masks_out/masks", name)) as mask, Image.open(Path("my_images/images", name)) as picture:
            assert mask.size == picture.size and np.array(mask).max() <= 2
