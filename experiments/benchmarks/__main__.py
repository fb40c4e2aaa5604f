"""Time and memory of heatmap training steps and of inference, against other ways to get them.

    python -m experiments.benchmarks --suite cpu --published ../TW-autoencoder --output experiments/results/benchmarks

It writes ``results.json`` (every raw turn), ``results.md`` and pictures, anew after each case. ``--published`` is a
clone of https://github.com/Kainmueller-Lab/TW-autoencoder; without it the rows of the published code say so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.benchmarks import plots
from experiments.benchmarks.compare import compare, profile_one
from experiments.benchmarks.machine import machine
from experiments.benchmarks.published import check_clone
from experiments.benchmarks.report import describe, markdown
from experiments.benchmarks.suites import PARTS, SUITES
from experiments.benchmarks.summary import AXES
from experiments.benchmarks.targets import HEADLINE, INFERENCE
from tw_seg.errors import InputError
from tw_seg.files import write_text

PROFILE_ROWS = 25


def run(
    suite: str,
    output: Path,
    *,
    published: Path | None = None,
    only: Sequence[str] = PARTS,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure a suite and write its results.

    Args:
        suite: Key of ``SUITES``.
        output: Folder for the results, created if need be.
        published: Clone of the published code.
        only: The parts to measure, of ``PARTS``.
        names: The cases to measure, by name; ``None`` for all. Profiles have none.

    Returns:
        What ``results.json`` holds.

    Raises:
        InputError: For an unknown suite, part or case, or a folder that is not the clone.
    """
    if suite not in SUITES:
        raise InputError(f"--suite must be one of {', '.join(SUITES)}, got {suite!r}")
    if unknown := set(only) - set(PARTS):
        raise InputError(f"--only takes {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    if published is not None:
        published = check_clone(published)
    chosen = SUITES[suite]()
    known = [entry.case.name for entry in chosen.entries]
    if unknown := set(names or ()) - set(known):
        raise InputError(f"--cases of suite {suite!r} are {'; '.join(known)}, got {'; '.join(sorted(unknown))}")
    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "suite": suite,
        "machine": machine(),
        "settings": asdict(chosen.settings),
        "cases": [],
        "profiles": [],
    }
    for entry in chosen.entries:
        if entry.part in only and entry.case.name in (known if names is None else names):
            print(f"{entry.case.name}: {entry.case.describe()}", flush=True)
            record = compare(entry.case, entry.contenders, published, settings=chosen.settings)
            results["cases"].append({"part": entry.part, "axis": entry.axis, **record})
            write(results, output)
    for name, case in chosen.profiles if "profile" in only else ():
        limit = chosen.settings.limit_seconds
        results["profiles"].append(profile_one(name, case, published, rows=PROFILE_ROWS, limit=limit))
    write(results, output)
    draw(results["cases"], output)
    return results


def write(results: dict[str, Any], output: Path) -> None:
    """Numbers and tables."""
    write_text(output / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(output / "results.md", markdown(results))


def draw(records: Sequence[dict[str, Any]], output: Path) -> None:
    """Pictures of the headline cases and of every sweep."""
    for record in records:
        if record["case"]["name"] in (HEADLINE, INFERENCE):
            part = record["case"]["part"]
            what = "Training step" if part == "training" else "Heatmaps of all classes"
            plots.bars(record, f"{what}: {describe(record)}", output / f"{part}.png")
    for axis, label in AXES.items():
        along = [record for record in records if record["axis"] == axis]
        if along:
            case = along[0]["case"]
            plots.scaling(along, axis, f"Against {label}: {case['encoder']}, {case['device']}", output / f"{axis}.png")


def main(args: Sequence[str] | None = None) -> None:
    """Measure a suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="cpu", choices=list(SUITES))
    parser.add_argument("--published", type=Path, help="clone of the published code")
    parser.add_argument("--output", type=Path, default=Path("benchmarks"))
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, separated by commas, of {', '.join(PARTS)}")
    parser.add_argument("--cases", help="names of cases, separated by semicolons; without it all of these parts")
    options = parser.parse_args(args)
    try:
        run(
            options.suite,
            options.output,
            published=options.published,
            only=options.only.split(","),
            names=None if options.cases is None else options.cases.split(";"),
        )
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
