"""What the README says is true: its Python runs, its commands parse, its files exist.

There is no marker to leave a block out. The two main commands are run elsewhere: the tests by CI, the main
job by a slow test of its own.
"""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from docs import build_site
from tw_seg.cli import app, demo, explain, export, predict, reliability, sweep
from tw_seg.cli import main as tw_seg_main
from tw_seg.cli import next as next_images
from tw_seg.cli.data import SUBCOMMANDS
from tw_seg.sweeps.definition import read_sweep

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

SHELLS = ("sh", "bash")
OTHER_LANGUAGES = ("text", "yaml")  # shown, not run
RUN_BY_CI = ("pip", "ruff", "mypy", "pytest")
FENCED = re.compile(r"^([ \t]*)(`{3,}|~{3,})([^\n`]*)\n(.*?)^\1\2[ \t]*$", re.DOTALL | re.MULTILINE)
FOLDERS = ("docs", "examples", "experiments", "notebooks", "tests", "tw_seg")


class Block(NamedTuple):
    """A fenced block; ``line`` is the number of its first line of code."""

    language: str
    code: str
    line: int


def blocks(text: str) -> list[Block]:
    found = []
    for match in FENCED.finditer(text):
        line = text.count("\n", 0, match.start(4)) + 1
        found.append(Block(match[3].strip(), match[4], line))
    return found


def run_python(text: str, filename: str) -> dict[str, Any]:
    """Run all Python blocks in order, in one fresh namespace; a failure points at its line of the file."""
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in blocks(text):
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, filename, "exec"), namespace)
    return namespace


def commands(text: str) -> list[list[str]]:
    """The words of every command in the shell blocks, one list for each part of a chain."""
    found = []
    for block in blocks(text):
        if block.language not in SHELLS:
            continue
        for line in block.code.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for token in [*lexer, ";"]:
                if not re.fullmatch(r"[;&|]+", token):
                    words.append(token)
                elif words:
                    found.append(_without_settings(words))
                    words = []
    return found


def _without_settings(words: list[str]) -> list[str]:
    """A command without the ``NAME=value`` in front, its program without the folder it lies in."""
    while len(words) > 1 and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    return [Path(words[0]).name, *words[1:]]


def check_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Fail unless the command parses, is run by CI, or makes the virtual environment that CI makes."""
    program, *arguments = words
    line = shlex.join(words)
    if program == "tw-seg" and arguments[:1] == ["completion"]:
        assert arguments[1:2] == ["bash"], "tests/cli/test_completion.py runs that one"
    elif program == "tw-seg" and arguments[:1] in (["explain"], ["reliability"]):
        parser = {"explain": explain, "reliability": reliability}[arguments[0]].create_parser()
        assert parser.parse_args(arguments[1:]), "tests/cli/ runs them"
    elif program == "tw-seg" and arguments[:1] == ["sweep"]:
        given = sweep.create_parser().parse_args(arguments[1:])
        assert read_sweep(ROOT / given.file), "tests/experiments/test_sweeps.py runs its commands"
    elif program == "tw-seg" and arguments[:1] == ["export"]:
        assert export.create_parser().parse_args(arguments[1:]).out, "tests/cli/test_export.py runs such commands"
    elif program == "tw-seg" and arguments[:1] == ["app"]:
        assert app.create_parser().parse_args(arguments[1:]), "tests/app/test_page.py runs such commands"
    elif program == "tw-seg" and arguments[:1] == ["demo"]:
        assert demo.create_parser().parse_args(arguments[1:]), "tests/cli/test_demo.py runs such commands"
    elif program == "tw-seg" and arguments[:1] == ["next"]:
        assert next_images.create_parser().parse_args(arguments[1:]).out, "tests/cli/test_next.py runs such commands"
    elif program == "tw-seg" and arguments[:1] == ["data"]:
        module = importlib.import_module(f"tw_seg.cli.data.{arguments[1]}")
        assert module.create_parser().parse_args(arguments[2:]).path, "tests/cli/data runs these"
    elif program == "tw-seg" and arguments[:1] == ["test"] and not arguments[1].startswith("-"):
        assert arguments[2:] == [], "tests/cli/test_lightning.py runs such a command"
    elif program == "tw-seg" and arguments[:1] == ["predict"] and "--out" in arguments:
        assert predict.create_parser().parse_args(arguments[1:]).out, "tests/cli/test_predict.py runs such commands"
    elif program == "tw-seg":
        status, output = exit_status(tw_seg_main, [*arguments, "--print_config"], capsys)
        assert status == 0, f"{line}:\n{output}"
    elif program.startswith("python") and " ".join(arguments).startswith("-m experiments."):
        module = importlib.import_module(arguments[1])
        main = (importlib.import_module(f"{arguments[1]}.__main__") if hasattr(module, "__path__") else module).main
        status, output = exit_status(main, [*arguments[2:], "--help"], capsys)
        assert status == 0, f"{line}:\n{output}"
        # --help wins over an option that argparse does not know.
        unknown = options(" ".join(arguments[2:])) - options(output)
        assert not unknown, f"{line}: no option {unknown} in\n{output}"
    elif program == "python" and arguments[:1] == ["docs/build_site.py"]:
        assert exit_status(build_site.main, [*arguments[1:], "--help"], capsys)[0] == 0, "tests/test_site.py runs it"
    elif program == "pre-commit":
        assert (ROOT / ".pre-commit-config.yaml").is_file()
    else:
        known = program in RUN_BY_CI or (program.startswith("python") and arguments[:2] == ["-m", "venv"])
        assert known, f"no test knows the command {line}: check it here or name it in RUN_BY_CI"


def exit_status(main: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """How a command that only parses ends, and what it prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    captured = capsys.readouterr()
    return stopped.value.code or 0, captured.out + captured.err


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-zA-Z][\w.-]*", text))


