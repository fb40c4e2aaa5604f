"""The documentation as a website: every link leads somewhere, and it asks no other host for anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import build_site

# What a browser fetches by itself, unlike <a href>.
FETCHED = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\s\"'>]+)")


def test_it_is_built_without_a_warning_and_is_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "site"
    assert build_site.main(["--out", str(out)]) == 0
    printed = capfd.readouterr()
    assert "warning" not in (printed.out + printed.err).lower() and "griffe" not in printed.out + printed.err
    for page in ("", "docs/own_data", "notebooks/decode_a_classifier", "examples", "reference/tw_seg.lrp"):
        text = (out / page / "index.html").read_text(encoding="utf-8")
        assert "<h1" in text and not FETCHED.findall(text)
    reference = (out / "reference" / "tw_seg.lrp" / "index.html").read_text(encoding="utf-8")
    assert 'id="tw_seg.lrp.decoder.HeatmapDecoder"' in reference and "memory_budget" in reference
    assert (out / "docs" / "picture.png").read_bytes() == (build_site.ROOT / "docs" / "picture.png").read_bytes()


def test_what_is_wrong_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setitem(build_site.CHAPTERS, "Facts", [])
    with pytest.raises(ValueError, match=r"architecture.md, operations.md, results.md, support.md is in none"):
        build_site.write_pages(tmp_path)
    monkeypatch.undo()

    def write_pages(pages: Path, *, execute: bool) -> list[dict[str, str]]:
        pages.mkdir()
        (pages / "README.md").write_text("# Title\n\n[gone](gone.md)\n")
        return [{"Home": "README.md"}]

    monkeypatch.setattr(build_site, "write_pages", write_pages)
    assert build_site.main(["--out", str(tmp_path / "site")]) != 0
    assert "page does not exist" in "".join(capfd.readouterr()) and not (tmp_path / "site").exists()


def test_what_a_notebook_draws_is_in_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "notebooks" / "n.py"
    script.parent.mkdir()
    script.write_text(
        "# %% [markdown]\n# # Title\n\n# %%\nfrom IPython.display import Image, display\nimport base64\n"
        "display(Image(data=base64.b64decode('iVBORw0KGgo='), format='png'))\nprint(6 * 7)\n"
    )
    monkeypatch.setattr(build_site, "ROOT", tmp_path)
    assert build_site._write_notebook(script, tmp_path / "pages", execute=True) == "notebooks/n.md"
    page = (tmp_path / "pages" / "notebooks" / "n.md").read_text()
    assert page.startswith("# Title\n") and "```text\n42\n```" in page and "](n_1_" in page
    (picture,) = (tmp_path / "pages" / "notebooks").glob("n_1_*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
