from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.app.pictures import MARKS, NAMES, WHOLE, make_picture
from tests.training.test_resume import ROOT
from tw_seg.app.save import CorrectionFolder, SavedPicture
from tw_seg.data.layouts.folder import FolderDataset
from tw_seg.errors import DataError
from tw_seg.files import make_next_free


def test_the_folder_layout_reads_what_was_saved(tmp_path):
    pixels = {"first": make_picture(seed=1), "second": make_picture(seed=2)}
    folder = CorrectionFolder(tmp_path / "corrections", NAMES)
    path = folder.add({"first": SavedPicture(pixels["first"], WHOLE)})
    assert folder.add({"second": SavedPicture(pixels["second"], MARKS)}) == path == tmp_path / "corrections"
    data = FolderDataset(path)
    assert (data.classes, data.names, data.has_mask.all()) == (tuple(NAMES), ("first", "second"), True)
    assert data.labels[0].tolist() == [1, 0, 1]
    assert data.labels[1, :2].tolist() == [1, 1] and np.isnan(data.labels[1, 2])
    for index, mask in enumerate((WHOLE, MARKS)):
        np.testing.assert_array_equal(data[index].image, pixels[data.names[index]])
        np.testing.assert_array_equal(data[index].mask, mask)


def test_a_picture_is_replaced_and_no_other_folder_is_touched(tmp_path):
    (tmp_path / "out").mkdir()
    folder = CorrectionFolder(tmp_path / "out", NAMES)
    folder.add({"one": SavedPicture(make_picture(), MARKS)})
    path = folder.add({"one": SavedPicture(make_picture(), WHOLE)})
    assert path == tmp_path / "out-2" and not list((tmp_path / "out").iterdir())
    data = FolderDataset(path)
    assert data.names == ("one",) and data.labels.tolist() == [[1, 0, 1]]
    np.testing.assert_array_equal(data[0].mask, WHOLE)
    assert CorrectionFolder(tmp_path / "out", NAMES).add({}) == tmp_path / "out-3"


def test_folders_are_made_where_they_are_free(tmp_path):
    names = [make_next_free(tmp_path / "deep" / "x").name for _ in range(3)]
    assert names == ["x", "x-2", "x-3"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file.*cannot write there .*--out"):
        CorrectionFolder(tmp_path / "file" / "out", NAMES).add({})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes of POSIX")
def test_a_kill_at_any_file_leaves_a_data_set_whose_labels_and_masks_agree(tmp_path):
    line = [sys.executable, "-m", "tests.app.killed", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    times = int(done.stdout)
    assert times > 10
    for path in (tmp_path / str(at) for at in range(1, times + 1)):
        data = FolderDataset(path)
        assert data.names in (("first",), ("first", "second")) and data.classes == tuple(NAMES)
        first = data[0].mask
        assert np.array_equal(first, WHOLE) or np.array_equal(first, MARKS)
        for index in range(len(data)):
            shown = np.isin(range(len(NAMES)), data[index].mask)
            assert not (data.labels[index][shown] == 0).any(), path
            whole = not (data[index].mask == 255).any()
            assert not whole or not (data.labels[index][1:][~shown[1:]] == 1).any(), path
