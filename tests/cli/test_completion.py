"""``tw-seg completion``: the script, in a real shell."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tw_seg.cli import COMMANDS, main

# Calls the completing function as bash does when Tab is pressed behind the words.
TAB = """
source {script}
COMP_WORDS=({words}); COMP_CWORD=$(({count} - 1)); COMPREPLY=()
_shtab_tw_seg
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script, made as its user makes it."""
    path = tmp_path_factory.mktemp("completion") / "tw-seg"
    with pytest.MonkeyPatch.context() as patch, open(path, "w") as file:
        patch.setattr("sys.stdout", file)
        assert main(["completion", "bash"]) == 0
    return path


def complete(script: Path, *words: str) -> set[str]:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    quoted = " ".join(f"'{word}'" for word in ("tw-seg", *words))
    text = TAB.format(script=script, words=quoted, count=1 + len(words))
    done = subprocess.run([bash, "--norc", "-c", text], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def test_bash_completes_commands_options_choices_and_files(script, tmp_path):
    assert complete(script, "") >= set(COMMANDS)
    assert complete(script, "--ver") == {"--version"}
    assert complete(script, "fit", "--model.sch") == {"--model.scheduler"}
    assert complete(script, "fit", "--model.scheduler", "") == {"cosine", "onecycle", "none"}
    assert complete(script, "predict", "--data.bat") == {"--data.batch_size"}
    assert complete(script, "doctor", "--composite") == {"--composite", "--composite_kwargs"}
    assert complete(script, "predict", "--vi") == {"--view"}
    assert complete(script, "predict", "--view", "") == {"resize", "letterbox", "tiles"}
    assert complete(script, "data", "") >= {"check", "split", "budget"}
    assert complete(script, "data", "check", "--contact") == {"--contact_sheet"}
    assert "--help-all" in complete(script, "fit", "--help")
    assert "bash" in complete(script, "completion", "")
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mine").mkdir()
    assert complete(script, "test", "--config", f"{tmp_path}/mi") == {f"{tmp_path}/mine.yaml", f"{tmp_path}/mine"}
    assert complete(script, "test", "--run_dir", f"{tmp_path}/mi") == {f"{tmp_path}/mine"}


def test_it_is_small(script):
    assert script.stat().st_size < 200_000


def test_an_unknown_shell(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["completion", "nosuchshell"])
    assert stop.value.code == 2 and "bash" in capsys.readouterr().err


def test_help_says_how_to_install_it(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["completion", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and "tw-seg completion bash >> ~/.bash_completion" in text
