"""Decoded images in memory: every file is read once, whatever the number of epochs and workers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from tw_seg.data.dataset import SegmentationData
from tw_seg.data.loading.items import FileSource, Resized, Transform
from tw_seg.errors import InputError

GIB = 2**30


class DecodedCache:
    """Images at the size of the model and masks at their native size, all read in the constructor, by threads.

    The constructor returns a whole cache or raises, and nothing is written afterwards. Its memory is one tensor of
    images and one of masks, so all workers of a data loader read the same copy: forked ones inherit the pages, and for
    spawned ones torch moves the tensors into shared memory when they start (which then has to have room for them).
    For a moment, while it is filled, the masks take twice their memory.
    Nothing is kept on disk or beyond the process: changed files are read anew by the next run.

    Args:
        data: The data set.
        transform: Gives the size, and resizes.
        masks: Indices of the samples whose mask may be read. Asked for any other mask, the cache reads the file.
        limit: Most bytes it may take. A data set that needs more is refused: with a part of it in memory, the speed
            of a run would depend on chance.

    Attributes:
        nbytes: Bytes that images and masks take.

    Raises:
        InputError: If the limit is too small.
        DataError: If a file is unreadable.
    """

    def __init__(
        self, data: SegmentationData, transform: Transform, *, masks: Sequence[int] | np.ndarray, limit: float
    ) -> None:
        count, (height, width) = len(data), transform.size
        self.nbytes = count * height * width * transform.channels * transform.dtype.itemsize
        if self.nbytes > limit:
            raise _too_small(limit, self.nbytes, f"the {count} images")
        self._files = FileSource(data, transform)
        kind = torch.uint8 if transform.dtype == np.uint8 else torch.float32
        self._images = torch.empty((count, height, width, transform.channels), dtype=kind)
        self._sizes = np.empty((count, 2), dtype=np.int64)
        self._mask_read = np.zeros(count, dtype=bool)
        self._mask_read[masks] = True
        self._has_mask = np.zeros(count, dtype=bool)
        self._regions: list[np.ndarray | None] = [None] * count
        self._masks, self._ends = self._read(limit)

    def load(self, index: int, *, mask: bool) -> Resized:
        """The sample at ``index``; the arrays cannot be written to."""
        if mask and not self._mask_read[index]:
            return self._files.load(index, mask=True)
        height, width = map(int, self._sizes[index])
        native = regions = None
        if mask and self._has_mask[index]:
            end = int(self._ends[index])
            native = self._masks[end - height * width : end].view(height, width).numpy()
            native.flags.writeable = False
            regions = self._regions[index]
        image = self._images[index].numpy()
        image.flags.writeable = False
        return Resized(image, native, (height, width), regions)

    def _read(self, limit: float) -> tuple[torch.Tensor, np.ndarray]:
        """Fill all that `load` reads; returns the masks, one after the other, and where each ends."""
        images, count = self._images.numpy(), len(self._images)

        def read(index: int) -> np.ndarray:
            resized = self._files.load(index, mask=bool(self._mask_read[index]))
            images[index] = resized.image
            self._sizes[index] = resized.size
            self._has_mask[index] = resized.native_mask is not None
            self._regions[index] = resized.regions
            return np.empty(0, dtype=np.uint8) if resized.native_mask is None else resized.native_mask.ravel()

        masks: list[np.ndarray] = []
        with ThreadPoolExecutor() as pool:
            for mask in pool.map(read, range(count)):
                masks.append(mask)
                self.nbytes += mask.size
                if self.nbytes > limit:
                    pool.shutdown(wait=False, cancel_futures=True)
                    needed = images.nbytes + (self.nbytes - images.nbytes) * count / len(masks)
                    raise _too_small(limit, needed, f"the {count} images and their masks (about)")
        return torch.from_numpy(np.concatenate(masks)), np.array(list(itertools.accumulate(map(len, masks))))


def _too_small(limit: float, needed: float, what: str) -> InputError:
    need = math.ceil(needed / GIB * 1000) / 1000  # rounded up: the number is there to be set
    return InputError(
        f"cache_gib: {limit / GIB:.3g} GiB are left for decoded images, but {what} need {need} GiB; "
        "allow that much more, choose a smaller size, or set cache_gib=0 to read the files in every epoch"
    )
