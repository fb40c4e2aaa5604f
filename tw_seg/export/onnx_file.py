"""From a recorded graph to an ONNX file, and its run by onnxruntime. The one file that imports these libraries.

Adjoints that torch has as operations of its own (those of average pools and of nearest upsampling) have no counterpart
in ONNX: they are written as matrix products, one for each axis.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from tw_seg.errors import InputError
from tw_seg.files import write_whole

INPUT = "images"
OUTPUTS = ("masks", "probabilities", "mask_logits")
"""Names of what a file takes and returns; a model without masks returns probabilities alone."""


def convert_to_onnx(program: ExportedProgram, *, makes_masks: bool, facts: Mapping[str, Any]) -> Any:
    """An ``onnxscript`` model in memory.

    Args:
        program: Of `tw_seg.export.program.export_program`.
        makes_masks: Whether it returns masks.
        facts: What is written into the file's metadata, each value as JSON.

    Raises:
        InputError: The extra ``export`` is missing, or the exporter cannot translate an operation; says which.
    """
    check_libraries()
    names = OUTPUTS if makes_masks else OUTPUTS[1:2]
    for name in ("onnx_ir", "onnxscript"):  # they report every pass over the graph
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, about what it does not use
            plain = program.run_decompositions({**torch.export.default_decompositions(), **DECOMPOSITIONS})
            converted = torch.onnx.export(
                plain, dynamo=True, input_names=[INPUT], output_names=list(names), verbose=False, optimize=True
            )
    except Exception as error:  # errors of the exporter share no base class with those of onnxscript
        reason = _find_reason(error)
        raise InputError(f"torch.onnx cannot translate the model ({reason}): nothing was written") from error
    assert converted is not None
    converted.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
    return converted


def write_onnx(converted: Any, path: Path) -> None:
    """Write a model of `convert_to_onnx`, weights included."""
    write_whole(path, lambda draft: converted.save(draft))


def run_onnx(model: bytes | Path, images: np.ndarray) -> list[np.ndarray]:
    """Run a file, or what it would hold, in onnxruntime on a CPU.

    Args:
        model: The file or its content.
        images: As the file takes them, (N, H, W, C).
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), providers=["CPUExecutionProvider"]
    )
    found: list[np.ndarray] = session.run(None, {INPUT: images})
    return found


def check_libraries() -> None:
    """Raise an `InputError` that names the extra unless onnx, onnxscript and onnxruntime are installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"ONNX files need {error.name}: pip install 'tw-seg[export]'") from error


def _find_reason(error: BaseException) -> str:
    """The first cause of an error, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _spread(c: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Adjoint of a separable map: ``c`` (..., h, w) times a matrix (h, H) and one (w, W), (..., H, W)."""
    rows, columns = matrices
    return rows.T @ c @ columns


def _spread_average_pool(
    c: Tensor,
    like: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """``aten.avg_pool2d_backward``: see `tw_seg.lrp.core.linear_map.avg_pool_adjoint`."""
    windows, counts = [], []
    for axis in (0, 1):
        size, outputs = like.shape[2 + axis], c.shape[2 + axis]
        k, s, p = (per_axis[axis if len(per_axis) > 1 else 0] for per_axis in (kernel, stride or kernel, padding))
        pixel = torch.arange(size, device=c.device)[None]
        start = torch.arange(outputs, device=c.device)[:, None] * s - p
        inside = (pixel >= start) & (pixel < start + k)
        windows.append(inside.to(c.dtype))
        reached = torch.clamp(start + k, max=size + p) - start if count_include_pad else inside.sum(1, keepdim=True)
        counts.append(reached.to(c.dtype))
    cells = counts[0] * counts[1].T if divisor is None else float(divisor)
    return _spread(c / cells, windows)


def _spread_nearest(middle: float) -> Callable[..., Tensor]:
    """``aten.upsample_nearest2d_backward`` (``middle`` 0) and its ``nearest-exact`` form (0.5)."""

    def spread(c: Tensor, output_size: Sequence[int], input_size: Sequence[int], *factors: float | None) -> Tensor:
        matrices = []
        given = (*factors, None, None)
        for axis in (0, 1):
            size, outputs = input_size[2 + axis], output_size[axis]
            factor = given[axis]
            step = 1 / factor if factor else size / outputs
            place = torch.arange(outputs, device=c.device)
            source = torch.clamp(((place + middle) * step).floor(), max=size - 1)
            matrices.append((source[:, None] == torch.arange(size, device=c.device)[None]).to(c.dtype))
        return _spread(c, matrices)

    return spread


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.avg_pool2d_backward.default: _spread_average_pool,
    torch.ops.aten.upsample_nearest2d_backward.default: _spread_nearest(0.0),
    torch.ops.aten._upsample_nearest_exact2d_backward.default: _spread_nearest(0.5),
}
"""Operations of torch without a counterpart in ONNX, as operations that have one."""
