"""The pages are true: their Python runs, their commands run or parse, what they show is what comes out.

The README has the same tests in ``test_readme.py``; a paragraph that moves to a page stays tested.

In a page, a Python block that starts with ``# name.py`` is that file; a ``text`` block after a shell block shows its
output, ``...`` for lines left out and any number for any other; ``# exit status 2`` is what a command ends with.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_readme import (
    OTHER_LANGUAGES,
    ROOT,
    SHELLS,
    blocks,
    check_command,
    commands,
    inline_options,
    known_options,
    missing_files,
    unknown_blocks,
)
from tw_seg.cli import main as tw_seg_main

DOCS = ROOT / "docs"
EXPERIMENTS = [
    ROOT / "experiments" / name
    for name in (
        "README.md",
        "image_labels_only/README.md",
        "explain/README.md",
        "label_efficiency/README.md",
        "next/README.md",
        "reliability/README.md",
    )
]
PAGES = [*sorted(DOCS.glob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *EXPERIMENTS]
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf)%?", re.IGNORECASE)


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The text of a page, with a folder to work in that has the configs and that modules can be imported from."""
    (tmp_path / "experiments").mkdir()
    for folder in ("configs", "sweeps"):
        (tmp_path / "experiments" / folder).symlink_to(ROOT / "experiments" / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Path(request.param).read_text(encoding="utf-8")
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def words(text: str) -> list[list[str]]:
    """The words of every line, numbers and rulers as such."""
    lines = [[NUMBER.sub("#", word) for word in line.split()] for line in text.splitlines()]
    return [["---" if re.fullmatch("-+", word) else word for word in line] for line in lines if line]


def missing_lines(shown: str, output: str) -> list[str]:
    """The lines that a page shows and that do not come out in this order."""
    rest = iter(words(output))
    return [" ".join(line) for line in words(shown) if line != ["..."] and line not in rest]


def test_numbers_may_differ_and_words_may_not() -> None:
    output = "head\n-----\na (x=1e-06)  1.5%\nb 2\n"
    assert missing_lines("head\n---\na (x=2e-06) 30%\n...\nb -1.3e+02", output) == []
    assert missing_lines("head\n...\nc 2", output) == ["c #"]
    assert missing_lines("b 2\nhead", output) == ["head"]


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+\.md)\)", index)) == {path.name for path in DOCS.glob("*.md")} - {"README.md"}


def test_blocks_run_and_show_what_comes_out(page: str, capfd: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {"__name__": "page"}
    output = ""
    for block in blocks(page):
        at = f"line {block.line}"
        if block.language == "python":
            file = re.match(r"# (\w+\.py)\n", block.code)
            if file:
                Path(file[1]).write_text(block.code, encoding="utf-8")
                continue
            exec(compile("\n" * (block.line - 1) + block.code, at, "exec"), namespace)
        elif block.language in SHELLS:
            output = run_shell(block.code, capfd, at)
        elif block.language == "text" and output:
            assert missing_lines(block.code, output) == [], at
            output = ""
        else:
            assert block.language in OTHER_LANGUAGES, at


def run_shell(code: str, capfd: pytest.CaptureFixture[str], at: str) -> str:
    """Run the commands of a block; those that train are only parsed."""
    output = ""
    for line in code.replace("\\\n", " ").splitlines():
        expected = re.search(r"# exit status (\d+)", line)
        for program, *arguments in commands(f"```sh\n{line}\n```\n"):
            if [program, *arguments[:1]] != ["tw-seg", "doctor"]:
                check_command([program, *arguments], capfd)
                continue
            capfd.readouterr()
            status = tw_seg_main(arguments)
            captured = capfd.readouterr()
            output += captured.out + captured.err
            assert status == int(expected[1] if expected else 0), f"{at}: {output}"
    return output


def test_options_in_the_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    known = known_options(capsys)
    found = {(path.name, option) for path in PAGES for option in inline_options(path.read_text(encoding="utf-8"))}
    # `--a.b.c` is a key of a mapping that is an option, `--a.b_kwargs.c.d` one inside such a key.
    named = {key: {key[1], key[1].rpartition(".")[0], re.sub(r"(_kwargs)\..*", r"\1", key[1])} for key in found}
    assert {key for key, options in named.items() if not options & known} == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_block_escapes(path: Path) -> None:
    assert unknown_blocks(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_exist(path: Path) -> None:
    """Links start at the page's folder; paths in the text start at the repository's."""
    text = path.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (path.parent / link).exists()] == []
    assert missing_files(re.sub(r"\]\([^)]*\)", "]", text), ROOT) == []
