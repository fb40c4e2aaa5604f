"""Scores by group against scikit-learn's, on a folder made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score, roc_auc_score

from experiments.score_masks import find_name, main, resample_scores, score
from tw_seg.errors import DataError

KINDS = ("crack", "crack", "hole", "hole", "free", "free")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    run = tmp_path / "run" / "predictions"
    for path in (tmp_path / "masks", run / "masks"):
        path.mkdir(parents=True)
    for i, kind in enumerate(KINDS):
        mask = (random.random((9, 7)) < 0.3).astype(np.uint8) * (kind != "free")
        mask[0] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
        Image.fromarray(random.integers(0, 3, (9, 7), dtype=np.uint8)).save(run / "masks" / f"{i}.png")
    rows = [f"{i}.jpg,val,{kind},{i // 2}" for i, kind in enumerate(KINDS)]
    (tmp_path / "image_labels.csv").write_text("\n".join(["image,split,kind,shot", *rows, "9,train,hole,7"]))
    rows = [f"{i},0.9,{random.random():.3f},{random.random():.3f}" for i in range(len(KINDS))]
    columns = ["image", *(f"probability/{name}" for name in ("background", "cat", "dog"))]
    (run / "images.csv").write_text("\n".join([",".join(columns), *rows]))
    return tmp_path


def pixels(folder: Path, images: list[int]) -> tuple[np.ndarray, np.ndarray]:
    masks = np.concatenate([np.array(Image.open(folder / "masks" / f"{i}.png")).ravel() for i in images])
    run = folder / "run" / "predictions" / "masks"
    found = np.concatenate([np.array(Image.open(run / f"{i}.png")).ravel() for i in images])
    return masks[masks != 255] > 0, found[masks != 255] > 0


def test_scores_are_scikit_learns(folder):
    rows = score(folder, folder / "run", split="val", by="kind", resample="shot")
    assert [row[:3] for row in rows] == [
        ["run", k, n] for k, n in zip(("crack", "free", "hole", "all"), "2226", strict=True)
    ]
    for row, images in zip(rows, ([0, 1], [4, 5], [2, 3], range(6)), strict=True):
        mask, found = pixels(folder, list(images))
        for text, function in zip(row[4:8], (jaccard_score, precision_score, recall_score, f1_score), strict=True):
            if mask.any() or function is precision_score:
                assert float(text.split()[0]) == pytest.approx(function(mask, found, zero_division=0), abs=5e-4)
    assert rows[1][6] == ""  # a recall of nothing
    likely = [
        max(map(float, line.split(",")[2:]))
        for line in (folder / "run" / "predictions" / "images.csv").read_text().splitlines()[1:]
    ]
    assert float(rows[0][-1]) == pytest.approx(roc_auc_score([1, 1, 0, 0], likely[:2] + likely[4:]), abs=5e-4)
    assert rows[1][-1] == ""


def test_what_belongs_together_is_drawn_together():
    counts = np.array([[4, 0, 0], [0, 4, 4]] * 8)
    apart = resample_scores(counts, [str(i) for i in range(16)])
    together = resample_scores(counts, [str(i // 2) for i in range(16)])
    np.testing.assert_allclose(together[:, 0], 4 / 12)  # every unit is alike
    assert apart[0, 0] < 0.25 and apart[1, 0] > 0.5
    assert np.isnan(resample_scores(counts, ["one"] * 16)).all()


def test_the_table_is_printed_and_errors_name_what_is_missing(folder, capsys):
    main([str(folder), str(folder / "run"), "--by", "kind"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[0].startswith("| run | kind | images | drawn | IoU |")
    with pytest.raises(DataError, match="no column 'type'; found image, split, kind, shot"):
        main([str(folder), str(folder / "run"), "--by", "type"])
    with pytest.raises(DataError, match="no image of the split 'test' has a mask.*--split"):
        main([str(folder), str(folder / "run"), "--split", "test"])
    file = folder / "run" / "predictions" / "images.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]))
    with pytest.raises(DataError, match="no row for the image '5', which has a mask"):
        main([str(folder), str(folder / "run")])
    table = folder / "image_labels.csv"
    table.write_text(table.read_text().replace(",", ";"))
    with pytest.raises(DataError, match="expected a column 'image' and commas"):
        main([str(folder), str(folder / "run")])


def test_a_dot_in_a_name_is_no_suffix():
    assert [find_name(entry) for entry in ("a.b", "a.b.JPG", "7.png", "7")] == ["a.b", "a.b", "7", "7"]
