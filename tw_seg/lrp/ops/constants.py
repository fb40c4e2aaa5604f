"""Functions whose result carries no relevance: sizes, choices by a value, statistics to normalise by."""

from __future__ import annotations

_SHAPES = frozenset({"size", "dim", "numel", "stride", "ndimension", "get_device", "is_floating_point", "len"})
_VALUES = frozenset(
    "new_zeros new_ones new_full new_empty new_tensor zeros_like ones_like full_like empty_like rand_like randn_like "
    "detach eq ne lt le gt ge isnan isinf argmax argmin argsort".split()
)
# Scales to normalise by are held constant, as the statistics of every normalisation are.
_STATISTICS = frozenset({"norm", "vector_norm", "linalg_norm", "linalg_vector_norm", "var", "std", "rsqrt", "sqrt"})

CONSTANT_FUNCTIONS = _SHAPES | _VALUES | _STATISTICS
"""Names of functions and methods."""

CONSTANT_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "is_cuda"})
"""Names of attributes of tensors."""
