from __future__ import annotations

import pickle
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.data.loading.samples import Shapes, assert_same
from tw_seg.data.layouts.digits import DigitScenes
from tw_seg.data.layouts.folder import FolderDataset
from tw_seg.data.loading.cache import GIB, DecodedCache
from tw_seg.data.loading.collate import collate
from tw_seg.data.loading.items import EvalItems, FileSource, TrainItems
from tw_seg.data.loading.sampler import Draw, SemiSupervisedBatchSampler
from tw_seg.data.loading.transforms import EvalTransform, TrainTransform, init_worker
from tw_seg.errors import DataError, InputError
from tw_seg.types import Sample

ALL = np.arange(7)


class Counted(Shapes):
    """Counts what is read."""

    def __init__(self) -> None:
        self.read: Counter[tuple[int, bool]] = Counter()
        self._lock = threading.Lock()

    def load(self, index: int, *, mask: bool) -> Sample:
        with self._lock:
            self.read[index, mask] += 1
        sample = super().__getitem__(index)
        return sample if mask else sample._replace(mask=None)


class Gone(Shapes):
    """After `vanish` nothing can be read any more, also in workers."""

    here = True

    def __getitem__(self, index: int) -> Sample:
        assert self.here, "read again"
        return super().__getitem__(index)


def cached(data, size=(16, 24), masks=ALL, limit=GIB) -> DecodedCache:
    return DecodedCache(data, EvalTransform(size), masks=masks, limit=limit)


def equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is other is None or (one.dtype == other.dtype and np.array_equal(one, other))


@pytest.mark.parametrize("size", [(16, 24), (20, 30), (50, 40)], ids=["smaller", "native", "larger"])
def test_holds_what_the_files_hold(size):
    data, files = Shapes(), FileSource(Shapes(), EvalTransform(size))
    cache = cached(data, size)
    for mask in (True, False):
        for index in (*range(7), -1):
            kept, read = cache.load(index, mask=mask), files.load(index % 7, mask=mask)
            assert equal(kept.image, read.image) and kept.size == read.size
            assert equal(kept.native_mask, read.native_mask)
            assert (kept.native_mask is None) == (not mask or index % 7 % 2 == 1)
    masks = sum((20 + index) * 30 for index in (0, 2, 4, 6))
    assert cache.nbytes == 7 * size[0] * size[1] * 3 + masks


def test_reads_every_sample_once_and_no_other_mask():
    data = Counted()
    cache = cached(data, masks=[2, 3])
    wanted = Counter({(index, index in (2, 3)): 1 for index in range(7)})
    assert data.read == wanted
    for _ in range(3):
        for index in range(7):
            cache.load(index, mask=index in (2, 3))
            cache.load(index, mask=False)
    assert data.read == wanted
    assert equal(cache.load(4, mask=True).native_mask, data[4].mask)  # not kept: read, not taken for absent
    assert data.read - wanted == Counter({(4, True): 1})


