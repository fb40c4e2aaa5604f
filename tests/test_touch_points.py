"""CONTRIBUTING's table "Where to touch" is true: each kind of thing is added to a copy of the package and then used.

An example changes only the files that its row names; their number is the row's. The examples use what they add in
another process, which imports the copy.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEADING = "| for a new ... | files | write | name it in | test |"


class Row(NamedTuple):
    """A row of the table: how many files of the package it says are touched, and which files and folders it names."""

    files: int
    named: frozenset[str]


class Example(NamedTuple):
    """A new thing: the row that speaks of it, what is inserted before what in which file, and code that uses it.

    A text is inserted before the first match of a pattern; a pattern that is empty stands for a new file.
    """

    row: str
    changes: dict[str, list[tuple[str, str]]]
    use: str


NET = """
import torch
from torch import nn
from tw_seg import HeatmapDecoder

def net(*middle):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *middle, nn.Flatten(), nn.Linear(4 * 36, 2)).double().eval()

images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
plain = HeatmapDecoder(net())(images).heatmaps
"""

TASK = """
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.task import SegmentationTask

data = SegmentationDataModule("digits", split_kwargs={{"train": {{"length": 24}}}}, budget=4, size=32)
task = SegmentationTask("{model}", class_names=data.class_names, {extra})
batch = next(iter(data.train_dataloader()))
loss, parts = task.loss(task(batch.images, samples=batch.labelled), batch)
loss.backward()
"""

EXAMPLES = {
    "rule of linear maps": Example(
        "relevance rule",
        {
            "tw_seg/lrp/rules.py": [
                (
                    "RULES: ",
                    "@dataclass(frozen=True)\nclass Damped(LinearRule):\n    factor: float = 0.5\n\n"
                    "    def coefficient(self, c, a, z, layer):\n"
                    "        return layer.adjoint(self.factor * c, layer.weight)\n\n"
                    "    def balance(self, c, a, z, layer):\n        raise NotImplementedError\n\n\n",
                ),
                ('    "epsilon": Epsilon', '    "damped": Damped,\n'),
            ]
        },
        NET + "override = {'rule': 'damped', 'factor': 0.25, 'kinds': ['dense']}\n"
        "found = HeatmapDecoder(net(), composite_kwargs={'overrides': [override]})(images).heatmaps\n"
        "torch.testing.assert_close(found, 0.25 * plain)\n",
    ),
    "rule of activations": Example(
        "relevance rule",
        {
            "tw_seg/lrp/rules.py": [
                (
                    "RULES: ",
                    "@dataclass(frozen=True)\nclass Blocked(ActivationRule):\n"
                    "    def coefficient(self, c, u, y, axis=0):\n        return torch.zeros_like(c)\n\n\n",
                ),
                ('    "epsilon": Epsilon', '    "blocked": Blocked,\n'),
            ]
        },
        NET + "override = {'rule': 'blocked'}\n"
        "found = HeatmapDecoder(net(), composite_kwargs={'overrides': [override]})(images).heatmaps\n"
        "assert plain.any() and not found.any()\n",
    ),
    "composite": Example(
        "composite",
        {
            "tw_seg/lrp/composite.py": [
                (
                    "COMPOSITES: ",
                    "def wide(gamma: float = 0.5) -> Composite:\n    return Composite((Assign(Gamma(gamma)),))\n\n\n",
                ),
                ('    "epsilon": epsilon', '    "wide": wide,\n'),
            ]
        },
        NET + "found = HeatmapDecoder(net(), 'wide', composite_kwargs={'gamma': 0.0}).eval()(images).heatmaps\n"
        "torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-3)\n",
    ),
    "seed": Example(
        "seed",
        {
            "tw_seg/lrp/seeds.py": [
                ("SEEDS: ", "def twice_seed(logits, classes):\n    return 2 * logit_seed(logits, classes)\n\n\n"),
                ('    "logit": logit_seed', '    "twice": twice_seed,\n'),
            ]
        },
        NET + "torch.testing.assert_close(HeatmapDecoder(net(), seed='twice')(images).heatmaps, 2 * plain)\n",
    ),
    "operation": Example(
        "operation of a network",
        {
            "tw_seg/lrp/ops/activation.py": [
                (
                    r"OPS = \(",
                    "def _sin(u: Tensor, y: Tensor, o: dict[str, Any]) -> Tensor:\n"
                    "    safe = torch.where(u == 0, torch.ones_like(u), u)\n"
                    "    return torch.where(u == 0, torch.ones_like(u), y / safe)\n\n\n",
                ),
                (
                    "    _activation\\($",
                    "    _activation(\n        'sin', _multiply(_sin), of_any_sign, "
                    "{torch.sin: ('input',)}, None\n    ),\n",
                ),
            ]
        },
        NET + "from tw_seg.lrp.conservation.diagnose import report\n"
        "class Sin(nn.Module):\n    def forward(self, x):\n        return torch.sin(x)\n"
        "assert report(net(Sin()), images).violations == ()\n"
        "kinds = [call.kind for call in HeatmapDecoder(net(Sin())).graph(images).calls]\n"
        "assert 'sin' in kinds\n",
    ),
    "backbone": Example(
        "backbone",
        {},
        "import sys, types, torch, torchvision, tw_seg\n"
        "mine = types.ModuleType('mine')\n"
        "mine.net = lambda in_channels, num_classes: torchvision.models.resnet18(num_classes=num_classes)\n"
        "sys.modules['mine'] = mine\n"
        "model = tw_seg.HeatmapSegmenter('mine:net', classes=3, decoder_kwargs={'read_out': 'layer3'})\n"
        "assert model(torch.rand(2, 3, 64, 64)).mask_logits.shape == (2, 3, 64, 64)\n",
    ),
    "model": Example(
        "model",
        {
            "tw_seg/models/brightness.py": [
                (
                    "",
                    "from torch import nn\n\nfrom tw_seg.models.base import SegModel\n"
                    "from tw_seg.types import SegOutput\n\n\nclass Brightness(SegModel):\n"
                    "    def __init__(self, encoder_name, encoder_weights=None, **kwargs):\n"
                    "        super().__init__(encoder_name, encoder_weights, **kwargs)\n"
                    "        self.pixels = nn.Conv2d(self.in_channels, self.num_classes, 1)\n\n"
                    "    def segment(self, images, classes, samples):\n        maps = self.pixels(images)\n"
                    "        return SegOutput(maps.mean((2, 3)), maps if samples is None else maps[samples])\n",
                )
            ],
            "tw_seg/models/factory.py": [
                (
                    "from tw_seg.models.classifier",
                    "from tw_seg.models.brightness import Brightness\n",
                ),
                ('    "heatmap": HeatmapSegmenter', '    "brightness": Brightness,\n'),
            ],
        },
        TASK.format(model="brightness", extra=""),
    ),
    "loss": Example(
        "loss",
        {
            "tw_seg/losses/pixels.py": [
                (
                    "def dice",
                    "def energy(mask_logits, masks):\n    return masked_mean(mask_logits.square().sum(1), masks)\n\n\n",
                )
            ],
            "tw_seg/losses/segmentation.py": [
                ("cross_entropy, dice$", "energy, "),
                (r'"seg/aux"\)$', '"seg/energy", '),
                ("        aux: float = 0.4,$", "        energy: float = 0.0,\n"),
                (r"aux\), strict", "energy, "),
                (
                    '            "seg/aux": self',
                    '            "seg/energy": self._part('
                    '"seg/energy", lambda: energy(output.mask_logits, batch.masks)),\n',
                ),
            ],
            "tw_seg/training/task.py": [
                ("        aux: float = 0.4,$", "        energy: float = 0.0,\n"),
                (", aux=aux, unmasked=unmasked, guidance", ", energy=energy"),
            ],
        },
        TASK.format(model="unet", extra="energy=0.5") + "assert parts['seg/energy'] > 0\n",
    ),
    "data layout": Example(
        "data layout",
        {
            "tw_seg/data/layouts/squares.py": [
                (
                    "",
                    "import numpy as np\nfrom tw_seg.types import Sample\n\n\nclass Squares:\n"
                    "    classes = ('background', 'square')\n\n"
                    "    def __init__(self, split, *, length=4):\n"
                    "        self.names = tuple(f'{split}-{i}' for i in range(length))\n"
                    "        self.labels = np.ones((length, 2), dtype=np.float32)\n\n"
                    "    def __len__(self):\n        return len(self.names)\n\n"
                    "    def __getitem__(self, index):\n"
                    "        mask = np.zeros((32, 32), dtype=np.uint8)\n        mask[8:16, 8:16] = 1\n"
                    "        image = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)\n"
                    "        return Sample(image, mask, self.labels[index], self.names[index])\n",
                )
            ],
            "tw_seg/data/__init__.py": [
                ("from tw_seg.data.layouts.voc", "from tw_seg.data.layouts.squares import Squares\n"),
                ('    "digits": DigitScenes', '    "squares": Squares,\n'),
            ],
        },
        "from tw_seg.training.datamodule import SegmentationDataModule\n"
        "data = SegmentationDataModule('squares', budget=2, size=32)\n"
        "assert next(iter(data.train_dataloader())).masks.shape[1:] == (32, 32)\n"
        "assert next(iter(data.val_dataloader())).masks.unique().tolist() == [0, 1]\n",
    ),
    "command": Example(
        "command",
        {
            "tw_seg/cli/greet.py": [("", "def run_greet(arguments):\n    print(' '.join(arguments))\n    return 7\n")],
            "tw_seg/cli/__init__.py": [
                ('    "fit": Command', '    "greet": Command("tw_seg.cli.greet:run_greet", "say what was said"),\n')
            ],
        },
        "import contextlib, io\nfrom tw_seg.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):\n"
        "    assert main(['greet', 'you']) == 7\n    main(['--help'])\n"
        "assert 'greet you' in text.getvalue() and 'say what was said' in text.getvalue()\n",
    ),
}


def read_table() -> dict[str, Row]:
    """The rows of the table by the kind of thing."""
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    rows = {}
    for line in lines[lines.index(HEADING) + 2 :]:
        if not line.startswith("|"):
            break
        kind, files, write, place, _ = (cell.strip() for cell in line.strip("|").split("|"))
        rows[kind.partition(" (")[0]] = Row(int(files), frozenset(re.findall(r"`(tw_seg/[\w/.]*)`", write + place)))
    return rows


def change(folder: Path, example: Example) -> None:
    """Add an example to a copy of the package."""
    for name, inserted in example.changes.items():
        path = folder / name
        for before, text in inserted:
            if not before:
                path.write_text(text, encoding="utf-8")
                continue
            old = path.read_text(encoding="utf-8")
            new, count = re.subn(f"(?={before})", lambda _, text=text: text, old, count=1, flags=re.MULTILINE)
            assert count == 1, f"{name} has no {before!r}"
            path.write_text(new, encoding="utf-8")


RUNNER = """
import json, sys, traceback
found = {}
for name, code in json.load(open("uses.json")).items():
    try:
        exec(compile(code, name, "exec"), {"__name__": name})
        found[name] = ""
    except BaseException:
        found[name] = traceback.format_exc()
