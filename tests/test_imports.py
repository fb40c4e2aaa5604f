"""Who may import whom: arrows run one way, without a circle. Read from the source, so nothing of it is imported.

Imports inside functions and imports for type checkers count as imports.
"""

from __future__ import annotations

import graphlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.draw_architecture import read_imports

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tw_seg"

# A part may import from lower levels and from itself; parts of one level never see each other.
LEVELS = [
    {"types", "errors", "printable", "version"},
    {
        "arguments",
        "files",
        "fonts",
        "hyper_parameters",
        "locks",
        "memory",
        "plain_files",
        "processes",
        "regions",
        "resize",
        "torch_files",
    },
    {"pictures"},
    {"lrp", "losses", "metrics", "data", "sweeps", "active"},
    {"models", "explain", "predict", "report"},
    {"training", "export"},
    {"app"},
    {"cli"},
    {"__main__"},
]
# The same inside lrp: from a graph of calls to decodes and what looks at them.
LRP_LEVELS = [
    {"core"},
    {"rules"},
    {"ops"},
    {"composite", "seeds", "trace"},
    {"decode"},
    {"decoder"},
    {"conservation"},
]

# Where a library may be imported, as prefixes of paths inside tw_seg.
ONLY_IN = {
    "pytorch_lightning": ("training/", "cli/"),
    "jsonargparse": ("training/", "cli/"),
    "wandb": ("training/", "cli/"),
    "filelock": ("locks.py",),
    "optuna": ("sweeps/study.py",),
    "captum": ("models/posthoc", "explain/"),
    "imagehash": ("data/grouping/near_duplicates.py",),
    "skimage": ("models/posthoc/", "cli/demo.py"),
    "onnx": ("export/onnx_file.py",),
    "onnxscript": ("export/onnx_file.py",),
    "onnxruntime": ("export/onnx_file.py",),
    "huggingface_hub": ("models/hub.py",),
    "gradio": ("app/page.py",),
    "albumentations": ("data/loading/transforms.py",),
    "tifffile": ("data/layouts/pictures.py", "data/layouts/pixels.py"),
    "jinja2": ("report/page.py",),
    "segmentation_models_pytorch": ("models/encoder_decoder.py",),
    "zennit": (),  # an oracle of the tests
    "lightning": (),  # never beside pytorch_lightning
    "tests": (),
    "experiments": (),
}
# What these may need besides the standard library and tw_seg itself.
NEEDS = {"lrp": {"torch"}, "losses": {"torch"}, "types": {"torch", "numpy"}, "errors": set()}


# Of the models, these are made of the numerical heart; the factory names all models.
MODELS_ON_LRP = {
    "tw_seg.models.segmenter",
    "tw_seg.models.posthoc.lrp",
    "tw_seg.models.posthoc.photograph",
    "tw_seg.models.factory",
}


def sources() -> list[str]:
    return sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


def parents(path: str) -> tuple[str, ...]:
    return ("tw_seg", *Path(path).parts[:-1])


def place(path: str, depth: int) -> str:
    """The part of the package, or of one of its folders, that a file belongs to."""
    return Path(path).parts[depth].removesuffix(".py")


def level_violations(part: str, others: set[str], levels: list[set[str]]) -> Iterator[str]:
    level = {name: number for number, names in enumerate(levels) for name in names}
    for other in sorted(others - {part}):
        if other not in level:
            yield f"{other}: import it from the module that defines it"
        elif level[other] >= level[part]:
            yield f"{part} must not know {other}"


def violations(path: str, text: str) -> Iterator[str]:
    """What a module imports and must not."""
    names = [name.split(".") for name in read_imports(text, parents(path))]
    ours = [name[1:] for name in names if name[0] == "tw_seg"]
    part = place(path, 0)
    if part == "__init__":
        lightning = {other[0] for other in ours if other and other[0] in ("training", "cli")}
        yield from (f"{name}: `import tw_seg` must not load Lightning" for name in lightning)
        return
    yield from level_violations(part, {other[0] if other else "tw_seg" for other in ours}, LEVELS)
    if part == "lrp" and (inner := place(path, 1)) != "__init__":
        yield from level_violations(inner, {o[1] for o in ours if o[0] == "lrp" and len(o) > 1}, LRP_LEVELS)
    for top in {name[0] for name in names} - {"tw_seg"}:
        if top in ONLY_IN and not path.startswith(ONLY_IN[top] or ("-",)):
            yield f"{top}: only in {', '.join(ONLY_IN[top]) or 'tests'}"
        elif part in NEEDS and top not in NEEDS[part] | sys.stdlib_module_names:
            yield f"{top}: {part} needs only {', '.join(sorted(NEEDS[part])) or 'the standard library'}"


