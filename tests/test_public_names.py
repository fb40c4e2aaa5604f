"""``import tw_seg``: the public names, each imported when it is first used."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tw_seg

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", tw_seg.__all__)
def test_a_public_name_is_what_its_module_defines(name):
    value = getattr(tw_seg, name)
    if name != "__version__":
        assert value is getattr(importlib.import_module(tw_seg._MODULES[name]), name)
    assert name in dir(tw_seg)


def test_the_lists_of_names_agree():
    """Names for people, for the interpreter and for type checkers."""
    block = next(node for node in ast.parse(inspect.getsource(tw_seg)).body if isinstance(node, ast.If))
    checked = {alias.name: node.module for node in block.body for alias in node.names}
    assert checked == tw_seg._MODULES
    assert set(tw_seg.__all__) == {*checked, "__version__"}


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="'tw_seg' has no attribute 'Nothing'"):
        tw_seg.Nothing  # noqa: B018
    with pytest.raises(ImportError, match="Nothing"):
        exec("from tw_seg import Nothing")


def test_importing_the_package_imports_no_torch():
    script = "import sys, tw_seg; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60).returncode == 0


def test_from_the_package_import():
    from tw_seg import HeatmapDecoder, lrp

    assert HeatmapDecoder is lrp.HeatmapDecoder
