"""``tw-seg predict CHECKPOINT PICTURES --out FOLDER``: pictures in, masks out, with nothing but a checkpoint."""

from __future__ import annotations

import csv
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.cli.test_lightning import CONFIG, files, write_pictures
from tests.training.tiny import ENCODER
from tw_seg.cli import main
from tw_seg.cli.predict import create_parser
from tw_seg.explain.reliability.score import ReliabilityScore, Term, rate_batch
from tw_seg.locks import lock_folder
from tw_seg.predict import outputs
from tw_seg.training.restore import find_checkpoint, load_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run directory. What it was trained on, and began with, is no longer there."""
    home = tmp_path_factory.mktemp("trained")
    write_pictures(home / "own")
    (home / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        own = ["--data.dataset=folder", "--data.split_kwargs=null", "--data.budget=2"]
        own.append(f"--data.dataset_kwargs={{root: {home / 'own'}}}")
        assert main(["fit", "--config=config.yaml", *own, "--run_dir=run"]) == 0
    run = home / "run"
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    # Both classes take pixels: the offset makes half of those of noise background.
    task, data = load_run(run / "checkpoints" / "best.ckpt")
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        maps = task(data._eval_transform(noise, None)[0][None]).mask_logits[0]
    checkpoint["state_dict"]["model.offset"][0] += (maps[1] - maps[0]).median()
    checkpoint["hyper_parameters"]["encoder_weights"] = "weights/that/are_gone.pth"
    torch.save(checkpoint, run / "checkpoints" / "best.ckpt")
    shutil.rmtree(home / "own")
    return run


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with pictures of several sizes and one that is none."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for index, name in enumerate(("a.png", "b.jpg", "sub/c.png", "<d> & é.png")):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40 + index, 50, 3), dtype=np.uint8)).save(path)
    return tmp_path


NAMES = ["<d> & é", "a", "b", "sub__c"]


def predict(trained: Path, *arguments: str) -> int:
    return main(["predict", str(trained), "pictures", "--out", "out", "--accelerator=cpu", *arguments])


def read_masks(out: Path | str = "out") -> dict[str, np.ndarray]:
    return {path.stem: np.array(Image.open(path)) for path in sorted(Path(out, "masks").iterdir())}


def read_files(out: str) -> dict[str, bytes]:
    """All files but the lines, whose order depends on what was done first."""
    return {name: Path(out, name).read_bytes() for name in files(out) if name != "images.jsonl"}


def test_a_folder_of_pictures_and_a_run_are_all_it_needs(trained, capsys):
    assert predict(trained) == 0
    expected = {"prediction.json", "images.jsonl", "images.csv"}
    assert files("out") == expected | {f"{kind}/{name}.png" for kind in ("masks", "overlays") for name in NAMES}
    assert capsys.readouterr().out.splitlines()[-1] == "4 pictures predicted: out"
    task, data = load_run(find_checkpoint(trained))
    with open("out/images.csv", encoding="utf-8") as table:
        rows = {row["image"]: row for row in csv.DictReader(table)}
    shown = read_masks()
    assert any(len(np.unique(mask)) == 2 for mask in shown.values())
    for name, mask in shown.items():
        file = next(Path("pictures").rglob(f"{name.removeprefix('sub__')}.*"))
        image, _ = data._eval_transform(np.array(Image.open(file).convert("RGB")), None)
        with torch.no_grad():
            output = task(image[None])
        wide = torch.nn.functional.interpolate(output.mask_logits, mask.shape, mode="bilinear")
        assert np.array_equal(mask, wide[0].argmax(0).numpy())
        row = rows[name.replace("__", "/")]
        assert (int(row["height"]), int(row["width"])) == mask.shape
        assert float(row["probability/thing"]) == pytest.approx(float(output.logits.sigmoid()[0, 1]), abs=1e-5)
        assert int(row["pixels/thing"]) == (mask == 1).sum()


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_both_forms_of_the_command_make_the_same_masks(trained):
    assert predict(trained) == 0
    shutil.copytree("pictures", "flat/images")
    shutil.move("flat/images/sub/c.png", "flat/images/sub__c.png")
    options = ["--data.dataset=folder", "--data.dataset_kwargs={root: flat}", "--data.size=32", "--data.budget=1"]
    options += ["--trainer.accelerator=cpu", f"--model.encoder_name={ENCODER['encoder_name']}", "--run_dir=run"]
    checkpoint = torch.load(find_checkpoint(trained), weights_only=True)
    checkpoint["hyper_parameters"]["encoder_weights"] = None
    torch.save(checkpoint, "one.ckpt")
    assert main(["predict", *options, "--ckpt_path=one.ckpt"]) == 0
    first, second = read_masks(), read_masks("run/predictions")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("view", [["--view=letterbox"], ["--view=tiles", "--tile=24", "--overlap=0.5"], ["--flip"]])
def test_every_view_gives_masks_of_the_pictures_sizes(view, trained):
    wanted = ["--outputs", "masks", "heatmaps", "probabilities"]
    assert predict(trained, *view, *wanted) == 0
    for name, mask in read_masks().items():
        heatmaps, probabilities = (np.load(f"out/{kind}/{name}.npy") for kind in ("heatmaps", "probabilities"))
        assert heatmaps.shape == probabilities.shape == (2, *mask.shape)
        clear = np.abs(np.diff(heatmaps.astype(float), axis=0)[0]) > 0.01 * np.abs(heatmaps).max()
        assert np.array_equal(mask[clear], heatmaps.argmax(0)[clear])
        assert np.abs(probabilities.astype(float).sum(0) - 1).max() < 2e-3


def test_a_broken_file_is_passed_over_and_named_at_the_end(trained, capsys):
    Path("pictures/broken.png").write_bytes(b"\x89PNG no more")
    Path("pictures/empty.jpg").touch()
    Path("pictures/loop.png").symlink_to("loop.png")
    assert predict(trained) == 1
    errors = capsys.readouterr().err.splitlines()[-3:]
    for line, name in zip(errors, ("broken.png", "empty.jpg", "loop.png"), strict=True):
        assert line.startswith(f"tw-seg: not predicted: pictures/{name}: cannot read the image")
    assert list(read_masks()) == NAMES
    with open("out/failures.csv") as table:
        assert [row["name"] for row in csv.DictReader(table)] == ["broken", "empty", "loop"]
    # Mended, they are all that the next run does.
    before = {path: path.stat().st_mtime_ns for path in Path("out/masks").iterdir()}
    Path("pictures/loop.png").unlink()
    for name in ("broken.png", "empty.jpg"):
        Image.new("RGB", (9, 9)).save(Path("pictures", name))
    assert predict(trained) == 0
    assert "4 of 6 pictures are done already" in capsys.readouterr().err
    assert not Path("out/failures.csv").exists() and len(read_masks()) == 6
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.parametrize("view", [[], ["--view=letterbox"], ["--view=tiles", "--overlap=0"]])
def test_odd_pictures(view, trained, capsys):
    shutil.rmtree("pictures")
    Path("pictures").mkdir()
    for size in ((1, 1), (1, 900), (900, 1), (33, 32)):
        Image.new("RGB", size, (9, 200, 99)).save(f"pictures/{size[0]} x {size[1]}.png")
    Image.new("L", (20, 20), 7).save("pictures/grey.png")
    Image.new("RGBA", (20, 20), (1, 2, 3, 99)).save("pictures/transparent.webp")
    Image.new("RGB", (20, 20)).save("pictures/really a png.jpg", format="PNG")
    Path("pictures/text.jpg").write_text("not a picture at all")
    assert predict(trained, *view) == 1
    assert "pictures/text.jpg: cannot read the image" in capsys.readouterr().err.splitlines()[-1]
    sizes = {name: mask.shape[::-1] for name, mask in read_masks().items()}
    odd = {f"{width} x {height}": (width, height) for width, height in ((1, 1), (1, 900), (900, 1), (33, 32))}
    assert sizes == odd | dict.fromkeys(["grey", "transparent", "really a png"], (20, 20))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody can write")
def test_a_place_where_nobody_can_write_is_named(trained, capsys):
    assert main(["predict", str(trained), "pictures", "--out", "/proc/self/masks"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert (
        error.startswith("tw-seg: error: /proc/self/masks: cannot write there (") and "choose another folder" in error
    )


def test_another_checkpoint_or_other_options_are_refused(trained, capsys):
    assert predict(trained) == 0
    before = read_files("out")
    assert predict(trained, "--flip") == 2
    assert "made otherwise (flip: False there, True now)" in capsys.readouterr().err
    assert main(["predict", str(trained / "checkpoints" / "last.ckpt"), "pictures", "--out=out"]) == 2
    assert "made otherwise (checkpoint: " in capsys.readouterr().err
    assert read_files("out") == before
    assert predict(trained, "--flip", "--overwrite") == 0
    assert read_files("out") != before


@pytest.mark.parametrize("where", ["line", "draft"])
def test_a_killed_prediction_is_completed(where, trained):
    """SIGKILL when the third picture is about to be written down, or half of its mask is written."""
    target, name = {
        "line": ("tw_seg.predict.folder.PredictionFolder", "add"),
        "draft": ("tw_seg.files.Draft", "keep"),
    }[where]
    module, _, owner = target.rpartition(".")
    script = (
        f"import os, signal, sys\nfrom {module} import {owner}\nkept, count = {owner}.{name}, [0]\n"
        "def die(self, *given):\n"
        f"    masks = os.path.isdir('out/masks') and len(os.listdir('out/masks'))\n"
        "    if masks and masks >= 3:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"    return kept(self, *given)\n{owner}.{name} = die\n"
        "from tw_seg.cli import main\nmain(sys.argv[1:])\n"
    )
    arguments = ["predict", str(trained), "pictures", "--out=out", "--accelerator=cpu", "--batch_size=1"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    for path in Path("out").rglob("[!.]*.png"):
        Image.open(path).load()
    assert not Path("out/images.csv").exists() and len(Path("out/images.jsonl").read_text().splitlines()) == 2
    assert predict(trained) == 0
    Path("out").rename("resumed")
    assert predict(trained) == 0
    assert read_files("resumed") == read_files("out")


def test_a_prediction_that_is_stopped_goes_on(trained, monkeypatch, capsys):
    save = outputs.save_mask

    def stop(path: Path, mask: np.ndarray) -> None:
        if path.stem == "b":
            signal.raise_signal(signal.SIGTERM)
        save(path, mask)

    monkeypatch.setattr(outputs, "save_mask", stop)
    assert predict(trained) == 130
    assert capsys.readouterr().err.endswith("tw-seg: stopped; the same command goes on\n")
    assert list(read_masks()) == NAMES[:2]
    monkeypatch.setattr(outputs, "save_mask", save)
    assert predict(trained) == 0
    assert list(read_masks()) == NAMES


def test_two_predictions_do_not_share_a_folder(trained, monkeypatch, capsys):
    monkeypatch.setattr("tw_seg.locks.WAIT_SECONDS", 0.1)
    with lock_folder(Path("out")):
        assert predict(trained) == 2
    assert "out: another process is writing there at this moment" in capsys.readouterr().err
    assert files("out") == set()


def test_a_full_disk_is_named_and_the_same_command_goes_on(trained, monkeypatch, capsys):
    save = outputs.save_mask

    def fill(path: Path, mask: np.ndarray) -> None:
        if path.stem == "b":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(path, mask)

    monkeypatch.setattr(outputs, "save_mask", fill)
    assert predict(trained) == 2
    assert "out/masks/b.png: cannot write there (No space left on device); free some space" in capsys.readouterr().err
    assert list(read_masks()) == NAMES[:2]
    monkeypatch.setattr(outputs, "save_mask", save)
    assert predict(trained) == 0
    assert list(read_masks()) == NAMES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "pictures"], "there is no file or folder nowhere; give the run directory"),
        (["pictures", "pictures"], "there is no checkpoint in pictures/checkpoints; give the run directory"),
        (["pictures/a.png", "pictures"], "pictures/a.png: the file is damaged, or no checkpoint of `tw-seg fit`"),
        (["weights.pt", "pictures"], "weights.pt: expected a checkpoint of `tw-seg fit`"),
        ([None, "nothing"], "nothing: there is no such file or folder"),
        ([None, "pictures", "--scales", "0"], "scales must be positive"),
        ([None, "pictures", "--tile", "9"], "tile=9 needs the view tiles"),
        ([None, "pictures", "--batch_size", "0"], "batch_size must be a whole number >= 1"),
        ([None, "pictures", "--gate_tolerance", "-1"], "gate_tolerance must be a finite number >= 0"),
    ],
)
def test_wrong_arguments_are_a_message_and_leave_nothing(arguments, message, trained, capsys):
    torch.save({"weight": torch.zeros(1)}, "weights.pt")
    given = [str(trained) if word is None else word for word in arguments]
    assert main(["predict", *given, "--out", "out"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_picture_a_pattern_and_options_first(trained):
    assert main(["predict", "--out=out", str(trained), "pictures/a.png", "pictures/*.jpg", "--accelerator=cpu"]) == 0
    assert list(read_masks()) == ["a", "b"]


def test_nothing_left_to_do_writes_the_table(trained):
    assert predict(trained) == 0
    table = Path("out/images.csv").read_text()
    Path("out/images.csv").unlink()
    assert predict(trained) == 0
    assert Path("out/images.csv").read_text() == table


def test_help_speaks_of_both_forms(capsys):
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            main(["predict", option])
        text = capsys.readouterr().out
        assert stop.value.code == 0 and "--gate_tolerance" in text and "OPTIONS OF A RUN" in text
    assert create_parser().format_help().strip() in text and "--ckpt_path" in text


def write_score(path: Path) -> ReliabilityScore:
    terms = {"entropy": Term(0.5, 0.2, -1.5), "flip_agreement": Term(0.5, 0.3, 2.0)}
    score = ReliabilityScore(0.7, terms, 0.1, ("a-val",))
    score.save(path)
    return score


def test_trust_of_each_mask_is_a_column(trained, folder):
    score = write_score(folder / "reliability.json")
    assert predict(trained, "--trust", "reliability.json") == 0
    rows = list(csv.DictReader(Path("out", "images.csv").read_text().splitlines()))
    task, data = load_run(find_checkpoint(trained))
    for row in rows:
        files_of = {"<d> & é": "<d> & é.png", "a": "a.png", "b": "b.jpg", "sub/c": "sub/c.png"}
        picture = np.array(Image.open(Path("pictures", files_of[row["image"]])).convert("RGB"))
        images = data._eval_transform(picture, None)[0][None]
        assert float(row["trust"]) == pytest.approx(rate_batch(score, task.model, images).item(), abs=1e-5)
    assert len({row["trust"] for row in rows}) == 4
    before = read_files("out")
    assert predict(trained, "--trust", "reliability.json") == 0 and read_files("out") == before


@pytest.mark.parametrize("other", [["--view", "tiles"], ["--flip"], ["--scales", "1", "2"], ["--gate_tolerance", "0"]])
def test_trust_is_refused_for_masks_that_were_made_otherwise(trained, folder, capsys, other):
    write_score(folder / "reliability.json")
    assert predict(trained, "--trust", "reliability.json", *other) == 2
    assert "--trust rates masks of one plain run" in capsys.readouterr().err and not Path("out").exists()


def test_a_score_that_is_missing(trained, folder, capsys):
    assert predict(trained, "--trust", "none.json") == 2
    assert "none.json: cannot be read" in capsys.readouterr().err and not Path("out").exists()


def test_names_are_neutral_in_what_is_written_and_said(trained, capsys):
    shutil.rmtree("pictures")
    Path("pictures").mkdir()
    for name in ("red\x1b[31m", "two\nlines", "$x$ <script>"):
        Image.new("RGB", (20, 20)).save(f"pictures/{name}.png")
    Path("pictures/broken\x1b[2J\ntw-seg: forged.png").write_bytes(b"broken")
    assert predict(trained) == 1
    assert files("out/masks") == {"red_[31m.png", "two_lines.png", "$x$ <script>.png"}
    said = capsys.readouterr()
    assert "\x1b" not in said.err + said.out and "\ntw-seg: forged" not in said.err
    assert "broken\\x1b[2J\\ntw-seg: forged.png: cannot read" in said.err
    with open("out/images.csv", encoding="utf-8", newline="") as table:
        assert [row["image"] for row in csv.DictReader(table)] == ["$x$ <script>", "red\x1b[31m", "two\nlines"]
