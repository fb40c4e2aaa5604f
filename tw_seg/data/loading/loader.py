"""A data loader that goes on where a run was stopped, also in mid-epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from tw_seg.data.loading.sampler import SemiSupervisedBatchSampler


class ResumableLoader(DataLoader[Any]):
    """A data loader that goes on in mid-epoch; its ``batch_sampler`` must be a `SemiSupervisedBatchSampler`.

    Its state says which epoch it is in and how many batches of it were handed out, counted where they leave
    the loader, so that batches which workers fetched ahead do not count. Lightning keeps the state in every
    checkpoint and gives it back on resuming. If it then asks for the epoch it was in, iteration begins at the
    next batch, without loading the ones before; if it asks for another, the epoch was over and the next one
    begins, whatever its number: with ``max_steps``, Lightning 2.6 counts one epoch too many when it resumes
    from the end of an epoch, and from then on.

    Iteration starts with the first ``next``, not with ``iter``: Lightning calls ``iter`` before it sets the
    epoch.
    """

    # Not in a constructor: Lightning copies loaders by their constructor's arguments.
    _epoch = 0  # the sampler's epoch of the last iteration,
    _asked = 0  # the epoch that was asked for with set_epoch then,
    _batches = 0  # and the batches handed out in it
    _resumed = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        sampler = self.batch_sampler
        assert isinstance(sampler, SemiSupervisedBatchSampler)
        asked = sampler.epoch
        if self._resumed and asked != self._asked:
            self._epoch, self._batches = self._epoch + 1, 0
        elif not self._resumed:
            self._epoch, self._batches = self._epoch + asked - self._asked, 0
        self._asked, self._resumed = asked, False
        sampler.epoch, sampler.start = self._epoch, self._batches
        batches = super().__iter__()
        sampler.epoch, sampler.start = asked, 0
        for batch in batches:
            self._batches += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where the loader is: whole numbers only."""
        return {"epoch": self._epoch, "asked": self._asked, "batches": self._batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batch at which `state_dict` was called."""
        self._epoch, self._asked, self._batches = state["epoch"], state["asked"], state["batches"]
        self._resumed = True
