"""What the machine does to a command, full disks, killed processes, signals, as one line that says how to go on."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pytorch_lightning.utilities.exceptions import SIGTERMException

from tw_seg.errors import FaultError, TwSegError
from tw_seg.memory import is_out_of_memory

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SMALLER = (
    "smaller batches (--data.batch_size, --data.eval_batch_size, of tw-seg predict --batch_size) take less, and so "
    "does a heatmap segmenter with a smaller memory_budget in GiB "
    "(--model.model_kwargs.decoder_kwargs.schedule.memory_budget)"
)
_WORKER = re.compile(r"DataLoader worker \(pid.*?\)[^.]*")


@contextmanager
def name_faults(describe_rest: Callable[[], str]) -> Iterator[None]:
    """Say of a fault of the machine what it was and what to do.

    Args:
        describe_rest: How to go on, asked when a fault has happened; may be empty.

    Raises:
        FaultError: Instead of an ``OSError`` and of what torch raises out of memory or when a worker was killed.
        KeyboardInterrupt: With that text, instead of the ``SystemExit`` that Lightning makes of a signal.
    """

    def name(what: str) -> FaultError:
        rest = describe_rest()
        return FaultError(f"{what}; {rest}" if rest else what)

    try:
        yield
    except TwSegError:
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(describe_rest()) from None
    except SystemExit as end:
        if isinstance(end, SIGTERMException) or isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt(describe_rest()) from None
        raise
    except ConnectionError:
        raise  # of a server, not of a file
    except OSError as error:
        if error.errno is None:
            raise
        remedy = "free some space" if error.errno in _FULL else "see that it is there and may be read and written"
        raise name(f"{error.filename or 'a file of the run'}: {error.strerror}; {remedy}") from error
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise name(f"{str(error).partition(chr(10))[0] or 'out of memory'}; {_SMALLER}") from error
        if worker := _WORKER.search(str(error)):
            raise name(
                f"{worker[0]}, which read images; if memory was short, as is most likely, give fewer --data.num_workers"
            ) from error
        raise
