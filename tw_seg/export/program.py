"""From a deployed model to a graph that torch.export recorded, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from tw_seg.errors import InputError
from tw_seg.export.deployed import Deployed
from tw_seg.files import write_whole

METADATA = "tw_seg.json"
"""Name of the extra file in a ``.pt2`` file: the facts, as JSON."""


def export_program(deployed: Deployed) -> ExportedProgram:
    """Record the model for pictures of any number and size.

    Raises:
        InputError: torch.export cannot follow it; says why.
    """
    example = deployed.make_example(3, 67, 71)
    dynamic = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    try:
        with torch.no_grad():
            deployed(example)  # a decoder traces a forward that branches on sizes when it first meets one
            return torch.export.export(deployed, (example,), dynamic_shapes=(dynamic,), strict=False)
    except Exception as error:  # torch.export raises what the model does, and errors of many kinds of its own
        raise InputError(
            f"torch.export cannot follow {type(deployed.model).__name__} on {deployed.model.encoder_name!r} "
            f"({_shorten(error)}): nothing was written. Use it from Python, or another encoder (docs/support.md)"
        ) from error


def write_program(program: ExportedProgram, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a ``.pt2`` file, with the facts beside the graph."""
    extra = {METADATA: json.dumps(facts)}

    def write(draft: Path) -> None:
        with open(draft, "wb") as file:
            torch.export.save(program, file, extra_files=extra)

    write_whole(path, write)


def _shorten(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