json.dump(found, open("found.json", "w"))
"""


@pytest.mark.slow
def test_an_example_of_each_kind_works_with_these_files_alone(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tw_seg", tmp_path / "tw_seg", ignore=shutil.ignore_patterns("__pycache__"))
    for example in EXAMPLES.values():
        change(tmp_path, example)
    (tmp_path / "uses.json").write_text(json.dumps({name: example.use for name, example in EXAMPLES.items()}))
    (tmp_path / "run.py").write_text(RUNNER)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "run.py"], cwd=tmp_path, env=environment, check=True, timeout=300)
    found = json.loads((tmp_path / "found.json").read_text())
    assert not any(found.values()), "\n".join(f"{name}: {error}" for name, error in found.items() if error)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_table_names_the_files_of_an_example_and_their_number(name: str) -> None:
    example, row = EXAMPLES[name], read_table()[EXAMPLES[name].row]
    assert len(example.changes) == row.files
    for path, inserted in example.changes.items():
        assert {path, f"{path.rpartition('/')[0]}/"} & row.named, path
        assert (ROOT / path).exists() == bool(inserted[0][0]), path


def test_every_kind_of_thing_in_the_package_has_an_example() -> None:
    table = read_table()
    assert {kind for kind, row in table.items() if row.named} <= {example.row for example in EXAMPLES.values()}
