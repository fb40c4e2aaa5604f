"""What is released: a wheel that works where nothing else of this repository is, and versions that belong together."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = ("baselines", "weights", "export")


def python(*arguments: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built of the source distribution."""
    out = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", str(out), ".", folder=ROOT)
    python("-m", "twine", "check", "--strict", *map(str, out.iterdir()), folder=out)
    assert len(list(out.glob("*.tar.gz"))) == 1
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_runs_on_its_own(wheel: Path, tmp_path: Path) -> None:
    python("-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "lib"), str(wheel), folder=tmp_path)
    lib = {"PYTHONPATH": str(tmp_path / "lib")}
    where = python("-c", "import tw_seg; print(tw_seg.__file__, tw_seg.__version__)", folder=tmp_path, **lib)
    assert where.split() == [str(tmp_path / "lib" / "tw_seg" / "__init__.py"), PROJECT["version"]]
    assert "commands:" in python("-m", "tw_seg", "--help", folder=tmp_path, **lib)
    classifier = "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))"
    script = f"import torch, tw_seg; print(tw_seg.HeatmapDecoder({classifier})(torch.rand(1, 3, 2, 2)).heatmaps.shape)"
    assert "torch.Size([1, 2, 2, 2])" in python("-c", script, folder=tmp_path, **lib)


def test_the_wheel_says_and_holds_what_it_needs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        facts = message_from_bytes(archive.read(about))
    assert set(facts.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    held = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tw_seg").rglob("*") if path.is_file()}
    held = {name for name in held if "__pycache__" not in name}
    assert {name for name in names if name.startswith("tw_seg/")} == held and "tw_seg/report/report.html" in held


def test_pinned_versions_have_hashes_and_are_allowed() -> None:
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    assert "://" not in text and "index" not in text
    entries = re.sub(r"\\\n\s*", " ", text).splitlines()
    pinned: dict[str, set[str]] = {}
    for entry in entries:
        needed, *hashes = entry.split(" --hash=")
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", one.strip()) for one in hashes), entry[:80]
        requirement = Requirement(needed)
        (only,) = requirement.specifier
        assert only.operator == "=="
        pinned.setdefault(canonicalize_name(requirement.name), set()).add(only.version)
    extras = [line for name in PINNED for line in PROJECT["optional-dependencies"][name]]
    for wanted in map(Requirement, [*PROJECT["dependencies"], *extras]):
        versions = pinned[canonicalize_name(wanted.name)]
        assert all(wanted.specifier.contains(version) for version in versions), wanted
