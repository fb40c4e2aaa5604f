from __future__ import annotations

import numpy as np
import pytest

from tests.app.tiny import NAMES, make_picture
from tw_seg.app.save import CorrectionFolder, SavedPicture
from tw_seg.data.layouts.folder import FolderDataset
from tw_seg.errors import DataError
from tw_seg.files import make_next_free

WHOLE = np.zeros((48, 64), dtype=np.uint8)
WHOLE[16:32, 20:40] = 2
MARKS = np.full((48, 64), 255, dtype=np.uint8)
MARKS[:4], MARKS[20:24] = 0, 1


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
