from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tw_seg.data.layouts.tables import read_table
from tw_seg.data.splitting.write import check_free, list_taken, write_splits
from tw_seg.errors import DataError, InputError

TABLE = '\ufeffimage;Patient;cat\na.JPG;p 1;1\nb;"p;2";0\nc.d.png;;1\n'


def test_a_column_is_added_and_everything_else_stays(tmp_path):
    path = tmp_path / "image_labels.csv"
    path.write_text(TABLE, encoding="utf-8")
    assert list_taken(tmp_path, "folder") == ()
    check_free(tmp_path, "folder", ("train", "val"))
    assert write_splits(tmp_path, "folder", ["c.d", "a", "b"], np.array(["val", "train", "train"])) == [path]
    assert path.read_text(encoding="utf-8") == (
        '\ufeffimage;Patient;cat;split\na.JPG;p 1;1;train\nb;"p;2";0;train\nc.d.png;;1;val\n'
    )
    assert list_taken(tmp_path, "folder") == ("train", "val")
    with pytest.raises(InputError, match="the splits train, val are there already; --force replaces them"):
        check_free(tmp_path, "folder", ("train", "val"))
    write_splits(tmp_path, "folder", ["b"], np.array(["test"]))  # others keep theirs
    assert list_taken(tmp_path, "folder") == ("train", "test", "val")
    check_free(tmp_path, "folder", ("train", "val"), keep=("train", "test", "val"))
    assert os.listdir(tmp_path) == ["image_labels.csv"]


def test_a_column_in_another_case_is_filled_in(tmp_path):
    path = tmp_path / "image_labels.csv"
    path.write_text("Split,image\n,a\n,b\n")
    check_free(tmp_path, "folder", ("train",))
    write_splits(tmp_path, "folder", ["a", "b"], np.array(["train", "val"]))
    assert path.read_text() == "split,image\ntrain,a\nval,b\n"


def test_a_table_without_an_image_stays_as_it_was(tmp_path):
    path = tmp_path / "image_labels.csv"
    path.write_text("image,cat\na,1\n")
    with pytest.raises(DataError, match=r"no row for 1 of 2 images \(b\); add them"):
        write_splits(tmp_path, "folder", ["a", "b"], np.array(["train", "val"]))
    assert path.read_text() == "image,cat\na,1\n"


@pytest.mark.parametrize(("layout", "folder"), [("voc", "ImageSets/Segmentation"), ("coco", "splits")])
def test_lists(tmp_path, layout, folder):
    paths = write_splits(tmp_path, layout, ["a", "é 1", "b"], np.array(["train", "val", "train"]))
    assert [path.relative_to(tmp_path) for path in paths] == [Path(folder) / "train.txt", Path(folder) / "val.txt"]
    assert paths[0].read_text() == "a\nb\n" and paths[1].read_text(encoding="utf-8") == "é 1\n"
    assert list_taken(tmp_path, layout) == ("train", "val")
    check_free(tmp_path, layout, ("test",))
    with pytest.raises(InputError, match="the splits val are there already"):
        check_free(tmp_path, layout, ("val",))


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "splits").write_text("a file")
    with pytest.raises(InputError, match="the split cannot be written"):
        write_splits(tmp_path, "coco", ["a"], np.array(["train"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,cat\na\n", "line 2: expected 2 columns, found 1"),
        ("name,cat\na,1\n", r"expected a column 'image' in the first line, found \['name', 'cat'\]"),
    ],
)
def test_tables_that_are_none(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(path)
