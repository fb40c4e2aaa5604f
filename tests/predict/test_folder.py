from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path

import pytest

from tw_seg.errors import DataError, InputError
from tw_seg.predict.folder import PredictionFolder, name_errors
from tw_seg.types import Failure

SETTINGS = {"checkpoint": "abc", "scales": (0.5, 1.0)}


def open_folder(path: Path, settings=SETTINGS, outputs=("masks",), **kwargs) -> PredictionFolder:
    return PredictionFolder(path, settings, outputs=outputs, **kwargs)


def predict(folder: PredictionFolder, name: str, picture: Path) -> None:
    (folder.path / "masks").mkdir(exist_ok=True)
    (folder.path / "masks" / f"{name}.png").touch()
    folder.add({"image": name, "height": 1, "pixels/background": 1}, picture)


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(b"1")
    return path


def test_what_is_done_is_known_to_the_next_run(tmp_path, picture):
    folder = open_folder(tmp_path / "out")
    predict(folder, "a", picture)
    again = open_folder(tmp_path / "out")
    assert again.is_done("a", picture) and not again.is_done("b", picture)
    # Not where its mask is gone, nor where the picture is another one.
    (tmp_path / "out" / "masks" / "a.png").rename(tmp_path / "a.png")
    assert not again.is_done("a", picture)
    (tmp_path / "a.png").rename(tmp_path / "out" / "masks" / "a.png")
    assert again.is_done("a", picture)
    os.utime(picture, ns=(1, 1))
    assert not again.is_done("a", picture)
    picture.unlink()
    assert not again.is_done("a", picture)


def test_half_a_line_and_a_draft_of_a_killed_run_are_left_out(tmp_path, picture):
    folder = open_folder(tmp_path / "out")
    predict(folder, "a", picture)
    lines = tmp_path / "out" / "images.jsonl"
    whole = lines.read_text()
    half_a_character = whole.replace('"a"', '"b\\ud800"')
    lines.write_text(whole + half_a_character + whole[:-9].replace('"a"', '"b"'))
    draft = tmp_path / "out" / "masks" / ".b.png.99.tmp"
    draft.touch()
    again = open_folder(tmp_path / "out")
    assert again.is_done("a", picture) and not again.is_done("b", picture)
    assert lines.read_text() == whole and not draft.exists()
    predict(again, "b", picture)
    again.finish()
    with open(tmp_path / "out" / "images.csv") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["a", "b"]


def test_lines_with_other_columns_are_refused(tmp_path, picture):
    folder = open_folder(tmp_path / "out")
    for name in ("a", "b"):
        predict(folder, name, picture)
    lines = tmp_path / "out" / "images.jsonl"
    first, second = lines.read_text().splitlines(keepends=True)
    refused = "images.jsonl: the pictures 'a' and 'b' have other columns; .*--overwrite"
    for damaged in (second.replace("height", "heigt"), second.replace('"height"', '"width": 2, "height"')):
        lines.write_text(first + damaged)
        with pytest.raises(InputError, match=refused):
            open_folder(tmp_path / "out")
        assert lines.read_text() == first + damaged
    lines.write_text(first.replace("height", "heigt"))
    again = open_folder(tmp_path / "out")
    with pytest.raises(InputError, match=refused):
        predict(again, "b", picture)
    assert open_folder(tmp_path / "out", overwrite=True) is not None and lines.read_text() == ""


def test_tables_are_sorted_and_failures_have_their_own(tmp_path, picture):
    folder = open_folder(tmp_path / "out")
    for name in ("b", "a"):
        predict(folder, name, picture)
    folder.finish([Failure("c", 'c.png: "broken", truncated')])
    assert (tmp_path / "out" / "images.csv").read_text().splitlines() == [
        "image,height,pixels/background",
        "a,1,1",
        "b,1,1",
    ]
    with open(tmp_path / "out" / "failures.csv") as file:
        assert list(csv.DictReader(file)) == [{"name": "c", "message": 'c.png: "broken", truncated'}]
    folder.finish()
    assert not (tmp_path / "out" / "failures.csv").exists()


@pytest.mark.parametrize(
    ("settings", "outputs", "message"),
    [
        ({**SETTINGS, "checkpoint": "xyz"}, ("masks",), "checkpoint: abc there, xyz now"),
        ({"checkpoint": "abc"}, ("masks",), r"scales: \[0.5, 1.0\] there, None now"),
        (SETTINGS, ("masks", "overlays"), "outputs: .*overlays.* now"),
    ],
)
def test_a_folder_made_otherwise_is_refused_and_stays_as_it_was(settings, outputs, message, tmp_path, picture):
    predict(open_folder(tmp_path / "out"), "a", picture)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=f"made otherwise .*{message}.*--overwrite"):
        open_folder(tmp_path / "out", settings, outputs)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    folder = open_folder(tmp_path / "out", settings, outputs, overwrite=True)
    assert not folder.is_done("a", picture) and not (tmp_path / "out" / "masks" / "a.png").exists()
    assert json.loads((tmp_path / "out" / "prediction.json").read_text())["outputs"] == list(outputs)


def test_other_files_are_not_written_over(tmp_path):
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match="holds files that no prediction.json speaks of"):
        open_folder(tmp_path)


def test_what_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(DataError, match=r"out.*: cannot write there \(.*\); choose another folder"):
        open_folder(tmp_path / "out")
    with pytest.raises(DataError, match=r"m.png: cannot write there \(No space.*\); free some space: the same command"):
        with name_errors(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "m.png")
