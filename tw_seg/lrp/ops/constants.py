"""Functions whose result carries no relevance: sizes, choices by a value, statistics to normalise by."""

from __future__ import annotations

from torch import Tensor

SIZES = frozenset(
    "size dim numel nelement element_size stride ndimension get_device is_floating_point is_complex len".split()
)
"""Names of functions and methods that return sizes."""
_VALUES = frozenset(
    "new_zeros new_ones new_full new_empty new_tensor zeros_like ones_like full_like empty_like rand_like randn_like "
    "detach eq ne lt le gt ge equal not_equal less less_equal greater greater_equal isnan isinf isfinite isposinf "
    "isneginf isclose isin allclose is_nonzero signbit logical_and logical_or logical_xor logical_not all any bool "
    "argmax argmin argsort argwhere nonzero count_nonzero searchsorted bucketize".split()
)

CONSTANT_FUNCTIONS = SIZES | _VALUES | {"hold_constant"}
"""Names of functions and methods."""

STATISTICS = frozenset({"norm", "linalg_norm", "linalg_vector_norm", "var", "std", "rsqrt", "sqrt"})
"""Names of those that mostly scale: one that no relevance reaches, such as a divisor, is a constant."""

CONSTANT_ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "is_cuda", "itemsize", "nbytes"})
"""Names of attributes of tensors."""


def hold_constant(value: Tensor) -> Tensor:
    """The value, which carries no relevance from here on; unlike ``detach``, gradients pass it."""
    return value.clone()


CONSTANT_VIEWS = frozenset({"contiguous", "detach", "data"})
"""Names of functions, methods and attributes whose value is its argument's memory, where it carries no relevance."""
