"""JSON and YAML from elsewhere: what would fill the stack or the memory, or make an object, is a ValueError at once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tw_seg import plain_files
from tw_seg.plain_files import read_json, read_yaml

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("abc: -{}[]é\n"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("ab"), inner),
    max_leaves=8,
)


@given(value=plain)
def test_json_is_read_as_it_is_in_both(value, tmp_path_factory):
    """JSON is YAML, too: two readers, one content."""
    path = tmp_path_factory.mktemp("plain") / "a.json"
    path.write_text(json.dumps(value))
    assert read_json(path) == value
    assert read_yaml(path) == value


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "{", "", "nul", '{"a": 1,}', "9" * 10_000])
def test_json_that_is_none(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: !!python/object/apply:os.system ['touch ran']", "could not determine a constructor"),
        ("!!python/name:os.system", "could not determine a constructor"),
        ("!!python/object/new:os.system ['touch ran']", "could not determine a constructor"),
        ("- " * 200 + "a", "nested too deeply"),
        ("a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(60)), "aliases"),
        ("a: 2001-99-99", "month"),
        ("a: [", "parsing"),
    ],
)
def test_yaml_that_is_refused(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_yaml(tmp_path / "a.yaml")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_too_large_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_text(" " * 100 + "1")
    assert read_json(path) == read_yaml(path) == 1
    monkeypatch.setattr(plain_files, "LARGEST_JSON", 100)
    monkeypatch.setattr(plain_files, "LARGEST_YAML", 100)
    for read in (read_json, read_yaml):
        with pytest.raises(ValueError, match="it has 101 bytes"):
            read(path)
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "b")
