"""Which classifiers of torchvision and timm decode, train and export: every architecture, smallest of its family.

    python -m experiments.support_table                 # all, about an hour on 2 cores: docs/support.md and .json
    python -m experiments.support_table resnet18 timm/vit_tiny_patch16_224 --out /tmp/support

Each classifier has random weights and runs in processes of its own. *Decodes*: in evaluation mode the logits are the
classifier's own, the heatmaps of two classes are finite and account for them. *Trains*: one step on a heatmap loss and
an image-level loss in training mode, finite gradients that reach the first layer with weights. *Exports*:
``torch.export`` with a dynamic batch gives what eager gives.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from tw_seg import HeatmapDecoder, TwSegError, create_classifier
from tw_seg.files import write_text
from tw_seg.lrp.conservation.diagnose import completeness
from tw_seg.lrp.trace.examples import default_image_shape

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 4
LIMIT = 900.0
TIMM = "timm/"
CHECKS = ("decodes", "trains", "exports")


def torchvision_names() -> list[str]:
    """The smallest classifier of each architecture of torchvision, and VGG with BatchNorm."""
    smallest: dict[str, tuple[int, str]] = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        family = name.split("_")[0].rstrip("0123456789") + ("_bn" if name.endswith("_bn") else "")
        for variant in ("mobilenet_v2", "mobilenet_v3", "efficientnet_v2", "swin_v2", "regnet_x", "regnet_y"):
            family = variant if name.startswith(variant) else family
        size = min(weights.meta["num_params"] for weights in torchvision.models.get_model_weights(name))
        smallest[family] = min(smallest.get(family, (size, name)), (size, name))
    return sorted(name for _, name in smallest.values())


def timm_names() -> list[str]:
    """The smallest classifier of each of timm's model files."""
    names = []
    for module in timm.list_modules():
        sizes = [
            (_size(lambda name=name: timm.create_model(name, num_classes=CLASSES)), name)
            for name in timm.list_models(module=module)
        ]
        if sizes:
            names.append(TIMM + min(sizes)[1])
    return sorted(names)


def _size(create: Callable[[], nn.Module]) -> int:
    """Parameters of a model; without memory where its constructor does not compute with values."""
    try:
        with torch.device("meta"):
            return parameters(create())
    except Exception:
        try:
            return parameters(create())
        except Exception:
            return sys.maxsize


def parameters(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in net.parameters())


def decodes(net: nn.Module, images: Tensor) -> None:
    """The classifier's own logits, and finite heatmaps that account for them."""
    decoder = HeatmapDecoder(net).eval()
    with torch.no_grad():
        own = net(images)
    assert own.isfinite().all(), "with random weights the classifier's own logits are not finite"
    logits, heatmaps, _ = decoder(images, classes=[0, CLASSES - 1])
    assert (logits - own).abs().amax() <= 1e-3 * own.abs().amax(), "the logits are not those of the classifier"
    assert heatmaps.shape == (2, 2, *images.shape[2:]) and heatmaps.isfinite().all(), "heatmaps are not finite"
    found = completeness(decoder, images, [0])
    terms = torch.stack([found.logits, found.heatmap, found.bias]).abs().amax()
    missing = found.missing.abs().amax()
    assert missing <= 1e-3 * terms, f"relevance is lost: {missing:.1e} of {terms:.1e}"


