from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tw_seg.data.layouts.splits import choose_rows, find_group
from tw_seg.errors import DataError, InputError

NAMES = [f"scene{i // 5}_{i % 5}" for i in range(1000)]
SHARES = {"train": 0.7, "val": 0.2, "test": 0.1}


def choose(names: list[str], split: str, tmp_path=None, **split_by) -> set[str]:
    return {names[row] for row in choose_rows(names, split, split_by, root=tmp_path)}


@given(st.integers(0, 99))
def test_shares_divide_all_images_and_no_group(seed):
    splits = {split: choose(NAMES, split, shares=SHARES, group=r"(.*)_", seed=seed) for split in SHARES}
    assert sorted(name for names in splits.values() for name in names) == sorted(NAMES)
    scenes = [{name.partition("_")[0] for name in names} for names in splits.values()]
    assert sum(map(len, scenes)) == len(set().union(*scenes)) == 200
    for split, share in SHARES.items():  # five standard deviations of a binomial distribution of 200 groups
        assert abs(len(splits[split]) / 1000 - share) < 5 * np.sqrt(share * (1 - share) / 200)


def test_new_images_change_no_old_one_and_the_order_does_not_matter():
    old = choose(NAMES[:500], "val", shares=SHARES)
    assert choose(NAMES, "val", shares=SHARES) & set(NAMES[:500]) == old
    assert choose(NAMES[499::-1], "val", shares=SHARES) == old
    assert choose(NAMES[:500], "val", shares=SHARES, seed=1) != old


def test_shares_below_one_leave_images_out():
    used = [choose(NAMES, split, shares={"train": 0.3, "val": 0.3}) for split in ("train", "val")]
    assert not used[0] & used[1] and 500 < len(used[0] | used[1]) < 700


@pytest.mark.parametrize(
    ("split", "split_by", "message"),
    [
        ("dev", {"shares": SHARES}, r"shares have no split 'dev'; there are train, val, test"),
        ("val", {"shares": {"val": 1.5}}, r"numbers above 0 that add up to at most 1"),
        ("val", {"shares": {"val": True}}, r"numbers above 0"),
        ("val", {"shares": []}, r"numbers above 0"),
        ("val", {}, r"expected one of files and shares"),
        ("val", {"shares": SHARES, "files": "a.txt"}, r"expected one of files and shares"),
        ("val", {"shares": SHARES, "group": "("}, r"group must be a regular expression, got '\('"),
        ("val", {"shares": SHARES, "group": 3}, r"group must be a regular expression, got 3"),
        ("val", {"shares": SHARES, "group": "x"}, r"group 'x' matches nothing at the beginning of the name 'scene0_0'"),
        ("val", {"shares": {"val": 1e-12}}, r"the split 'val' is empty: no image of 1000"),
    ],
)
def test_what_does_not_fit(split, split_by, message):
    with pytest.raises(DataError, match=message):
        choose_rows(NAMES, split, split_by, root=None)


def test_unknown_options():
    with pytest.raises(InputError, match="split_by knows files, shares, group, seed, not share"):
        choose_rows(NAMES, "val", {"share": 1}, root=None)


def test_groups():
    assert find_group("a1_2", "a[0-9]") == "a1" and find_group("a1_2", "(a)[0-9]") == "a"


def test_lists(tmp_path):
    names = ["a/x", "b/x", "b/y", "caf\u00e9 1", "z|;,"]
    (tmp_path / "lists").mkdir()
    lines = ["b/x.JPG", "", "y", "cafe\u0301 1.png ", "z|;,"]
    assert unicodedata.normalize("NFC", lines[3]) != lines[3]
    (tmp_path / "lists/val.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    rows = choose_rows(names, "val", {"files": "lists/{split}.txt"}, root=tmp_path)
    assert rows.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"val.txt: the list is empty"),
        ("x", r"val.txt: 1 of 1 names belong to no image \(x\); the images here are a/x, b/x: correct"),
        ("a/x\na/x.png", r"val.txt: the image 'a/x' is listed twice"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, text, message):
    (tmp_path / "val.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        choose_rows(["a/x", "b/x"], "val", {"files": "{split}.txt"}, root=tmp_path)
    with pytest.raises(DataError, match=r"train.txt: cannot read the file"):
        choose_rows(["a/x", "b/x"], "train", {"files": "{split}.txt"}, root=tmp_path)


def test_no_images(tmp_path):
    (tmp_path / "val.txt").write_text("a")
    for split_by in ({"files": "val.txt"}, {"shares": {"val": 1.0}}):
        with pytest.raises(DataError):
            choose_rows([], "val", split_by, root=tmp_path)
