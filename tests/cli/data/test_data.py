"""``tw-seg data``: the commands as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.data.check.messy import mask_of, picture, write, write_good, write_messy
from tw_seg.cli import main
from tw_seg.cli.data import SUBCOMMANDS
from tw_seg.data.budget import LabelBudget
from tw_seg.data.layouts.folder import FolderDataset
from tw_seg.data.layouts.voc import VOCDataset
from tw_seg.training.datamodule import SegmentationDataModule

ROOT = Path(__file__).resolve().parents[3]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str, str]:
    """Exit status, output, errors."""
    try:
        status: object = main(["data", *map(str, arguments)])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_help_names_every_command_and_imports_no_torch():
    script = (
        "import sys\nfrom tw_seg.cli import main\n"
        "try:\n    main(['data', '--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "sys.exit(str({'torch', 'numpy', 'jsonargparse'} & sys.modules.keys() or ''))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == "\n"
    for name, command in SUBCOMMANDS.items():
        assert f"  {name:{max(map(len, SUBCOMMANDS))}}  {command.summary}\n" in done.stdout


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_command_has_help_with_an_example(name, capsys):
    status, out, _ = run(capsys, name, "--help")
    assert status == 0 and f"tw-seg data {name} my_images" in " ".join(out.split()) and "--layout" in out


def test_unknown_commands(capsys):
    status, out, err = run(capsys, "chek", "x")
    assert (status, out) == (2, "") and "unknown command 'data chek'; did you mean check?" in err
    assert run(capsys)[0] == 2


def test_check_ends_with_1_after_an_error(tmp_path, capsys):
    write_good(tmp_path / "good")
    write_messy(tmp_path / "messy")
    status, out, err = run(capsys, "check", tmp_path / "good")
    assert (status, err) == (0, "") and out.endswith("0 errors, 0 warnings\n")
    report, sheet = tmp_path / "r.json", tmp_path / "sheet.png"
    status, out, _ = run(capsys, "check", tmp_path / "messy", "--json", report, "--contact_sheet", sheet)
    assert status == 1 and "broken.png" in out
    content = json.loads(report.read_text())
    assert f"{sum(row['severity'] == 'error' for row in content['findings'])} errors" in out
    with Image.open(sheet) as drawn:
        assert drawn.format == "PNG"


def test_check_of_what_is_no_data_set(tmp_path, capsys):
    status, _, err = run(capsys, "check", tmp_path / "no")
    assert status == 2 and "no: there is no such folder" in err
    status, _, err = run(capsys, "check", tmp_path)
    assert status == 2 and "JPEGImages (voc), image_labels.csv (folder), annotations.xml (cvat)" in err
    write_good(tmp_path / "good")
    (tmp_path / "file").touch()
    status, _, err = run(capsys, "check", tmp_path / "good", "--json", tmp_path / "file" / "r.json")
    assert status == 2 and "cannot be written" in err


def test_what_check_suggests_runs_and_then_nothing_is_found(tmp_path, capsys):
    write_good(tmp_path)
    Image.fromarray(picture(0)[:, ::-1]).save(tmp_path / "images" / "im9.png")
    _, out, _ = run(capsys, "check", tmp_path)
    assert "near-duplicates in train and val: train/im0, val/im9" in out
    (line,) = [line for line in out.splitlines() if "tw-seg data split" in line]
    words = line.split("tw-seg data ")[1].split()
    status, out, _ = run(capsys, *words)
    assert (
        status == 0 and "12 images in 11 groups (near-duplicates)" in out and str(tmp_path / "image_labels.csv") in out
    )
    _, out, _ = run(capsys, "check", tmp_path)
    assert out.endswith("0 errors, 0 warnings\n")


def test_split_of_a_folder(tmp_path, capsys):
    write_good(tmp_path)
    before = (tmp_path / "image_labels.csv").read_text()
    status, _, err = run(capsys, "split", tmp_path)
    assert status == 2 and "the splits train, val are there already; --force replaces them" in err
    assert (tmp_path / "image_labels.csv").read_text() == before
    arguments = ("--force", "--group_column", "patient", "--near_duplicates", "false", "--test_share", "0.25")
    status, out, _ = run(capsys, "split", tmp_path, *arguments)
    assert status == 0 and "12 images in 6 groups (column patient)" in out
    parts = [FolderDataset(tmp_path, split).names for split in ("train", "val", "test")]
    assert sorted(sum(parts, ())) == sorted(FolderDataset(tmp_path).names)
    patients = [{int(name[2:]) // 2 for name in part} for part in parts]
    assert all(not a & b for i, a in enumerate(patients) for b in patients[:i])
    first = (tmp_path / "image_labels.csv").read_text()
    assert run(capsys, "split", tmp_path, *arguments)[0] == 0
    assert (tmp_path / "image_labels.csv").read_text() == first
    assert run(capsys, "split", tmp_path, *arguments, "--seed", "1")[0] == 0
    assert (tmp_path / "image_labels.csv").read_text() != first


def test_kept_splits_stay(tmp_path, capsys):
    write_good(tmp_path)
    arguments = ("split", tmp_path, "--force", "--near_duplicates", "false")
    assert run(capsys, *arguments, "--test_share", "0.25")[0] == 0
    test = FolderDataset(tmp_path, "test").names
    assert run(capsys, *arguments, "--keep", "test", "--seed", "5")[0] == 0
    assert FolderDataset(tmp_path, "test").names == test
    assert len(FolderDataset(tmp_path, "train")) + len(FolderDataset(tmp_path, "val")) == 9
    status, _, err = run(capsys, *arguments, "--keep", "tests")
    assert status == 2 and "there is no tests; there are " in err
    status, _, err = run(capsys, *arguments, "--keep", "val")
    assert status == 2 and "val would be written" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val_share", "1"], "--val_share must be a share from 0 to below 1, got 1.0"),
        (["--val_share", "0"], "add up to more than 0 and less than 1"),
        (["--val_share", "0.6", "--test_share", "0.4"], "add up to more than 0 and less than 1"),
        (["--dataset_kwargs", "{colour: 3}"], "dataset_kwargs for 'folder'"),
        (["--group_column", "tile"], "no column 'tile'"),
        (["--layout", "floder"], "layout: expected one of"),
    ],
)
def test_wrong_arguments_of_split(tmp_path, capsys, options, message):
    write_good(tmp_path)
    before = (tmp_path / "image_labels.csv").read_text()
    status, _, err = run(capsys, "split", tmp_path, "--force", "--near_duplicates", "false", *options)
    assert status == 2 and message in err
    assert (tmp_path / "image_labels.csv").read_text() == before


def test_split_of_broken_data_says_which_file(tmp_path, capsys):
    write_messy(tmp_path)
    (tmp_path / "masks" / "alone_mask.png").unlink()
    before = (tmp_path / "image_labels.csv").read_text()
    status, _, err = run(capsys, "split", tmp_path, "--force")
    assert status == 2 and "(2 errors; tw-seg data check lists them)" in err
    assert (tmp_path / "image_labels.csv").read_text() == before


def make_voc(root: Path) -> None:
    """Ten images in lists, and two in none; labels are taken from the masks."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for index in range(12):
        Image.fromarray(picture(index)).save(root / "JPEGImages" / f"a{index}.jpg")
        if index < 10:
            Image.fromarray(mask_of("cd"[index % 2])).save(root / "SegmentationClass" / f"a{index}.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("".join(f"a{i}\n" for i in range(8)))
    (root / "ImageSets/Segmentation/val.txt").write_text("a8\na9\n")


def test_split_of_voc_lists(tmp_path, capsys):
    make_voc(tmp_path)
    status, out, _ = run(capsys, "split", tmp_path, "--force", "--val_share", "0.4")
    assert status == 0 and "10 images in 10 groups" in out
    train, val = (VOCDataset(tmp_path, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (6, 4) and sorted(train.names + val.names) == sorted(f"a{i}" for i in range(10))
    np.testing.assert_array_equal(val.labels.sum(axis=0)[[0, 1, 2]], [4, 2, 2])
    (tmp_path / "ImageSets/Segmentation/test.txt").write_text("a0\n")
    status, _, err = run(capsys, "split", tmp_path, "--force")
    assert status == 2 and "the split test would share images with the new ones; keep it with --keep test" in err


def test_budget_is_what_a_run_takes(tmp_path, capsys):
    write_good(tmp_path / "data")
    Image.fromarray(picture(1)[::-1]).save(tmp_path / "data" / "images" / "im0.png")  # as im1
    path = tmp_path / "budget.json"
    status, out, _ = run(capsys, "budget", tmp_path / "data", "--budget", "6", "--out", path)
    assert status == 0 and "6 of 8 images with a mask, in 7 groups (near-duplicates)" in out
    budget = LabelBudget.load(path)
    assert budget.sha256[:12] in out and budget.grouped_by == "near-duplicates"
    assert not {"im0", "im1"} <= set(budget.names)
    data = SegmentationDataModule(
        "folder", {"root": str(tmp_path / "data")}, budget_file=str(path), size=16, batch_size=4, labelled_per_batch=2
    )
    data.setup("fit")
    assert data.budget == budget
    again = tmp_path / "again.json"
    assert run(capsys, "budget", tmp_path / "data", "--budget", "3", "--out", again)[0] == 0
    assert LabelBudget.load(again).names == budget.names[:3]


def test_budgets_that_cannot_be(tmp_path, capsys):
    write_good(tmp_path / "data")
    data, path = tmp_path / "data", tmp_path / "b.json"
    arguments = ("budget", data, "--near_duplicates", "false", "--out", path)
    status, _, err = run(capsys, *arguments, "--budget", "9")
    assert status == 2 and "asks for 9 images, but only 8 have a mask" in err
    status, _, err = run(capsys, *arguments, "--budget", "5", "--group_column", "patient")
    assert status == 2 and "asks for 5 groups, but only 4 have a mask" in err
    status, _, err = run(capsys, *arguments, "--budget", "2", "--budget_share", "0.5")
    assert status == 2 and "not both" in err and not path.exists()
    assert run(capsys, *arguments, "--budget_share", "0.5")[0] == 0
    status, _, err = run(capsys, *arguments, "--budget", "1")
    assert status == 2 and "is there already" in err and len(LabelBudget.load(path).names) == 4
    assert run(capsys, *arguments, "--budget", "1", "--force")[0] == 0 and len(LabelBudget.load(path).names) == 1
    for mask in (data / "masks").iterdir():
        mask.unlink()
    status, _, err = run(capsys, *arguments, "--force")
    assert status == 2 and "no image of train has a mask" in err


def test_fit_refuses_what_check_calls_an_error(tmp_path):
    write(tmp_path, {f"im{i}": ("train" if i < 4 else "val", "c") for i in range(6)})
    Image.fromarray(mask_of("cd")).save(tmp_path / "masks" / "im1.png")
    arguments = {"budget": "all", "size": 16, "batch_size": 4, "labelled_per_batch": 2}
    data = SegmentationDataModule("folder", {"root": str(tmp_path)}, **arguments)
    with pytest.raises(ValueError, match=r"dog in 1; first .*im1.png; correct .*--data.contradictions warn"):
        data.setup("fit")
    data = SegmentationDataModule("folder", {"root": str(tmp_path)}, contradictions="warn", **arguments)
    with pytest.warns(UserWarning, match="dog in 1; first .*im1.png"):
        data.setup("fit")


def test_images_of_other_channels_and_depth(tmp_path, capsys):
    """Without the arguments all are refused; with them the numbers are those of the scaled values."""
    pixels = np.random.default_rng(0).integers(0, 4096, (8, 12, 10, 4), dtype=np.uint16)
    (tmp_path / "images").mkdir()
    for index, image in enumerate(pixels):
        path = tmp_path / "images" / f"{index}.tif"
        tifffile.imwrite(path, image, photometric="rgb", extrasamples=["unspecified"])
    rows = [f"{index},{'train' if index < 6 else 'val'},{index % 2}" for index in range(8)]
    (tmp_path / "image_labels.csv").write_text("\n".join(["image,split,cat", *rows]))
    assert run(capsys, "check", str(tmp_path), "--channels", "4")[0] == 1
    arguments = ["check", str(tmp_path), "--channels", "4", "--value_range", "[0, 4095]", "--json"]
    status, out, _ = run(capsys, *arguments, str(tmp_path / "check.json"))
    assert status == 0 and "4 in 8 images" in out
    found = json.loads((tmp_path / "check.json").read_text())
    np.testing.assert_allclose(found["mean"], (pixels[:6] / 4095).mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(found["std"], (pixels[:6] / 4095).std((0, 1, 2)), atol=1e-3)
    assert run(capsys, "check", str(tmp_path), "--value_range", "[3, 1]")[0] == 2
