from __future__ import annotations

from pathlib import Path

import pytest

from tw_seg.files import file_name, next_free, write_text, write_whole


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_whole(path, lambda draft: draft.write_text("old"))

    def half(draft: Path) -> None:
        draft.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, half)
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_next_free_counts(tmp_path):
    assert next_free(tmp_path / "config.yaml").name == "config.yaml"
    (tmp_path / "config.yaml").touch()
    (tmp_path / "config-2.yaml").touch()
    assert next_free(tmp_path / "config.yaml").name == "config-3.yaml"
    (tmp_path / "run").mkdir()
    assert next_free(tmp_path / "run").name == "run-2"


def test_file_names_have_no_folders():
    assert file_name("a/b\\c", ".png") == "a__b__c.png"


def test_text_is_utf8_and_whole(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "größer\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "größer\n".encode()
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    "name", ["../../x", "..", "a\nb", "\x1b[31mred", "a\u202eb", "x" * 5000, "木" * 300, "/etc/passwd"]
)
def test_file_names_lead_nowhere_and_hold_nothing_that_is_obeyed(name, tmp_path):
    folder = tmp_path / "in"
    path = folder / file_name(name, ".png")
    write_text(path, "written")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"] and [*folder.iterdir()] == [path]
    assert path.name.isprintable() and path.name.endswith(".png")


def test_long_names_that_differ_at_their_end_are_two_files():
    assert len({file_name("x" * 5000 + end, ".png") for end in "abc"}) == 3
    assert file_name("x" * 200, ".png") == "x" * 200 + ".png"
