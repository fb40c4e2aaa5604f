"""The drawing of the package is made from its imports, and is up to date."""

from __future__ import annotations

import graphlib
from pathlib import Path

import pytest

from experiments import draw_architecture as drawing


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package: a imports b and c, b imports c; the folder d imports a from inside a function."""
    root = tmp_path / "small"
    (root / "d").mkdir(parents=True)
    (root / "__init__.py").write_text("from small.d import e\n")
    (root / "__main__.py").write_text("import small.a\n")
    (root / "a.py").write_text("import os\nfrom small import b, c\n")
    (root / "b.py").write_text("from .c import name\n")
    (root / "c.py").write_text("")
    (root / "d" / "__init__.py").write_text("")
    (root / "d" / "e.py").write_text("from small.d import f\ndef g():\n    from ..a import name\n")
    (root / "d" / "f.py").write_text("if TYPE_CHECKING:\n    import small.b\n")
    monkeypatch.setattr(drawing, "ROOT", tmp_path)
    monkeypatch.setattr(drawing, "CAPTIONS", {"small": {}, "small/d": {"e": "a caption"}})
    return root


def test_parts_are_files_and_folders_and_arrows_are_imports(package: Path) -> None:
    assert drawing.find_imports(package) == {"a": {"b", "c"}, "b": {"c"}, "c": set(), "d": {"a", "b"}}
    assert drawing.find_imports(package / "d") == {"e": {"f"}, "f": set()}


def test_the_files_of_a_folder_can_be_one_part(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "CAPTIONS", {"small": {drawing.FILES: "", "d": ""}})
    assert drawing.find_imports(package) == {"a, b, c": set(), "d": {"a, b, c"}}


def test_implied_arrows_are_left_out(package: Path) -> None:
    assert drawing.read_package() == {
        "small": {"a": {"b"}, "b": {"c"}, "c": set(), "d": {"a"}},
        "small/d": {"e": {"f"}, "f": set()},
    }


def test_a_circle_is_refused(package: Path) -> None:
    (package / "c.py").write_text("import small.a\n")
    with pytest.raises(graphlib.CycleError):
        drawing.read_package()


def test_arrows_point_down_and_none_goes_through_a_box() -> None:
    parts = {"top": {"left", "right"}, "left": {"low"}, "right": set(), "low": {"base"}, "base": set(), "on": {"base"}}
    parts["high"] = {"top", "on"}
    places, ways = drawing.place(parts)
    for (part, other), way in ways.items():
        levels = [places[spot][1] for spot in way]
        assert way[0] == part and way[-1] == other
        assert levels == list(range(levels[0], levels[-1] - 1, -1))  # one row at a time
    for level in {y for _, y, _ in places.values()}:
        row = sorted((x - width / 2, x + width / 2) for x, y, width in places.values() if y == level)
        assert all(right < left for (_, right), (left, _) in zip(row, row[1:], strict=False))


def test_arrows_do_not_cross_where_they_need_not() -> None:
    parts = {"a": {"x", "y"}, "b": {"y", "z"}, "x": set(), "y": set(), "z": set()}
    places, ways = drawing.place(parts)
    ends = sorted((places[part][0], places[other][0]) for part, other in ways)
    assert [to for _, to in ends] == sorted(to for _, to in ends)


def test_a_drawing_carries_what_it_shows(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = package.parent / "drawing.png"
    assert drawing.main(["--output", str(path)]) == 0
    assert drawing.read_drawing(path) == capsys.readouterr().out.strip()
    assert drawing.main(["--output", str(path), "--check"]) == 0
    (package / "a.py").write_text("")
    assert drawing.main(["--output", str(path), "--check"]) == 1


def test_the_drawing_is_up_to_date() -> None:
    shown = drawing.describe(drawing.read_package())
    assert drawing.read_drawing() == shown, "run python -m experiments.draw_architecture"


def test_every_part_has_a_caption_and_every_caption_a_part() -> None:
    for folder, captions in drawing.CAPTIONS.items():
        parts = drawing.find_imports(drawing.ROOT / folder)
        assert {drawing.FILES if ", " in part else part for part in parts} == captions.keys()
