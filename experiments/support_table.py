"""Which classifiers of torchvision and timm decode, train and export: every architecture, smallest of its family.

    python -m experiments.support_table                 # all, about an hour on 2 cores: docs/support.md and .json
    python -m experiments.support_table resnet18 --columns onnx
    python -m experiments.support_table resnet18 timm/vit_tiny_patch16_224 --out /tmp/support

Each classifier has random weights and runs in processes of its own. *Decodes*: in evaluation mode the logits are the
classifier's own, the heatmaps of two classes are finite and account for them. *Trains*: one step on a heatmap loss
and an image-level loss in training mode, finite gradients that reach the first layer with weights. *Exports*:
``torch.export`` with a dynamic batch gives what eager gives. *ONNX*: an ONNX file of it in onnxruntime is within
0.001, or twice the rounding error of eager, of a decode in double precision; empty where it was not tried.
*Evaluation* and *training*: the largest difference of the traced logits from the classifier's own in that mode, of
the largest logit, on the images on which they are compared when a decoder is made; 0 is equality to the last bit.
``support.json`` has them at the full image size too.

Every result is written at once, with a digest of the code that it holds for; what is there for the present code is not
measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from tw_seg import HeatmapDecoder, TwSegError, create_classifier
from tw_seg.export.onnx_file import convert_to_onnx, run_onnx
from tw_seg.files import write_text
from tw_seg.lrp.conservation.diagnose import completeness
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.trace.build import trace
from tw_seg.lrp.trace.compare import find_logits
from tw_seg.lrp.trace.examples import default_image_shape
from tw_seg.lrp.trace.trial import Trial

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 4
LIMIT = 900.0
TIMM = "timm/"
CHECKS = ("decodes", "trains", "exports", "onnx")
COLUMNS = (*CHECKS, "compares")
MODES = ("evaluation", "training")


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


def decodes(net: nn.Module, images: Tensor) -> dict[str, float | str]:
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
    return {"evaluation": difference(logits, own)}


def trains(net: nn.Module, images: Tensor) -> dict[str, float | str]:
    """One step on a loss of heatmaps and logits."""
    decoder = HeatmapDecoder(net).train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.no_grad():
        own = find_logits(deepcopy(net)(images))
    draws = not torch.equal(before, torch.get_rng_state())
    torch.manual_seed(0)
    logits, heatmaps, _ = decoder(images, classes=[0, 1], samples=torch.tensor([1]))
    scaled = heatmaps * heatmaps[0, 0].numel()
    loss = nn.functional.cross_entropy(scaled.flatten(2), torch.zeros(1, scaled[0, 0].numel(), dtype=torch.int64))
    (loss + nn.functional.cross_entropy(logits, torch.tensor([0, 1]))).backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients), "gradients are not finite"
    first = next(m.weight for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert first.grad is not None and first.grad.abs().sum() > 0, "no gradient reaches the first weight"
    torch.optim.SGD(net.parameters(), lr=1e-3).step()
    found = difference(logits, own)
    return {"training": "random" if draws and found else found}  # drawn in another order, nothing can be said


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest, of the largest logit; 0 only where all are equal to the last bit."""
    return float(f"{float((found - expected).detach().abs().amax() / expected.abs().amax()):.1e}")


def exports(net: nn.Module, images: Tensor) -> dict[str, float | str]:
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
    return {}


