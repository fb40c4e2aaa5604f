"""The documentation as a website: every page of this repository, the notebooks, and the reference from the docstrings.

    python docs/build_site.py --out site                # pages and reference, a few seconds
    python docs/build_site.py --out site --execute      # the notebooks with what they print and draw, a few minutes

It needs the extra [docs]. A link that leads nowhere, or a page that is in no chapter, is an error.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jupytext  # type: ignore[import-untyped]
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]

CHAPTERS = {
    "Tutorials": ["own_data", "sweeps", "lrp_mask", "explain", "decoder", "custom_rule"],
    "How to": [
        "demo",
        "app",
        "training",
        "data",
        "data_layouts",
        "predict",
        "report",
        "share",
        "gate",
        "doctor",
        "speed",
    ],
    "Facts": ["results", "support", "operations", "architecture"],
}
"""Pages of docs/ by chapter; other chapters are the notebooks, examples, experiments and the reference."""

_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)(#[^)\s]*)?(\))")
_MAIN = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


def main(argv: Sequence[str] | None = None) -> int:
    """Build the site; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="folder of the site; it is replaced")
    parser.add_argument("--execute", action="store_true", help="run the notebooks, for what they print and draw")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder) / "pages"
        navigation = write_pages(pages, execute=given.execute)
        (Path(folder) / "zensical.toml").write_text(format_config(navigation), encoding="utf-8")
        program = Path(sys.executable).with_name("zensical")
        if not program.is_file():
            parser.error("zensical is not installed: pip install 'tw-seg[docs]'")
        environment = {**os.environ, "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
        status = subprocess.run([program, "build", "--strict"], cwd=folder, env=environment).returncode
        if status == 0:
            shutil.rmtree(given.out, ignore_errors=True)
            shutil.copytree(Path(folder) / "site", given.out)
            print(f"written: {given.out / 'index.html'}")
    return status


def write_pages(pages: Path, *, execute: bool = False) -> list[dict[str, Any]]:
    """Write all that the site is made of, where it is in the repository.

    Args:
        pages: A new folder.
        execute: Whether notebooks are run.

    Returns:
        The navigation: titles and pages, or titles and lists of them.

    Raises:
        ValueError: A page of docs/ is in no chapter.
    """
    listed = {f"{name}.md" for names in CHAPTERS.values() for name in names}
    if left := {path.name for path in (ROOT / "docs").glob("*.md")} - listed - {"README.md"}:
        raise ValueError(f"docs/build_site.py: {', '.join(sorted(left))} is in none of CHAPTERS")
    experiments = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments").rglob("*.md"))
    main_pages = [name for name in _MAIN if (ROOT / name).is_file()]
    for name in (*main_pages, "docs/README.md", *(f"docs/{name}" for name in sorted(listed)), *experiments):
        _copy_page(name, pages)
    notebooks = [_write_notebook(path, pages, execute=execute) for path in sorted((ROOT / "notebooks").glob("*.py"))]
    _write_examples(pages)
    return [
        {"tw_seg": "README.md"},
        *({chapter: [f"docs/{name}.md" for name in names]} for chapter, names in CHAPTERS.items()),
        {"Notebooks": notebooks},
        {"Examples": "examples/README.md"},
        {"Reference": list(_write_reference(pages))},
        {"Experiments": experiments},
        {"About": [*main_pages[1:], {"All pages": "docs/README.md"}]},
    ]


def format_config(navigation: Sequence[dict[str, Any]]) -> str:
    """The configuration of the site: no fonts, scripts or statistics from elsewhere."""
    # JSON's lists and strings are TOML's; its objects are not.
    nav = json.dumps(list(navigation), ensure_ascii=False).replace('": ', '" = ')
    return f"""[project]
site_name = "tw_seg"
site_description = "Turns an image classifier into a segmentation model"
docs_dir = "pages"
site_dir = "site"
nav = {nav}
[project.theme]
font = false
[project.extra]
generator = false
[project.plugins.mkdocstrings.handlers.python]
paths = [{json.dumps(str(ROOT))}]
inventories = []
[project.plugins.mkdocstrings.handlers.python.options]
docstring_style = "google"
show_source = false
show_if_no_docstring = false
show_root_heading = true
heading_level = 2
separate_signature = true
show_signature_annotations = true
filters = ["!^_"]
"""


def _copy_page(name: str, pages: Path) -> None:
    """Copy a page and the files that it shows or links to; links to folders lead to their pages."""
    text = (ROOT / name).read_text(encoding="utf-8")
    home = (ROOT / name).parent

    def follow(match: re.Match[str]) -> str:
        before, target, anchor, after = match[1], match[2], match[3] or "", match[4]
        path = (home / target).resolve()
        if "://" in target or not path.is_relative_to(ROOT):
            return match[0]
        if path.is_dir():
            target = f"{target.rstrip('/')}/README.md"
        elif path.suffix == ".ipynb":
            target = target.removesuffix(".ipynb") + ".md"
        elif path.suffix != ".md" and path.is_file():
            _copy(path, pages)
        return f"{before}{target}{anchor}{after}"

    _write(pages / name, _LINK.sub(follow, text))


def _write_notebook(script: Path, pages: Path, *, execute: bool) -> str:
    """Write a notebook as a page; returns its name."""
    notebook = jupytext.read(script)
    if execute:
        NotebookClient(notebook, kernel_name="python3", timeout=1200).execute(cwd=tempfile.gettempdir())
    name = script.relative_to(ROOT).with_suffix(".md")
    parts = [part for number, cell in enumerate(notebook.cells) for part in _format_cell(cell, number, pages / name)]
    _write(pages / name, "\n\n".join(parts) + "\n")
    return name.as_posix()


def _format_cell(cell: NotebookNode, number: int, page: Path) -> Iterator[str]:
    if cell.cell_type == "markdown":
        yield cell.source
        return
    yield f"```python\n{cell.source}\n```"
    for place, output in enumerate(cell.get("outputs", [])):
        data = output.get("data", {})
        if "image/png" in data:
            picture = page.with_name(f"{page.stem}_{number}_{place}.png")
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(base64.b64decode(data["image/png"]))
            yield f"![What the cell above draws]({picture.name})"
        elif text := output.get("text") or data.get("text/plain"):
            yield f"```text\n{text.rstrip()}\n```"


def _write_examples(pages: Path) -> None:
    parts = ["# Examples", "Short scripts that run as they are; each is run by a test."]
    for script in sorted((ROOT / "examples").glob("*.py")):
        parts += [f"## {script.name}", f"```python\n{script.read_text(encoding='utf-8')}```"]
    _write(pages / "examples" / "README.md", "\n\n".join(parts) + "\n")


def _write_reference(pages: Path) -> Iterator[str | dict[str, str]]:
    """A page for each part of the package, from the docstrings of its modules; their names."""
    package = ROOT / "tw_seg"
    parts = {"tw_seg": sorted(package.glob("*.py"))}
    parts |= {
        f"tw_seg.{path.parent.name}": sorted(path.parent.rglob("*.py"))
        for path in sorted(package.glob("*/__init__.py"))
    }
    for part, files in parts.items():
        modules = [file.relative_to(ROOT).with_suffix("") for file in files if not file.name.startswith("_")]
        name = f"reference/{part}.md"
        lines = [f"# {part}", *(f"::: {'.'.join(module.parts)}" for module in modules)]
        _write(pages / name, "\n\n".join(lines) + "\n")
        yield {part: name}


def _copy(path: Path, pages: Path) -> None:
    target = pages / path.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
