"""``tw-seg app``: its help, its errors, and what is there without gradio; the page itself is in ``tests/app``."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.app.tiny import make_service, save_checkpoint
from tw_seg.cli import main

WITHOUT_GRADIO = """
import sys
sys.modules["gradio"] = None
import pkgutil, importlib, tw_seg, tw_seg.app, tw_seg.cli
for module in pkgutil.walk_packages(tw_seg.app.__path__, "tw_seg.app."):
    if module.name != "tw_seg.app.page":
        importlib.import_module(module.name)
sys.exit(tw_seg.cli.main(["app", "nowhere"]))
"""


def test_without_gradio_all_else_works_and_the_command_says_what_to_install():
    found = subprocess.run([sys.executable, "-c", WITHOUT_GRADIO], capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr == "tw-seg: error: tw-seg app needs gradio: pip install tw_seg[app]\n"


def test_the_help_needs_neither_torch_nor_gradio():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['gradio'] = None; from tw_seg.cli import main; "
        "main(['app', '--help'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0 and "--trust FILE" in found.stdout


def test_wrong_files_are_errors(tmp_path, capsys):
    pytest.importorskip("gradio")
    checkpoint = save_checkpoint(tmp_path / "best.ckpt", make_service(tmp_path))
    for arguments, message in [
        (["nowhere"], "no file or folder nowhere"),
        ([str(checkpoint), "--trust", "nowhere.json"], "nowhere.json: cannot be read"),
    ]:
        assert main(["app", *arguments]) == 2
        assert message in capsys.readouterr().err
