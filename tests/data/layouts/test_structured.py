from __future__ import annotations

import pytest

from tw_seg.data.layouts.structured import Record, list_records, read_json, read_xml
from tw_seg.errors import DataError


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{\xff}", b"[" * 10**6, b"1" * 5000, b"\0"],
    ids=["empty", "cut", "no text", "deep", "long number", "zero"],
)
def test_what_is_no_json(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.json: expected JSON .* export it again"):
        read_json(path)


def test_byte_order_marks_and_missing_files(tmp_path):
    (tmp_path / "a.json").write_text("[1]", encoding="utf-8-sig")
    (tmp_path / "a.xml").write_text("<a b='\u00e9'/>", encoding="utf-16")
    assert read_json(tmp_path / "a.json") == [1] and read_xml(tmp_path / "a.xml").get("b") == "\u00e9"
    for read in (read_json, read_xml):
        with pytest.raises(DataError, match=r"cannot read the file \(Is a directory\)"):
            read(tmp_path)


def test_values_by_type(tmp_path):
    record = Record({"t": "x", "n": "1.5", "w": 3.0, "l": [1, "2"], "m": {"t": 1}, "none": None}, tmp_path / "f", "a")
    assert (record.text("t"), record.number("n"), record.whole("w"), record.entries("l")) == ("x", 1.5, 3, [1, "2"])
    assert record.numbers(record.entries("l"), "l") == [1.0, 2.0]
    assert record.text("none", "y") == "y" and record.number("missing", None) is None
    for read, message in [
        (lambda: record.text("n2"), "f, a: expected 'n2', found 'l', 'm', 'n', 'none', 't', 'w'"),
        (lambda: record.text("w"), "f, a: expected text in 'w', found 3.0"),
        (lambda: record.whole("n"), "f, a: expected a whole number in 'n', found 1.5"),
        (lambda: record.number("t"), "f, a: expected a number in 't', found 'x'"),
        (lambda: record.entries("t"), "f, a: expected a list in 't', found 'x'"),
        (lambda: record.numbers("t", "t"), "f, a: expected a list of numbers in 't', found 't'"),
        (lambda: record.record("m").text("t"), "f, a.m: expected text in 't', found 1"),
        (lambda: list(record.records("l")), r"f, a.l\[0\]: expected a mapping, found 1"),
        (lambda: list(list_records("x" * 99, tmp_path / "f")), "f: expected a list, found str 'xxx"),
        (lambda: Record(None, tmp_path / "f"), "f: expected a mapping, found None"),
    ]:
        with pytest.raises(DataError, match=message):
            read()


@pytest.mark.parametrize("value", [True, None, float("nan"), float("inf"), 2**31, -(10**400), "1e99", [], "x"])
def test_what_is_no_number(tmp_path, value):
    with pytest.raises(DataError, match="f: expected a number"):
        Record({}, tmp_path / "f").check_number(value, "k")
