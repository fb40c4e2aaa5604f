"""Which images make up a training batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from tw_seg.arguments import check_counts
from tw_seg.errors import InputError


class Draw(NamedTuple):
    """One row of a training batch.

    Attributes:
        image: Position of the image in its data set.
        labelled: Whether its mask may be read.
        key: (epoch, step, row): with a seed, all that the augmentation depends on.
    """

    image: int
    labelled: bool
    key: tuple[int, int, int]


class SemiSupervisedBatchSampler(Sampler[list[Draw]]):
    """Batches of labelled rows first, then unlabelled ones, in fixed numbers.

    Each pool is walked in shuffled passes, one after the other across batches and epochs, so its images are
    seen equally often (give or take one) at any time. A pool smaller than its part of a batch repeats within
    the batch. A batch is a pure function of (seed, epoch, step). Processes that train together share the rows of
    one batch: with W of them process w has the rows w, w + W, ...

    Args:
        labelled: Data set indices of the images whose masks may be read.
        unlabelled: Data set indices of the others; if empty, all rows are labelled.
        batch_size: Rows of a batch.
        labelled_per_batch: Labelled rows of a batch; 0 for image-level training.
        steps_per_epoch: Batches of an epoch; default: until every image was drawn, of those that batches have rows for.
        seed: Seed of the shuffling.
        process: Number of this process, and how many there are.

    Attributes:
        epoch: The epoch that iteration yields; see `set_epoch`.
        start: The step at which iteration begins, 0 unless a run is resumed in mid-epoch.

    Raises:
        InputError: For sizes that do not fit each other or an empty pool.
    """

    def __init__(
        self,
        labelled: Sequence[int] | np.ndarray,
        unlabelled: Sequence[int] | np.ndarray,
        *,
        batch_size: int,
        labelled_per_batch: int,
        steps_per_epoch: int | None = None,
        seed: int = 0,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        check_counts(1, batch_size=batch_size, steps_per_epoch=steps_per_epoch)
        if not 0 <= labelled_per_batch <= batch_size:
            raise InputError(f"labelled_per_batch: expected 0 to batch_size={batch_size}, got {labelled_per_batch}")
        if labelled_per_batch and len(labelled) == 0:
            raise InputError(f"labelled: no index, but labelled_per_batch is {labelled_per_batch}; set it to 0")
        if not labelled_per_batch and len(unlabelled) == 0:
            raise InputError("unlabelled: no index, but labelled_per_batch is 0; pass all images as unlabelled")
        if labelled_per_batch and len(unlabelled) == 0:
            labelled_per_batch = batch_size
        if process[1] > batch_size:
            raise InputError(
                f"batch_size: {batch_size} images are too few for {process[1]} processes, one each at least"
            )
        self.epoch = 0
        self.start = 0
        self._process = process
        self._parts = [
            (_Pool(labelled, seed, stream=0), True, labelled_per_batch),
            (_Pool(unlabelled, seed, stream=1), False, batch_size - labelled_per_batch),
        ]
        pools = ((labelled, labelled_per_batch), (unlabelled, batch_size - labelled_per_batch))
        passes = [-(-len(pool) // rows) for pool, rows in pools if rows]
        self._steps = max(passes) if steps_per_epoch is None else steps_per_epoch

    @property
    def sampler(self) -> SemiSupervisedBatchSampler:
        """Itself: where Lightning looks for ``set_epoch`` is a batch sampler's ``sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def batch(self, epoch: int, step: int) -> list[Draw]:
        """The rows of one batch that belong to this process."""
        rows: list[Draw] = []
        process, processes = self._process
        for pool, is_labelled, share in self._parts:
            first = (epoch * self._steps + step) * share
            for position in range(first, first + share):
                rows.append(Draw(pool[position], is_labelled, (epoch, step, len(rows))))
        return rows[process::processes]

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch = self.epoch  # bound here, as workers fetch ahead
        return (self.batch(epoch, step) for step in range(self.start, self._steps))

    def __len__(self) -> int:
        """Batches of a whole epoch, also when it is resumed in its middle."""
        return self._steps


class _Pool:
    """An endless list of shuffled passes over some indices; every position can be read on its own."""

    def __init__(self, indices: Sequence[int] | np.ndarray, seed: int, *, stream: int) -> None:
        self._indices = np.asarray(indices, dtype=np.int64)
        self._key = (seed, stream)
        self._pass = -1
        self._shuffled = self._indices

    def __getitem__(self, position: int) -> int:
        number, offset = divmod(position, len(self._indices))
        if number != self._pass:
            self._shuffled = np.random.default_rng([*self._key, number]).permutation(self._indices)
            self._pass = number
        return int(self._shuffled[offset])