def inline_options(text: str) -> set[str]:
    """Options in the running text, between backticks."""
    prose = FENCED.sub("", text)
    return {option for span in re.findall(r"`([^`]+)`", prose) for option in options(span)}


def named_files(text: str) -> set[str]:
    """Relative targets of links and images, and paths into the project's folders, wherever they stand."""
    links = re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    local = {link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)}
    text = re.sub(r"\b[a-z]+://\S+", "", text)
    folders = "|".join(FOLDERS)
    paths = re.findall(rf"(?<![\w./-])(?:(?:{folders})/|\.ci/)[\w*./-]*", text)
    return local | {path.rstrip("./-") for path in paths}


def missing_files(text: str, root: Path) -> list[str]:
    return sorted(name for name in named_files(text) if not any(root.glob(name)))


def unknown_blocks(text: str) -> list[str]:
    """Blocks that no test would look at: an unknown language, or a fence that is not closed."""
    known = ("python", *SHELLS, *OTHER_LANGUAGES)
    found = [f"line {block.line}: {block.language!r}" for block in blocks(text) if block.language not in known]
    fences = re.findall(r"^[ \t]*(?:`{3,}|~{3,})", text, re.MULTILINE)
    return found + ["a fence that is not closed"] * (len(fences) != 2 * len(blocks(text)))