def trains(net: nn.Module, images: Tensor) -> None:
    """One step on a loss of heatmaps and logits."""
    decoder = HeatmapDecoder(net).train()
    logits, heatmaps, _ = decoder(images, classes=[0, 1], samples=torch.tensor([1]))
    scaled = heatmaps * heatmaps[0, 0].numel()
    loss = nn.functional.cross_entropy(scaled.flatten(2), torch.zeros(1, scaled[0, 0].numel(), dtype=torch.int64))
    (loss + nn.functional.cross_entropy(logits, torch.tensor([0, 1]))).backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients), "gradients are not finite"
    first = next(m.weight for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert first.grad is not None and first.grad.abs().sum() > 0, "no gradient reaches the first weight"
    torch.optim.SGD(net.parameters(), lr=1e-3).step()


def exports(net: nn.Module, images: Tensor) -> None:
    """``torch.export`` with a dynamic batch equals eager, also for another batch size."""
    decoder = HeatmapDecoder(net).eval()
    with torch.no_grad():
        program = torch.export.export(
            decoder, (images, [0, 1]), dynamic_shapes=({0: torch.export.Dim.DYNAMIC}, [None, None]), strict=False
        ).module()
        other = torch.cat([images, images[:1]])
        found, expected = program(other, [0, 1]), decoder(other, [0, 1])
    scale = expected.heatmaps.abs().amax()
    assert (found.heatmaps - expected.heatmaps).abs().amax() <= 1e-3 * scale, "exported heatmaps differ from eager"


def create(name: str) -> nn.Module:
    """The classifier with random weights, also those that its constructor sets to zero (heads, last norms)."""
    net = create_classifier(name, classes=CLASSES)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return net


TESTS: dict[str, Callable[[nn.Module, Tensor], None]] = {"decodes": decodes, "trains": trains, "exports": exports}


def check(name: str, labels: Sequence[str] = CHECKS) -> dict[str, Any]:
    """One row of the table, or some of its columns."""
    row: dict[str, Any] = {"name": name, "parameters": 0, "image": ""}
    reasons = []
    started = time.perf_counter()
    for label in labels:
        torch.manual_seed(0)
        try:
            net = create(name)
            shape = default_image_shape(net)
            row |= {"parameters": parameters(net), "image": "x".join(map(str, shape))}
            TESTS[label](net, torch.randn(2, *shape))
            row[label] = True
        except (TwSegError, AssertionError) as error:
            row[label] = False
            reasons.append(f"{label}: {error}")
        except Exception as error:  # a table of what works must go on
            row[label] = False
            reasons.append(f"{label}: {type(error).__name__}: {error}")
    return row | {"seconds": round(time.perf_counter() - started, 1), "reason": "; ".join(map(_short, reasons))}


def check_apart(name: str) -> dict[str, Any]:
    """The same, each column in a process of its own, whose memory is given back."""
    parts = [_in_process(name, label) for label in CHECKS]
    row = {key: value for part in parts for key, value in part.items() if value or key in CHECKS}
    seconds = round(sum(part["seconds"] for part in parts), 1)
    reason = "; ".join(part["reason"] for part in parts if part["reason"])
    return {"parameters": 0, "image": "", **row, "seconds": seconds, "reason": reason}


def _in_process(name: str, label: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "experiments.support_table", name, "--column", label]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        part: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return part
    except subprocess.TimeoutExpired:
        reason = f"{label}: took longer than {LIMIT:.0f} s"
    except (IndexError, json.JSONDecodeError):
        killed = "was killed, out of memory" if done.returncode == -9 else f"ended with code {done.returncode}"
        reason = f"{label}: the process {killed} {_short(done.stderr[-300:])}".strip()
    return {"name": name, label: False, "seconds": 0.0, "reason": reason}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table with its totals."""
    lines = [
        "# Supported classifiers",
        "",
        "Made by `python -m experiments.support_table` (its first lines say what each column means), with torch "
        f"{torch.__version__.partition('+')[0]}, torchvision {torchvision.__version__.partition('+')[0]} and timm "
        f"{timm.__version__}. Random weights; the smallest model of each family.",
        "",
    ]
    for library, part in (
        ("torchvision", [r for r in rows if not r["name"].startswith(TIMM)]),
        ("timm", [r for r in rows if r["name"].startswith(TIMM)]),
    ):
        counts = ", ".join(f"{sum(r[c] for r in part)} {c[:-1]}" for c in CHECKS)
        lines += [f"**{library}**: of {len(part)} families {counts}.", ""]
    lines.append("| classifier | parameters | image | decodes | trains | exports | reason if not |")
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        marks = " | ".join("yes" if row[c] else "**no**" for c in CHECKS)
        reason = row["reason"].replace("|", "\\|")
        lines.append(f"| `{row['name']}` | {row['parameters'] / 1e6:.1f} M | {row['image']} | {marks} | {reason} |")
    return "\n".join(lines) + "\n"


def _short(text: str, limit: int = 240) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def main(argv: Sequence[str] | None = None) -> None:
    """Check the named classifiers, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="classifiers; none for the smallest of every family")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "support", help="path of .md and .json, no suffix")
    parser.add_argument("--column", choices=CHECKS, help="print that part of one row as JSON, in this process")
    arguments = parser.parse_args(argv)
    if arguments.column:
        print(json.dumps(check(arguments.names[0], [arguments.column])))
        return
    rows = []
    for name in arguments.names or [*torchvision_names(), *timm_names()]:
        rows.append(check_apart(name))
        print(json.dumps(rows[-1]), flush=True)
    write_text(arguments.out.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")
    write_text(arguments.out.with_suffix(".md"), markdown(rows))


if __name__ == "__main__":
    main()
