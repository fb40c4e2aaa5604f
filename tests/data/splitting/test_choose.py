from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tw_seg.data.splitting.choose import choose_splits
from tw_seg.errors import InputError

SHARES = {"train": 0.7, "val": 0.2, "test": 0.1}


def make(seed: int, count: int, classes: int, groups: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    group_of = rng.integers(groups, size=count) * 5
    rates = rng.uniform(0.05, 0.6, classes)
    labels = np.column_stack([np.ones(count), rng.random((count, classes)) < rates]).astype(np.float32)
    return labels, [f"im{i}" for i in range(count)], group_of


cases = st.builds(make, st.integers(0, 10**6), st.integers(12, 60), st.integers(1, 5), st.integers(8, 60))


@settings(deadline=None)
@given(cases, st.integers(0, 5))
def test_every_image_has_a_split_and_no_group_two(case, seed):
    labels, names, groups = case
    if len(set(groups.tolist())) < 3:
        return
    splits = choose_splits(labels, names, SHARES, groups=groups, seed=seed)
    assert set(splits) == set(SHARES)  # none is empty
    for group in set(groups.tolist()):
        assert len(set(splits[groups == group])) == 1


@settings(deadline=None)
@given(cases)
def test_the_order_of_the_images_does_not_matter(case):
    labels, names, groups = case
    if len(set(groups.tolist())) < 3:
        return
    order = np.random.default_rng(0).permutation(len(names))
    plain = choose_splits(labels, names, SHARES, groups=groups)
    shuffled = choose_splits(labels[order], [names[i] for i in order], SHARES, groups=groups[order])
    assert shuffled.tolist() == plain[order].tolist()


def test_single_labels_without_groups_are_divided_in_exact_proportion():
    labels = np.zeros((100, 4), dtype=np.float32)
    labels[:50, 1] = labels[50:80, 2] = labels[80:, 3] = 1
    splits = choose_splits(labels, [str(i) for i in range(100)], SHARES, groups=np.arange(100))
    for split, share in SHARES.items():
        np.testing.assert_allclose(labels[splits == split].sum(axis=0), [0, 50 * share, 30 * share, 20 * share])


def test_the_seed_decides_among_equals():
    labels = np.ones((40, 2), dtype=np.float32)
    names = [str(i) for i in range(40)]
    chosen = {tuple(choose_splits(labels, names, SHARES, groups=np.arange(40), seed=seed)) for seed in range(8)}
    assert len(chosen) == 8


def imbalance(labels: np.ndarray, splits: np.ndarray, shares: dict[str, float]) -> float:
    """How far the numbers of images and of each class are from the shares, relative to their totals; written anew."""
    total = 0.0
    for split, share in shares.items():
        inside = labels[splits == split]
        columns = [(len(inside), len(labels))] * 4  # as _SIZE squared
        columns += [(inside[:, k].sum(), labels[:, k].sum()) for k in range(1, labels.shape[1])]
        total += sum((part / whole - share) ** 2 / share for part, whole in columns if whole)
    return total


def test_it_is_close_to_the_best_of_all_divisions():
    shares = {"train": 0.6, "val": 0.4}
    ratios = []
    for seed in range(20):
        labels, names, groups = make(seed, 24, 3, 10)
        kinds = sorted(set(groups.tolist()))
        every = [
            imbalance(labels, np.array([dict(zip(kinds, choice, strict=True))[g] for g in groups]), shares)
            for choice in itertools.product(shares, repeat=len(kinds))
        ]
        ours = imbalance(labels, choose_splits(labels, names, shares, groups=groups), shares)
        ratios.append(np.mean(np.array(every) < ours))
    assert np.mean(ratios) < 0.05  # of all divisions, few are better


def test_a_rare_class_is_in_every_split_that_can_have_it():
    labels = np.zeros((200, 4), dtype=np.float32)
    labels[:, 1] = 1
    labels[:3, 2] = 1
    labels[7, 3] = 1
    splits = choose_splits(labels, [str(i) for i in range(200)], SHARES, groups=np.arange(200))
    assert set(splits[:3]) == set(SHARES)
    np.testing.assert_allclose([(splits == split).sum() for split in SHARES], [140, 40, 20], atol=1)


@pytest.mark.parametrize(
    ("shares", "groups", "message"),
    [
        ({"train": 0.8, "val": 0.1}, np.arange(4), "add up to 1"),
        ({"train": 1.0, "val": 0.0}, np.arange(4), "numbers above 0"),
        ({}, np.arange(4), "numbers above 0"),
        ({"train": 0.5, "val": 0.5}, np.zeros(4), "4 images in 1 groups cannot be divided into 2 splits"),
        ({"train": 0.5, "val": 0.5}, np.zeros(3), r"groups of shape \(3,\)"),
    ],
)
def test_bad_arguments(shares, groups, message):
    with pytest.raises(InputError, match=message):
        choose_splits(np.ones((4, 2)), list("abcd"), shares, groups=groups)