def known_options(capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Every option of ``tw-seg`` and of the experiments that pages speak of."""
    known = {"--help", "--help-all", "--version"}
    helps = [
        "fit --help-all",
        "test --help-all",
        "predict --help-all",
        "sweep --help",
        "doctor --help",
        "app --help",
        "demo --help",
        "export --help",
    ]
    helps += ["explain --help", "reliability fit --help", "reliability score --help", "next --help"]
    for command in (*helps, *(f"data {name} --help" for name in SUBCOMMANDS)):
        known |= options(exit_status(tw_seg_main, command.split(), capsys)[1])
    for name in (
        "main_job",
        "benchmarks.__main__",
        "draw_architecture",
        "support_table",
        "score_masks",
        "score_demo",
        "explain.compare",
        "reliability.compare",
        "next.measure",
    ):
        main = importlib.import_module(f"experiments.{name}").main
        known |= options(exit_status(main, ["--help"], capsys)[1])
    return known | options(exit_status(build_site.main, ["--help"], capsys)[1])


# The functions above, on a small README.

SAMPLE = """\
# Sample
![a picture](docs/picture.png) and [a link](https://example.org/docs/none.md), [here](#sample), [CI](.ci/run).

```python
x = 1
```

Use `--data.budget 3`, `tw-seg fit --config a.yaml` and `experiments/configs/*.yaml`. ``--other``

```sh
# a comment
python3 -m venv .venv && .venv/bin/tw-seg fit --config "my file.yaml" \\
    --data.budget 3; A=1 python -m experiments.main_job  # --not an option
```

```python
y = x + 1
```

```text
tw-seg nothing
```
"""


def test_blocks_have_language_code_and_line() -> None:
    assert [(b.language, b.line) for b in blocks(SAMPLE)] == [
        ("python", 5),
        ("sh", 11),
        ("python", 17),
        ("text", 21),
    ]
    assert blocks(SAMPLE)[2].code == "y = x + 1\n"


def test_python_blocks_build_on_each_other_and_fail_at_their_line() -> None:
    assert run_python(SAMPLE, "sample.md")["y"] == 2
    with pytest.raises(NameError) as failed:
        run_python(SAMPLE.replace("y = x", "y = z"), "sample.md")
    assert failed.traceback[-1].lineno == 16  # counted from 0


def test_commands_are_split_and_joined() -> None:
    assert commands(SAMPLE) == [
        ["python3", "-m", "venv", ".venv"],
        ["tw-seg", "fit", "--config", "my file.yaml", "--data.budget", "3"],
        ["python", "-m", "experiments.main_job"],
    ]


def test_options_and_files_are_found_in_text() -> None:
    assert inline_options(SAMPLE) == {"--data.budget", "--config", "--other"}
    assert named_files(SAMPLE) == {"docs/picture.png", ".ci/run", "experiments/configs/*.yaml"}


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "picture.png").touch()
    assert missing_files(SAMPLE, tmp_path) == [".ci/run", "experiments/configs/*.yaml"]


def test_blocks_that_no_test_runs_are_named() -> None:
    assert unknown_blocks(SAMPLE) == []
    assert unknown_blocks("```ruby\nx\n```\n") == ["line 2: 'ruby'"]
    assert unknown_blocks("```python\nx\n") == ["a fence that is not closed"]


@pytest.mark.parametrize(
    "command",
    [
        "tw-seg fit --config experiments/configs/data/folder.yaml --data.dataset_kwargs.root there",
        "tw-seg fit --help",
        "python -m experiments.main_job --seed 1",
        "python3 -m venv .venv",
    ],
)
def test_a_right_command_passes(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    check_command(command.split(), capsys)


@pytest.mark.parametrize(
    "command",
    [
        "tw-seg fit --no.such.option 3",
        "tw-seg fit --config experiments/configs/no_such_file.yaml",
        "tw-seg fit --model.lr fast",
        "python -m experiments.main_job --no_such_option 3",
        "python -m experiments.main_job --seed one",
        "curl example.org",
    ],
)
def test_a_wrong_command_fails(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(AssertionError):
        check_command(command.split(), capsys)


# The project's README.


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in that has the project's files and may be written to."""
    for name in (*FOLDERS, "README.md"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_runs(clone: Path) -> None:
    text = README.read_text(encoding="utf-8")
    assert any(block.language == "python" for block in blocks(text))
    run_python(text, str(README))


def test_commands_parse_and_write_nothing(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(clone.iterdir())
    found = commands(README.read_text(encoding="utf-8"))
    assert any(words[0] == "tw-seg" for words in found)
    for words in found:
        check_command(words, capsys)
    assert sorted(clone.iterdir()) == before


def test_options_in_the_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert inline_options(README.read_text(encoding="utf-8")) - known_options(capsys) == set()


def test_files_exist() -> None:
    assert missing_files(README.read_text(encoding="utf-8"), ROOT) == []


def test_no_block_escapes() -> None:
    assert unknown_blocks(README.read_text(encoding="utf-8")) == []


def test_it_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 120  # tables and long prose belong to docs/
