from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tw_seg.data.loading.sampler import SemiSupervisedBatchSampler
from tw_seg.errors import InputError

pools = st.integers(0, 12).map(lambda n: list(range(100, 100 + n)))


def make(labelled=5, unlabelled=23, *, batch_size=6, labelled_per_batch=2, **kwargs):
    return SemiSupervisedBatchSampler(
        range(labelled),
        range(100, 100 + unlabelled),
        batch_size=batch_size,
        labelled_per_batch=labelled_per_batch,
        **kwargs,
    )


@given(st.integers(1, 9), st.integers(0, 30), st.integers(1, 8), st.integers(0, 8), st.integers(0, 99))
def test_composition_and_even_coverage(labelled, unlabelled, batch_size, share, seed):
    assume(share <= batch_size and (share or unlabelled))
    sampler = make(labelled, unlabelled, batch_size=batch_size, labelled_per_batch=share, seed=seed)
    seen: Counter[int] = Counter()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        for step, batch in enumerate(batches):
            expected = share if unlabelled else batch_size
            assert [draw.labelled for draw in batch] == [True] * expected + [False] * (batch_size - expected)
            assert all((draw.image < 100) == draw.labelled for draw in batch)
            assert [draw.key for draw in batch] == [(epoch, step, row) for row in range(batch_size)]
            seen.update(draw.image for draw in batch)
            for pool in (range(labelled), range(100, 100 + unlabelled)):  # even at any time
                counts = [seen[image] for image in pool]
                assert not counts or max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "steps"),
    [(5, 23, 6), (23, 5, 12)],  # 4 unlabelled images a batch, 2 labelled ones
)
def test_every_image_is_drawn_in_a_default_epoch(labelled, unlabelled, steps):
    sampler = make(labelled, unlabelled)
    assert len(sampler) == steps
    assert {draw.image for batch in sampler for draw in batch} == {*range(labelled), *range(100, 100 + unlabelled)}


def test_default_epoch_without_unlabelled_rows_is_one_pass_over_the_labelled():
    assert len(make(10, 0, batch_size=4)) == 3
    assert len(make(10, 50, batch_size=4, labelled_per_batch=4)) == 3
    assert len(make(10, 50, batch_size=4, labelled_per_batch=4, steps_per_epoch=7)) == 7


def test_passes_and_pools_are_shuffled_differently():
    sampler = make(8, 8, batch_size=2, labelled_per_batch=1)
    orders = []
    for epoch in range(3):
        orders.append(tuple(sampler.batch(epoch, step)[0].image for step in range(8)))
        orders.append(tuple(sampler.batch(epoch, step)[1].image - 100 for step in range(8)))
    assert len(set(orders)) == 6 and all(sorted(order) == list(range(8)) for order in orders)


def test_batches_are_a_pure_function_of_seed_epoch_and_step():
    one, other = make(seed=3), make(seed=3)
    wanted = {(epoch, step): one.batch(epoch, step) for epoch in range(3) for step in range(6)}
    for epoch, step in reversed(wanted):  # in another order
        assert other.batch(epoch, step) == wanted[epoch, step]
    other.set_epoch(2)
    assert list(other) == [wanted[2, step] for step in range(6)] == list(other)
    assert make(seed=4).batch(0, 0) != wanted[0, 0]


def test_no_global_random_numbers():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    list(make())
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_iteration_keeps_the_epoch_it_began_with():
    sampler = make()
    iterator = iter(sampler)
    sampler.set_epoch(1)
    assert next(iterator) == sampler.batch(0, 0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0, "labelled_per_batch": 0}, "batch_size must be a whole number >= 1, got 0"),
        ({"labelled_per_batch": 7}, "labelled_per_batch: expected 0 to batch_size=6, got 7"),
        ({"labelled_per_batch": -1}, "labelled_per_batch"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be a whole number >= 1"),
        ({"labelled": 0}, "labelled: no index, but labelled_per_batch is 2"),
        ({"unlabelled": 0, "labelled_per_batch": 0}, "unlabelled: no index"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(InputError, match=message):
        make(**kwargs)