@pytest.mark.parametrize("masks", [ALL, []], ids=["masks", "no masks"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_read_the_cache_not_the_files(workers, masks):
    data = Gone()
    transform = TrainTransform(EvalTransform(16), {"flip": True, "recolor": 0.5}, seed=3)
    sampler = SemiSupervisedBatchSampler(
        [0, 2] if len(masks) else [],
        [1, 3, 4, 5, 6],
        batch_size=3,
        labelled_per_batch=1 if len(masks) else 0,
        steps_per_epoch=2,
    )
    kwargs = {"batch_sampler": sampler, "collate_fn": collate}
    wanted = list(DataLoader(TrainItems(data, transform), **kwargs))
    items = TrainItems(data, transform, cached(data, 16, masks))
    data.here = False
    loader = DataLoader(items, **kwargs, num_workers=workers, worker_init_fn=init_worker)
    found = list(loader)
    assert len(found) == len(wanted) == 2
    for one, other in zip(wanted, found, strict=True):
        assert_same(one, other)
        assert one.sizes == other.sizes


@pytest.mark.slow  # an interpreter starts and imports everything
def test_a_spawned_worker_shares_the_one_copy():
    """What is written here after it has started is seen there."""
    data = Gone()
    transform = EvalTransform(16, mean=(0, 0, 0), std=(1, 1, 1))
    cache = cached(data, 16)
    wanted = [collate([EvalItems(data, transform)[index]]) for index in range(7)]
    data.here = False
    loader = DataLoader(
        EvalItems(data, transform, cache),
        batch_size=1,
        num_workers=1,
        multiprocessing_context="spawn",
        persistent_workers=True,
        collate_fn=collate,
        worker_init_fn=init_worker,
    )
    for one, other in zip(wanted, loader, strict=True):
        assert_same(one, other)
    assert cache._images.is_shared() and cache._masks.is_shared()
    cache._images.fill_(255)
    assert all(batch.images.min() == 1 for batch in loader)


def test_an_epoch_does_not_write_to_the_cache():
    data = Shapes()
    for transform in (
        TrainTransform(EvalTransform(16), {"flip": True, "recolor": 0.5}),
        TrainTransform(EvalTransform(16), {"scale": 0, "shift": 0, "rotate": 0, "color": 0}),
    ):
        cache = cached(data, 16)
        before = cache._images.clone(), cache._masks.clone()
        items = TrainItems(data, transform, cache)
        for row in range(40):
            item = items[Draw(row % 7, row % 2 == 0, (0, 0, row))]
            item.image.zero_()
            if item.mask is not None:
                item.mask.zero_()
        assert torch.equal(cache._images, before[0]) and torch.equal(cache._masks, before[1])
    for array in cache.load(0, mask=True)[:2]:
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0


def test_evaluation_from_the_cache():
    data, transform = Shapes(), EvalTransform(16)
    plain, kept = EvalItems(data, transform), EvalItems(data, transform, cached(data, 16))
    assert_same(collate([plain[i] for i in range(7)]), collate([kept[i] for i in range(7)]))


def test_data_without_files():
    data = DigitScenes("val", size=24, length=5)
    cache = cached(data, 16, masks=np.arange(5))
    assert equal(cache.load(3, mask=True).native_mask, data[3].mask)
    assert len(pickle.dumps(cache)) > cache.nbytes


def test_images_beyond_the_limit_are_refused_before_reading():
    data = Counted()
    need = 7 * 16 * 24 * 3
    with pytest.raises(InputError, match=r"cache_gib: .* the 7 images need 0.001 GiB; allow that much more"):
        cached(data, limit=need - 1)
    assert not data.read
    assert cached(data, masks=[], limit=need).nbytes == need


def test_masks_beyond_the_limit_are_refused():
    exact = cached(Shapes()).nbytes
    assert cached(Shapes(), limit=exact).nbytes == exact
    with pytest.raises(InputError, match=r"the 7 images and their masks \(about\) need 0.001 GiB"):
        cached(Shapes(), limit=exact - 1)


def test_the_number_to_set_is_rounded_up():
    class Many(Shapes):
        def __len__(self) -> int:
            return 10**4

    with pytest.raises(InputError, match=r"cache_gib: 1 GiB are left .* the 10000 images need 1.832 GiB"):
        cached(Many(), size=256)  # 1.8311 GiB


def test_a_broken_file_is_named_and_gives_no_cache(tmp_path: Path):
    (tmp_path / "images").mkdir()
    rows = ["image,thing"]
    for index in range(9):
        Image.fromarray(np.full((8, 8, 3), index, dtype=np.uint8)).save(tmp_path / "images" / f"{index}.png")
        rows.append(f"{index},1")
    (tmp_path / "image_labels.csv").write_text("\n".join(rows))
    data = FolderDataset(tmp_path)
    assert cached(data, masks=np.arange(9)).load(8, mask=True).image.max() == 8
    (tmp_path / "images" / "4.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"4.png: cannot read the image"):
        cached(data, masks=np.arange(9))


class Spectra(Shapes):
    """Images of five channels, float32."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        image = np.random.default_rng(index).random((*sample.image.shape[:2], 5), dtype=np.float32)
        return sample._replace(image=image)


def test_images_of_any_channels_and_type():
    data, transform = Spectra(), EvalTransform((16, 24), mean=[0.5] * 5, std=[0.2] * 5, floating=True)
    cache = DecodedCache(data, transform, masks=ALL, limit=GIB)
    assert cache.nbytes >= 7 * 16 * 24 * 5 * 4
    for index in range(7):
        cached, read = (EvalItems(data, transform, source)[index] for source in (cache, None))
        assert torch.equal(cached.image, read.image) and cached.image.shape == (5, 16, 24)
    with pytest.raises(
        DataError, match=r"s0: expected an image \(h, w, 3\) of type uint8, got \(20, 30, 5\) of float32"
    ):
        DecodedCache(data, EvalTransform(16), masks=ALL, limit=GIB)