def import_graph(texts: dict[str, str]) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports."""
    modules = {".".join((*parents(p), Path(p).stem)).removesuffix(".__init__"): p for p in texts}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        named = set(read_imports(texts[path], parents(path)))
        # `from a.b import c`: c is a module, or stands in a.b.
        found = {name if name in modules else name.rpartition(".")[0] for name in named}
        graph[module] = found & modules.keys() - {module}
    return graph


def circle(texts: dict[str, str]) -> list[str]:
    """A circle of modules that import each other; empty if there is none."""
    try:
        graphlib.TopologicalSorter(import_graph(texts)).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("path", sources())
def test_import_direction(path: str) -> None:
    assert list(violations(path, (PACKAGE / path).read_text())) == []


def test_no_import_circle() -> None:
    assert circle({path: (PACKAGE / path).read_text() for path in sources()}) == []


def reach(graph: dict[str, set[str]], module: str) -> set[str]:
    """The modules that a module needs, directly or through others."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def test_other_models_do_not_need_the_numerical_heart() -> None:
    graph = import_graph({path: (PACKAGE / path).read_text() for path in sources()})
    on_lrp = {
        module
        for module in graph
        if module.startswith("tw_seg.models.") and any(name.startswith("tw_seg.lrp") for name in reach(graph, module))
    }
    assert on_lrp == MODELS_ON_LRP


def test_every_part_has_a_level() -> None:
    assert {place(path, 0) for path in sources()} - {"__init__"} <= set().union(*LEVELS)
    heart = {place(path, 1) for path in sources() if path.startswith("lrp/")}
    assert heart - {"__init__"} == set().union(*LRP_LEVELS)


@pytest.mark.parametrize(
    ("path", "text", "caught"),
    [
        ("lrp/rules.py", "from tw_seg.losses import masked", True),
        ("lrp/rules.py", "from ..data import loading", True),
        ("lrp/rules.py", "from .core import linear_map", False),
        ("lrp/rules.py", "from tw_seg.errors import InputError", False),
        ("lrp/rules.py", "import numpy", True),
        ("lrp/rules.py", "from tw_seg import SegOutput", True),
        ("lrp/rules.py", "from tw_seg.lrp.ops import OPS", True),
        ("lrp/rules.py", "from tw_seg.lrp import HeatmapDecoder", True),
        ("lrp/seeds.py", "from tw_seg.lrp.composite import Composite", True),  # of its own level
        ("lrp/core/tape.py", "from tw_seg.lrp.rules import Epsilon", True),
        ("lrp/core/tape.py", "def f():\n    from tw_seg.lrp.ops import OPS", True),
        ("lrp/ops/pool.py", "if TYPE_CHECKING:\n    from tw_seg.lrp.decode.plan import Plan", True),
        ("lrp/ops/pool.py", "from tw_seg.lrp.core.tape import Tape", False),
        ("lrp/conservation/balance.py", "from tw_seg.lrp.decoder import HeatmapDecoder", False),
        ("models/unet.py", "def f():\n    import tw_seg.training.task", True),
        ("models/unet.py", "from tw_seg.lrp import HeatmapDecoder", False),
        ("models/unet.py", "import captum.attr", True),
        ("models/posthoc/cam.py", "import captum.attr", False),
        ("data/layouts/voc.py", "import albumentations as A", True),
        ("training/task.py", "import pytorch_lightning as pl", False),
        ("training/task.py", "import tw_seg.cli.lightning", True),
        ("training/task.py", "import lightning", True),
        ("losses/masked.py", "import wandb", True),
        ("losses/masked.py", "import zennit", True),
        ("__init__.py", "from tw_seg.models.segmenter import HeatmapSegmenter", False),
        ("__init__.py", "from tw_seg.training.task import SegmentationTask", True),
    ],
)
def test_the_test_sees_what_it_should(path: str, text: str, caught: bool) -> None:
    assert bool(list(violations(path, text))) == caught


def test_the_test_sees_a_circle() -> None:
    texts = {"a.py": "from tw_seg import b", "b.py": "def f():\n    from tw_seg.c import d", "c.py": ""}
    assert circle(texts) == []
    assert set(circle({**texts, "c.py": "if TYPE_CHECKING:\n    import tw_seg.a"})) == {
        "tw_seg.a",
        "tw_seg.b",
        "tw_seg.c",
    }
