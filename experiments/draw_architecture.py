"""Draws the package from its imports: one box for each folder and file, one arrow for each import, all pointing down.

    python -m experiments.draw_architecture           # writes docs/architecture.png
    python -m experiments.draw_architecture --check   # exit status 1 if the drawing is out of date

Read from the source with ``ast``, so nothing is imported; imports inside functions and for type checkers count. An
arrow that a chain of other arrows implies is left out. The picture carries the arrows it was drawn from as text.
"""

from __future__ import annotations

import argparse
import ast
import graphlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise, permutations
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tw_seg"
DRAWING = ROOT / "docs" / "architecture.png"

Imports = dict[str, set[str]]
"""Part of the package (a file, or a folder as a whole) -> the parts that it imports."""

Spot = str | tuple[str, str, int]
"""A box, by its part, or a place where an arrow passes a row: from, to and row."""

HEIGHT = 0.44  # of a box; rows are 1 apart
INK, PALE, OPEN = "#1f2a35", "#5b6b7b", "#fff1da"

FILES = "files"
"""The part of a folder that stands for all files directly inside it, where ``CAPTIONS`` has it."""

CAPTIONS = {
    "tw_seg": {
        "cli": "the command tw-seg",
        "app": "a page in the browser",
        "training": "task, data module, callbacks",
        "export": "ONNX, .pt2",
        "models": "segmenter, baselines",
        "explain": "why this mask?",
        "predict": "blend, write",
        "report": "of a test",
        "lrp": "the decoder",
        "losses": "of pixels",
        "metrics": "of masks",
        "data": "files, batches",
        "active": "which masks?",
        "sweeps": "trials, table",
        FILES: "shared by all of the above",
    },
    "tw_seg/lrp": {
        "conservation": "is relevance accounted for?",
        "decoder": "HeatmapDecoder",
        "decode": "plan, propagate, read out",
        "trace": "model to graph",
        "composite": "which rule where",
        "seeds": "what is explained",
        "ops": "one declaration for each operation",
        "rules": "Epsilon, Gamma, ZPlus, ...",
        "core": "graph, tape, linear maps",
    },
}
"""Folder -> part -> what stands under its name in the drawing."""


