"""One exception family. Each message says what was expected, what was found and what to do."""

from __future__ import annotations


class TwSegError(Exception):
    """Base of all errors that tw_seg raises on purpose."""


class InputError(TwSegError, ValueError):
    """An argument or a batch has the wrong type, shape or values."""


class DataError(TwSegError, ValueError):
    """A file of a data set is missing, unreadable or inconsistent."""


class MaskSizeError(DataError):
    """A mask has another size than its image."""


class MaskIdError(DataError):
    """A mask holds a value that is no class id."""


class ContradictionError(DataError):
    """Masks contradict the image-level labels of their images."""


class BudgetError(TwSegError, ValueError):
    """A label budget is empty, larger than the data or does not fit the data."""


class NotFiniteError(TwSegError, FloatingPointError):
    """A loss is NaN or infinite; the message names the images of its batch."""


class FaultError(TwSegError, RuntimeError):
    """The machine failed a command: no space, no memory, a process that was killed; the message says how to go on."""


class TraceError(TwSegError, TypeError):
    """The classifier cannot be traced by torch.fx."""


class UnsupportedOpError(TwSegError, NotImplementedError):
    """The classifier holds operations that have no relevance rule; the message lists every one."""


class SweepError(TwSegError, RuntimeError):
    """A trial of a sweep failed, or measured nothing."""
