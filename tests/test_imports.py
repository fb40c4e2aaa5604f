"""Who may import whom. Read from the source with ``ast``, so nothing has to be importable."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tw_seg"

# A module may import from lower levels and from its own part; parts of one level never see each other.
LEVELS = [
    {"types", "errors"},
    {"lrp", "losses", "metrics", "data"},
    {"models", "explain"},
    {"training"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}

# The same inside the numerical heart: from a graph of calls to decodes and what looks at them.
LRP_LEVELS = [
    {"graph", "adjoints", "choices", "lowering", "report"},
    {"rules", "tracer"},
    {"ops", "seeds"},
    {"build", "composite", "tape"},
    {"backward"},
    {"balance", "readout", "pieces", "recompute"},
    {"two_phase"},
    {"propagate"},
    {"decoder"},
    {"checks"},
]
LRP_LEVEL = {part: level for level, parts in enumerate(LRP_LEVELS) for part in parts}
# What an operation is handed when it runs, and names in its signatures only.
OPS_TYPES = {"backward", "tape"}

# Where a library may be imported, as prefixes of paths inside tw_seg.
ONLY_IN = {
    "pytorch_lightning": ("training/",),
    "jsonargparse": ("training/",),
    "wandb": ("training/",),
    "captum": ("models/posthoc.py", "explain/"),
    "albumentations": ("data/transforms.py",),
    "segmentation_models_pytorch": ("models/baselines.py",),
    "zennit": (),  # an oracle of the tests
    "lightning": (),  # never beside pytorch_lightning
    "tests": (),
    "experiments": (),
}
# What the numerical heart may need besides the standard library and tw_seg itself.
HEART = {"lrp": {"torch"}, "losses": {"torch"}, "types": {"torch", "numpy"}, "errors": set()}


def sources() -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def imports(text: str, package: tuple[str, ...]) -> Iterator[str]:
    """Absolute names of every import in a module's source, also of those inside functions."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from tw_seg import lrp` and `from tw_seg.lrp import rules` name a part either way.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def part_of(path: str) -> str:
    return Path(path).parts[0].removesuffix(".py")


def violations(path: str, text: str) -> Iterator[str]:
    part = part_of(path)
    package = ("tw_seg", *Path(path).parts[:-1])
    for name in imports(text, package):
        top, *rest = name.split(".")
        if top == "tw_seg":
            other = rest[0] if rest else ""
            if part == "__init__":
                if other == "training":
                    yield f"{name}: `import tw_seg` must not load Lightning"
            elif other not in LEVEL:
                yield f"{name}: import it from the module that defines it"
            elif other != part and LEVEL[other] >= LEVEL[part]:
                yield f"{name}: {part} must not know {other}"
        elif top in ONLY_IN and not path.startswith(ONLY_IN[top] or ("-",)):
            yield f"{name}: only in {', '.join(ONLY_IN[top]) or 'tests'}"
        elif part in HEART and top not in HEART[part] | sys.stdlib_module_names | {"tw_seg"}:
            yield f"{name}: {part} needs only {', '.join(sorted(HEART[part])) or 'the standard library'}"


def runtime_source(text: str) -> str:
    """A module's source without what only type checkers import."""
    tree = ast.parse(text)
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")]
    for block in blocks:
        block.body = [ast.Pass()]
    return ast.unparse(tree)


def lrp_parts(path: str, text: str) -> set[str]:
    """Modules of the numerical heart that one of its modules imports, ``ops`` as one."""
    package = ("tw_seg", *Path(path).parts[:-1])
    names = [name.split(".") for name in imports(text, package)]
    return {name[2] for name in names if name[:2] == ["tw_seg", "lrp"] and len(name) > 2}


def lrp_violations(path: str, text: str) -> Iterator[str]:
    part = Path(path).parts[1].removesuffix(".py")
    runtime = lrp_parts(path, runtime_source(text))
    for other in sorted(runtime - ({part} if part == "ops" else set())):
        if LRP_LEVEL.get(other, len(LRP_LEVELS)) >= LRP_LEVEL[part]:
            yield f"{part} must not know {other}"
    for other in sorted(lrp_parts(path, text) - runtime):
        if part != "ops" or other not in OPS_TYPES:
            yield f"{part} names {other} for type checkers: its level is too low for it"