def read_imports(text: str, package: tuple[str, ...]) -> Iterator[str]:
    """Absolute names of every import in a module's source, also of those inside functions.

    ``from a import b`` gives ``a.b``, which names a module either way: as it is, or without its last part.

    Args:
        text: The source.
        package: The package that the module is in, such as ``("tw_seg", "lrp")``.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def find_imports(folder: Path) -> Imports:
    """The files and folders inside a folder of the package, and which of them imports which.

    Its own ``__init__.py`` and ``__main__.py`` are no parts: they only name what others define. Where the folder's
    captions have ``FILES``, all its files are one part, named by all of them.
    """
    inside = folder.relative_to(ROOT).parts
    files = sorted(path.stem for path in folder.glob("[!_]*.py"))
    joined = FILES in CAPTIONS["/".join(inside)]
    part_of = {name: ", ".join(files) if joined else name for name in files}
    part_of |= {path.parent.name: path.parent.name for path in folder.glob("*/__init__.py")}
    parts: Imports = {part: set() for part in part_of.values()}
    for path in sorted(folder.rglob("*.py")):
        part = part_of.get(path.relative_to(folder).parts[0].removesuffix(".py"))
        if part is None:
            continue
        for name in read_imports(path.read_text(encoding="utf-8"), path.relative_to(ROOT).parent.parts):
            *package, imported = name.split(".")[: len(inside) + 1]
            if tuple(package) == inside and imported in part_of:
                parts[part].add(part_of[imported])
    return {part: others - {part} for part, others in parts.items()}


def remove_implied(parts: Imports) -> Imports:
    """Without the arrows that a longer way implies: if a imports b and b imports c, none from a to c.

    Raises:
        graphlib.CycleError: Parts import each other in a circle.
    """
    reached: Imports = {}
    for part in graphlib.TopologicalSorter(parts).static_order():
        reached[part] = set().union(*({other} | reached[other] for other in parts[part]))
    return {part: others - set().union(*(reached[other] for other in others)) for part, others in parts.items()}


def find_levels(parts: Imports) -> dict[str, int]:
    """The row of each part, 0 the lowest: one above the highest part that it imports."""
    level: dict[str, int] = {}
    for part in graphlib.TopologicalSorter(parts).static_order():
        level[part] = 1 + max((level[other] for other in parts[part]), default=-1)
    return level


def place(parts: Imports) -> tuple[dict[Spot, tuple[float, int, float]], dict[tuple[str, str], list[Spot]]]:
    """Where boxes stand and where arrows pass rows that they skip, each in a free place between the boxes.

    Returns:
        Position (from 0 to 1), row and width of every box and every place that an arrow passes; and for each arrow
        what it goes through, from the importing part to the imported one.
    """
    level = find_levels(parts)
    ways: dict[tuple[str, str], list[Spot]] = {}
    rows: list[list[Spot]] = [[] for _ in range(max(level.values()) + 1)]
    for part in sorted(parts):
        rows[level[part]].append(part)
        for other in sorted(parts[part]):
            passed: list[Spot] = [(part, other, y) for y in range(level[part] - 1, level[other], -1)]
            for y, spot in zip(range(level[part] - 1, level[other], -1), passed, strict=True):
                rows[y].append(spot)
            ways[part, other] = [part, *passed, other]
    arrows = {pair for way in ways.values() for pair in pairwise(way)}

    def tangle(*chosen: Sequence[Spot], end: int | None = None) -> tuple[int, float]:
        """How many arrows that join rows cross, and how far they lean; ``end``: those with this end there."""
        x = {spot: (i + 0.5) / len(row) for row in (*rows, *chosen) for i, spot in enumerate(row)}
        spots = {spot for row in chosen for spot in row}
        ends = (0, 1) if end is None else (end,)
        joins = [(x[a], x[b], level_of[b]) for a, b in arrows if any((a, b)[e] in spots for e in ends)]
        crossed = sum((a - c) * (b - d) < 0 and y == z for (a, b, y), (c, d, z) in combinations(joins, 2))
        return crossed, sum(abs(a - b) for a, b, _ in joins)

    level_of = {spot: y for y, row in enumerate(rows) for spot in row}
    tried = []
    for _ in range(3):  # upwards by the arrows that leave a row, downwards by those that reach it
        for end, order in ((0, rows), (1, rows[::-1])):
            for row in order:
                row[:] = min(permutations(row), key=lambda some, end=end: tangle(some, end=end))
            tried.append([list(row) for row in rows])
    rows = min(tried, key=lambda some: tangle(*some))
    places = {}
    for y, row in enumerate(rows):
        shares = [1.0 if isinstance(spot, str) else 0.3 for spot in row]
        left = 0.0
        for spot, share in zip(row, shares, strict=True):
            width = 0.94 * share / sum(shares)
            widest = 0.5 if len(str(spot)) < 30 else 0.9
            places[spot] = (0.03 + left + width / 2, y, min(width - 0.03, widest))
            left += width
    return places, ways


def describe(drawn: Mapping[str, Imports]) -> str:
    """The arrows as text, one part a line."""
    lines = [
        f"{folder}/{part} -> {', '.join(sorted(others)) or '(nothing)'}"
        for folder, parts in drawn.items()
        for part, others in sorted(parts.items())
    ]
    return "\n".join(lines)


def read_package() -> dict[str, Imports]:
    """What is drawn: the arrows of each folder of ``CAPTIONS``, without the implied ones."""
    return {folder: remove_implied(find_imports(ROOT / folder)) for folder in CAPTIONS}


def read_drawing(path: Path = DRAWING) -> str:
    """The arrows that a drawing was made from, as text."""
    with Image.open(path) as image:
        return str(image.info["Description"])


def draw(drawn: Mapping[str, Imports], path: Path) -> None:
    """Draw folders side by side; a part whose folder is drawn as well has that drawing's colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), dpi=110)
    axes = figure.subplots(1, len(drawn), gridspec_kw={"wspace": 0.04, "width_ratios": [1.4, 1]})
    figure.subplots_adjust(left=0.01, right=0.99, top=0.94, bottom=0.01)
    for axis, (folder, parts) in zip(axes, drawn.items(), strict=True):
        opened = {Path(other).name for other in drawn if str(Path(other).parent) == folder}
        _draw_folder(axis, folder, parts, opened)
    figure.savefig(path, metadata={"Description": describe(drawn), "Software": ""})