class DecoderOutputs(nn.Module):
    """A decoder as a file of ``tw-seg export`` has it: class ids, logits and heatmaps of all classes."""

    def __init__(self, decoder: HeatmapDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, heatmaps, _ = self.decoder(images)
        return heatmaps.argmax(1), logits, heatmaps


def onnx(net: nn.Module, images: Tensor) -> dict[str, float | str]:
    """An ONNX file with a dynamic batch gives in onnxruntime what eager gives, also for another batch size."""
    module = DecoderOutputs(HeatmapDecoder(net)).eval()
    with torch.no_grad():
        dynamic = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.export.export(module, (images,), dynamic_shapes=dynamic, strict=False)
        content = convert_to_onnx(program, makes_masks=True, facts={}).model_proto.SerializeToString()
        other = torch.cat([images, images[:1]])
        _, *eager = module(other)
        _, *exact = module.double()(other.double())
    _, *found = run_onnx(content, other.numpy())
    for name, one, own, true in zip(("logits", "heatmaps"), found, eager, exact, strict=True):
        missed, rounding = difference(torch.from_numpy(one), true), difference(own, true)
        text = f"the {name} in onnxruntime are {missed:.1e} of the largest off, in eager {rounding:.1e}"
        assert missed <= max(1e-3, 2 * rounding), text
    return {}


def compares(net: nn.Module, images: Tensor) -> dict[str, Any]:
    """What the comparison finds when a decoder is made, in both modes, with the same random numbers."""
    found: dict[str, float | str] = {}
    for mode, training in zip(MODES, (False, True), strict=True):
        graph, trial = trace(net, training), Trial(net, training)
        found[mode] = "not possible"
        for small in trial.make_images(tuple(images.shape[1:]), graph.specialised):
            try:
                own, draws = trial.run(lambda small=small: net(small))
            except Exception:
                continue  # too small
            tape, _ = trial.run(lambda small=small, graph=graph: Tape(net, graph, small, frozenset()))
            value = difference(tape.values[graph.output], find_logits(own))
            found[mode] = "random" if draws and value else value  # drawn in another order, nothing can be said
            break
    return {"compared": found}


def create(name: str) -> nn.Module:
    """The classifier with random weights, also those that its constructor sets to zero (heads, last norms)."""
    net = create_classifier(name, classes=CLASSES)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return net


TESTS: dict[str, Callable[[nn.Module, Tensor], dict[str, Any]]] = {
    "decodes": decodes,
    "trains": trains,
    "exports": exports,
    "onnx": onnx,
    "compares": compares,
}


def digest() -> str:
    """Changes with the code and the versions that a result holds for."""
    files = [path for part in ("lrp", "models") for path in sorted((ROOT / "tw_seg" / part).rglob("*.py"))]
    texts = [path.read_text(encoding="utf-8") for path in files]
    texts += [inspect.getsource(function) for function in (create, difference, *TESTS.values())]
    texts += [module.__version__ for module in (torch, torchvision, timm)]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def check(name: str, column: str) -> dict[str, Any]:
    """One column of a row, and the reason if it does not hold."""
    part: dict[str, Any] = {"name": name, column: False}
    started = time.process_time()
    torch.manual_seed(0)
    try:
        net = create(name)
        shape = default_image_shape(net)
        part |= {"parameters": parameters(net), "image": "x".join(map(str, shape))}
        part |= TESTS[column](net, torch.randn(2, *shape))
        part[column] = True
    except (TwSegError, AssertionError) as error:
        part["reason"] = _short(str(error))
    except Exception as error:  # a table of what works must go on
        part["reason"] = _short(f"{type(error).__name__}: {error}")
    return part | {"seconds": round(time.process_time() - started, 1)}


def check_apart(name: str, column: str, limit: float = LIMIT) -> dict[str, Any]:
    """The same in a process of its own, whose memory is given back."""
    context = multiprocessing.get_context("fork")  # torch and timm need not be imported again
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, name, column))
    process.start()
    sender.close()
    part: dict[str, Any] = {"name": name, column: False, "seconds": 0.0}
    try:
        if receiver.poll(limit):
            part = receiver.recv()
        else:
            part["reason"] = f"took longer than {limit:.0f} s"
            process.kill()
        process.join()
    except EOFError:
        process.join()
        killed = "was killed, out of memory" if process.exitcode == -9 else f"ended with code {process.exitcode}"
        part["reason"] = f"the process {killed}"
    return part


def _send(sender: Connection, name: str, column: str) -> None:
    sender.send(check(name, column))


def add(row: dict[str, Any], part: dict[str, Any], column: str, code: str) -> dict[str, Any]:
    """A row with one column measured again."""
    about = {"seconds": part["seconds"], "code": code, "reason": part.get("reason", "")}
    values = {key: value for key, value in part.items() if key not in about}
    row = {key: value for key, value in row.items() if (key, column) not in _DETAILS}
    return {"parameters": 0, "image": "", **row, **values, "about": {**row.get("about", {}), column: about}}


