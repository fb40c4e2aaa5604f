"""Errors of torch that mean that memory ran out."""

from __future__ import annotations

import re

import torch

_OF_A_CPU = re.compile(r"can't allocate memory|not enough memory", re.IGNORECASE)  # a plain RuntimeError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left.

    Examples:
        >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
        True
        >>> is_out_of_memory(RuntimeError("shapes differ"))
        False
    """
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and bool(_OF_A_CPU.search(str(error))))