def _draw_folder(axis: Any, folder: str, parts: Imports, opened: set[str]) -> None:
    from matplotlib.patches import FancyBboxPatch

    places, ways = place(parts)
    count = 1 + max(y for _, y, _ in places.values())
    axis.set(xlim=(-0.005, 1.005), ylim=(-0.55, count - 0.45))
    axis.axis("off")

    def add_box(x: float, y: float, width: float, height: float, **colours: str) -> None:
        style = "round,pad=0,rounding_size=0.015"
        corner = (x - width / 2, y - height / 2)
        axis.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, mutation_aspect=count, **colours))

    add_box(0.5, (count - 1) / 2, 1.0, count, facecolor=OPEN if "/" in folder else "#f4f6f8", edgecolor="#c8ced6")
    axis.set_title(f"{folder}/", loc="left", fontsize=13, weight="bold", color=INK)
    for part in parts:
        x, y, width = places[part]
        add_box(x, y, width, HEIGHT, facecolor=OPEN if part in opened else "white", edgecolor=PALE)
        caption = CAPTIONS[folder].get(FILES if ", " in part else part, "")
        size = min(11.0, 640 * width / len(part))  # the ground floor is one long name
        axis.text(x, y + 0.07, part, ha="center", va="center", fontsize=size, weight="bold", color=INK)
        axis.text(x, y - 0.11, caption, ha="center", va="center", fontsize=7.5, color=PALE)
    for way in ways.values():
        _draw_arrow(axis, way, places, ways)


def _draw_arrow(axis: Any, way: list[Spot], places: Mapping[Spot, tuple[float, int, float]], ways: Any) -> None:
    """One arrow, upright where it leaves, passes or reaches a row."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    def port(part: Spot, neighbour: Spot, neighbours: list[Spot]) -> float:
        """Where an arrow joins a box: all arrows of one side are spread over it in the order of their other ends."""
        x, _, width = places[part]
        ordered = sorted(neighbours, key=lambda spot: places[spot][0])
        return x + 0.8 * width * ((ordered.index(neighbour) + 0.5) / len(ordered) - 0.5)

    out = port(way[0], way[1], [other[1] for other in ways.values() if other[0] == way[0]])
    into = port(way[-1], way[-2], [other[-2] for other in ways.values() if other[-1] == way[-1]])
    xs = [out, *(places[spot][0] for spot in way[1:-1]), into]
    ys = [places[spot][1] for spot in way]
    points, codes = [(xs[0], ys[0] - HEIGHT / 2)], [Curve.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(zip(xs, ys, strict=True)):
        top, bottom = y0 - HEIGHT / 2, y1 + HEIGHT / 2
        middle = (top + bottom) / 2
        points += [(x0, middle), (x1, middle), (x1, bottom)]
        codes += [Curve.CURVE4] * 3
        if y1 != ys[-1]:  # straight through a row that it passes
            points.append((x1, y1 - HEIGHT / 2))
            codes.append(Curve.LINETO)
    curve = Curve(points, codes)
    axis.add_patch(FancyArrowPatch(path=curve, arrowstyle="-|>", mutation_scale=11, color="#5b7fa6", linewidth=1.3))


def main(args: Sequence[str] | None = None) -> int:
    """Draw, or compare with the drawing; the exit status."""
    parser = argparse.ArgumentParser("python -m experiments.draw_architecture", description=__doc__)
    parser.add_argument("--output", type=Path, default=DRAWING, help="the picture, a PNG file")
    parser.add_argument("--check", action="store_true", help="draw nothing; compare the arrows with the picture's")
    given = parser.parse_args(args)
    drawn = read_package()
    if given.check:
        return int(describe(drawn) != read_drawing(given.output))
    draw(drawn, given.output)
    print(describe(drawn))
    return 0


if __name__ == "__main__":
    sys.exit(main())
