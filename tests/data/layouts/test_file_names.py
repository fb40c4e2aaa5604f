from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from tw_seg.data.layouts.file_names import (
    FileTree,
    choose_mask,
    describe_strays,
    find_near_name,
    list_by_stem,
    show_names,
)
from tw_seg.errors import DataError


@pytest.mark.parametrize(
    ("name", "other", "how"),
    [
        ("im0", "im0_mask", "with '_mask' in its name"),
        ("im0", "mask_im0", "with 'mask_' in its name"),
        ("im0", "im0-labelIds", "with '-labelIds' in its name"),
        ("im0_img", "im0_seg", "with '_seg' in its name"),
        ("IMG_0", "img_0", "in another case"),
        ("caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9"), "in another Unicode form (NFC, NFD)"),
        ("a", "a.jpg", "with a suffix or a space in its name"),
        ("a.png", "A", "in another case"),
        ("a.png", "a.PNG", "in another case"),
        ("a.jpg", "a.png", "with another suffix"),
        ("im7", "im0007", "with other zeros in front of a number"),
    ],
)
def test_near_names(name, other, how):
    assert find_near_name(name, ["else", name, other]) == (other, how)


@pytest.mark.parametrize("other", ["im1", "im01", "image", "xim0", "im0_1", "im00_b"])
def test_names_that_are_not_near(other):
    assert find_near_name("im10", [other]) is None and find_near_name("im10", ["im10"]) is None


def paths(*names: str) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name in names:
        found.setdefault(Path(name).stem, []).append(Path("masks") / name)
    return found


def test_strays():
    assert describe_strays(paths("a.png", "b.png"), paths("a.jpg", "b.png", "c.png")) == ""
    assert describe_strays(paths("a.png"), {}, {"a"}) == ""
    said = describe_strays(paths("a.png", "x.png", "b_gt.png"), paths("a.jpg", "b.jpg"))
    assert "masks: 2 of 3 mask files belong to no image by name and are not used (x.png, b_gt.png)" in said
    assert "'b_gt.png' is like the image 'b.jpg', but with '_gt' in its name: rename it" in said
    assert "an image here is 'b.jpg'" in describe_strays(paths("y.png"), paths("b.jpg"))
    assert "there is no image" in describe_strays(paths("y.png"), {})


def test_listing(tmp_path):
    for name in ("a.JPG", "a.png", "b.tif", "notes.txt", "._a.png"):
        (tmp_path / name).touch()
    assert {stem: [path.name for path in found] for stem, found in list_by_stem(tmp_path).items()} == {
        "a": ["a.JPG", "a.png"],
        "b": ["b.tif"],
    }
    with pytest.raises(DataError, match="nowhere: cannot list the folder"):
        list_by_stem(tmp_path / "nowhere")
    assert show_names([1, 2]) == "1, 2"


def test_one_mask_of_a_name():
    assert choose_mask([]) is None
    assert choose_mask([Path("a.PNG")]) == Path("a.PNG") == choose_mask([Path("a.PNG"), Path("a.jpg")])
    with pytest.raises(DataError, match=r"a.jpg: masks must be PNG files"):
        choose_mask([Path("a.jpg")])
    with pytest.raises(DataError, match=r"a.PNG: expected one mask of this name, found 'a.png' too; remove one"):
        choose_mask([Path("a.PNG"), Path("a.png")])


def test_a_tree_finds_files_in_any_unicode_form_and_suffixes_in_any_case(tmp_path):
    (tmp_path / "b" / "caf\u00e9").mkdir(parents=True)
    for name in ("cafe\u0301.JPG", "x.jpg", "x.png", "b/y.1.tif", "b/caf\u00e9/z.png"):
        (tmp_path / name).touch()
    tree = FileTree(tmp_path)
    expected = {
        "caf\u00e9.jpg": ["cafe\u0301.JPG"],
        "cafe\u0301.JPG": ["cafe\u0301.JPG"],
        "x.jpg": ["x.jpg"],
        "x": ["x.jpg", "x.png"],
        "x.tif": [],
        "b/y.1.tif": ["y.1.tif"],
        "b/y.1": ["y.1.tif"],
        "b/caf\u00e9/z.png": ["z.png"],
    }
    assert {entry: [path.name for path in tree.find_file(entry)] for entry in expected} == expected
    for entry in ("", "..", "nothing/x.jpg", "a\0b.png", "a" * 5000, "/x.jpg"):
        assert tree.find_file(entry) == []