_DETAILS = {("evaluation", "decodes"), ("training", "trains")}


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
        counts = ", ".join(f"{sum(r.get(c, False) for r in part)} {c[:-1]}" for c in CHECKS if c != "onnx")
        tried = [r["onnx"] for r in part if "onnx" in r]
        files = f"; of {len(tried)} that were tried {sum(tried)} run as ONNX files" if tried else ""
        lines += [f"**{library}**: of {len(part)} families {counts}{files}.", ""]
    codes = Counter(row["about"][c]["code"] for row in rows for c in CHECKS if c in row["about"])
    usual = codes.most_common(1)[0][0] if codes else ""
    if len(codes) > 1:
        lines += [
            f"{codes.total() - codes[usual]} results are of another state of the code (*), which `support.json` names.",
            "",
        ]
    lines += [f"**The trace's logits and the classifier's own**: {compared(rows)}.", ""]
    columns = ("classifier", "parameters", "image", *CHECKS[:-1], "ONNX", *MODES, "reason if not")
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        marks = " | ".join(_mark(row, column, usual) for column in CHECKS)
        found = " | ".join(_say(row.get("compared", {}).get(mode)) for mode in MODES)
        size = f"{row['parameters'] / 1e6:.1f} M" if row["parameters"] else ""
        reason = reasons(row).replace("|", "\\|")
        lines.append(f"| `{row['name']}` | {size} | {row['image']} | {marks} | {found} | {reason} |")
    return "\n".join(lines) + "\n"


def _mark(row: dict[str, Any], column: str, usual: str) -> str:
    if column not in row:
        return ""
    return ("yes" if row[column] else "**no**") + ("" if row["about"][column]["code"] == usual else "*")


def compared(rows: Sequence[dict[str, Any]]) -> str:
    """What the comparison of logits found, in words."""
    parts = []
    for mode in MODES:
        found = [row["compared"][mode] for row in rows if "compared" in row]
        numbers = [value for value in found if not isinstance(value, str)]
        equal = sum(value == 0 for value in numbers)
        parts.append(
            f"in {mode} mode, of {len(found)} families {equal} are equal to the last bit, {len(numbers) - equal} "
            f"differ by up to {max(numbers, default=0):.1e}, {found.count('random')} draw random "
            f"numbers in another order, {found.count('not possible')} cannot be compared"
        )
    return "; ".join(parts)


def reasons(row: dict[str, Any]) -> str:
    """Why columns of a row do not hold; one reason of several columns is said once."""
    columns: dict[str, list[str]] = {}
    for column, about in row["about"].items():
        if about["reason"]:
            columns.setdefault(about["reason"], []).append(column)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in columns.items())


def _say(found: float | str | None) -> str:
    return "" if found is None else found if isinstance(found, str) else f"{found:.1e}" if found else "0"


def _short(text: str, limit: int = 240) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def main(argv: Sequence[str] | None = None) -> None:
    """Check the named classifiers, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="classifiers; none for the smallest of every family")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "support", help="path of .md and .json, no suffix")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS), help="measure only these")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for a column of a row")
    arguments = parser.parse_args(argv)
    file = arguments.out.with_suffix(".json")
    rows = {row["name"]: row for row in json.loads(file.read_text(encoding="utf-8"))} if file.exists() else {}
    code = digest()
    names = arguments.names or [*torchvision_names(), *timm_names()]
    for name in names:
        for column in arguments.columns:
            row = rows.get(name, {"name": name, "about": {}})
            if row["about"].get(column, {}).get("code") == code:
                continue
            part = check_apart(name, column, arguments.limit)
            print(json.dumps(part), flush=True)
            rows[name] = add(row, part, column, code)
            write_text(file, json.dumps([rows[key] for key in sorted(rows, key=_library_first)], indent=1) + "\n")
    if not arguments.names:
        rows = {name: rows[name] for name in names}  # without families that are no more
    found = [rows[name] for name in sorted(rows, key=_library_first)]
    write_text(file, json.dumps(found, indent=1) + "\n")
    write_text(arguments.out.with_suffix(".md"), markdown(found))


def _library_first(name: str) -> tuple[bool, str]:
    return name.startswith(TIMM), name


if __name__ == "__main__":
    main()