@pytest.mark.parametrize("path", sources())
def test_import_direction(path: str) -> None:
    assert list(violations(path, (PACKAGE / path).read_text())) == []


@pytest.mark.parametrize("path", [path for path in sources() if path.startswith("lrp/") and path != "lrp/__init__.py"])
def test_import_direction_in_the_numerical_heart(path: str) -> None:
    assert list(lrp_violations(path, (PACKAGE / path).read_text())) == []


def test_every_part_has_a_level() -> None:
    assert {part_of(path) for path in sources()} - {"__init__"} <= LEVEL.keys()
    heart = {Path(path).parts[1].removesuffix(".py") for path in sources() if path.startswith("lrp/")}
    assert heart - {"__init__"} == LRP_LEVEL.keys()


@pytest.mark.parametrize(
    ("path", "text", "caught"),
    [
        ("lrp/rules.py", "from tw_seg.losses import masked", True),
        ("lrp/rules.py", "from ..data import digits", True),
        ("lrp/rules.py", "from . import adjoints", False),
        ("lrp/rules.py", "from tw_seg.errors import InputError", False),
        ("lrp/rules.py", "import numpy", True),
        ("lrp/rules.py", "from tw_seg import SegOutput", True),
        ("models/unet.py", "def f():\n    import tw_seg.training.task", True),
        ("models/unet.py", "from tw_seg.lrp import HeatmapDecoder", False),
        ("models/unet.py", "import captum.attr", True),
        ("models/posthoc.py", "import captum.attr", False),
        ("data/voc.py", "import albumentations as A", True),
        ("training/task.py", "import pytorch_lightning as pl", False),
        ("training/task.py", "import lightning", True),
        ("metrics.py", "import wandb", True),
        ("losses/masked.py", "import zennit", True),
        ("__init__.py", "from tw_seg.models.segmenter import HeatmapSegmenter", False),
        ("__init__.py", "from tw_seg.training.task import SegmentationTask", True),
    ],
)
def test_the_test_sees_what_it_should(path: str, text: str, caught: bool) -> None:
    assert bool(list(violations(path, text))) == caught


@pytest.mark.parametrize(
    ("path", "text", "caught"),
    [
        ("lrp/rules.py", "from tw_seg.lrp.adjoints import times", False),
        ("lrp/rules.py", "from tw_seg.lrp import adjoints", False),
        ("lrp/rules.py", "from . import composite", True),
        ("lrp/rules.py", "from tw_seg.lrp.tracer import symbolic_trace", True),  # of its own level
        ("lrp/rules.py", "from tw_seg.lrp import HeatmapDecoder", True),
        ("lrp/adjoints.py", "def f():\n    from tw_seg.lrp.rules import Epsilon", True),
        ("lrp/tape.py", "from tw_seg.lrp.ops import OPS", False),
        ("lrp/tape.py", "from tw_seg.lrp.backward import Pass", True),
        (
            "lrp/tape.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tw_seg.lrp.backward import P",
            True,
        ),
        ("lrp/ops/pool.py", "from tw_seg.lrp.ops.linear import keep_first", False),
        ("lrp/ops/pool.py", "from .op import Op", False),
        ("lrp/ops/pool.py", "from tw_seg.lrp.tape import Tape", True),
        ("lrp/ops/pool.py", "if TYPE_CHECKING:\n    from tw_seg.lrp.tape import Tape", False),
        ("lrp/ops/pool.py", "if TYPE_CHECKING:\n    from tw_seg.lrp.decoder import Plan", True),
        ("lrp/checks.py", "from tw_seg.lrp.decoder import HeatmapDecoder", False),
    ],
)
def test_the_test_of_the_heart_sees_what_it_should(path: str, text: str, caught: bool) -> None:
    assert bool(list(lrp_violations(path, text))) == caught
