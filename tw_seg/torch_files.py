"""Files that ``torch.save`` wrote, read so that nothing in them is run."""

from __future__ import annotations

import errno
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from tw_seg.errors import InputError


def read_torch_file(path: str | Path, *, mmap: bool = False) -> Any:
    """What a file of ``torch.save`` holds, on the CPU: tensors, names and numbers (``weights_only=True``).

    Args:
        path: The file.
        mmap: Whether tensors stay in the file until they are used, where its format allows that.

    Raises:
        InputError: The file cannot be read, holds anything else, or claims to hold more than it does.
    """
    path = Path(path)
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                _check_entries(archive)
        # Training scripts put their arguments, which are names and numbers, beside the weights.
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings(action="ignore"):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipped)
        _check_tensors(found)
    except Exception as error:  # of pickle, zip, torch and the operating system, without a common base
        raise InputError(f"{path}: {_explain(error)}") from error
    return found


def find_damage(path: Path) -> str | None:
    """What is wrong with the bytes of a file of ``torch.save``; ``None`` if they are those that were written.

    torch notices a file that ends too early, but no wrong bytes: it leaves out the check sums, which are there.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(archive)
            broken = archive.testzip()
    except Exception as error:  # of zip and of the operating system, without a common base
        return "it ends too early" if _is_cut(error) else str(error)
    return None if broken is None else f"the check sum of its entry {broken!r} is wrong"


def _is_cut(error: Exception) -> bool:
    """Whether zip looked for a place before the start of a file, as it does where the end is missing."""
    return isinstance(error, OSError) and error.errno == errno.EINVAL


def _check_entries(archive: zipfile.ZipFile) -> None:
    """Refuse what ``torch.save`` does not write: compressed entries, which may fill the memory, and odd names."""
    for entry in archive.infolist():
        place = PurePosixPath(entry.filename.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts:
            raise ValueError(f"its entry {entry.filename!r} leads out of it")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"its entry {entry.filename!r} is compressed, which torch.save never does")


def _check_tensors(found: Any) -> None:
    """Refuse tensors that repeat a few numbers endlessly, or are of a kind that no weights are."""
    for tensor in _list_tensors(found):
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(f"it holds a tensor of the layout {tensor.layout}, not plain weights")
        if not tensor.is_meta and tensor.numel() * tensor.itemsize > 2 * tensor.untyped_storage().nbytes():
            raise ValueError(f"it holds a tensor of the shape {tuple(tensor.shape)} for which it has no numbers")


def _list_tensors(found: Any) -> Iterator[Tensor]:
    waiting, seen = [found], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, Mapping) else value


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and not _is_cut(error):
        return f"cannot be read ({error.strerror}); check the path"
    said = " ".join(str(error).split())
    found = re.search(
        r"(Trying to \w+ unsupported|Unsupported (?:global|class|type)).*?(?= Please use| Check the |$)", said
    )
    if found:
        return (
            f"cannot be read, as it holds more than tensors, names and numbers ({found[0][:200]}): loading that could "
            "run code. Save a state dict alone, best as .safetensors"
        )
    reason = "no pickle of tensors" if said.startswith("Weights only load failed") else said[:200]
    return f"cannot be read ({type(error).__name__}: {reason}); it is no file of torch.save, or damaged"
