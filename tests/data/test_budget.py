from __future__ import annotations

import json
import os
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tw_seg.data.budget import LabelBudget, fingerprint_data, select_budget
from tw_seg.errors import BudgetError


def random_labels(n: int, classes: int, seed: int, density: float = 0.25) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    rates = density * rng.uniform(0.2, 2, size=classes)  # some classes are rare
    labels = (rng.random((n, classes + 1)) < np.r_[1.0, rates]).astype(np.float32)
    return labels, [f"image{i:03d}" for i in range(n)]


data = st.builds(random_labels, st.integers(2, 40), st.integers(1, 6), st.integers(0, 10**6))


@given(data, st.integers(0, 3))
def test_budgets_are_nested_and_complete(labels_names, split_seed):
    labels, names = labels_names
    everything = select_budget(labels, names, None, split_seed=split_seed).names
    assert select_budget(labels, names, "all", split_seed=split_seed).names == everything
    assert sorted(everything) == names
    for count in range(1, len(names) + 1):
        assert select_budget(labels, names, count, split_seed=split_seed).names == everything[:count]


@given(data)
def test_each_image_covers_a_new_class_until_all_are_covered(labels_names):
    labels, names = labels_names
    order = [names.index(name) for name in select_budget(labels, names, None).names]
    present = labels[:, 1:].any(axis=0)
    for count in range(1, present.sum() + 1):
        covered, before = labels[order[:count], 1:].any(axis=0), labels[order[: count - 1], 1:].any(axis=0)
        assert covered.sum() > before.sum() or (covered == present).all()
    assert (labels[order[: present.sum()], 1:].any(axis=0) == present).all()


@given(data, st.integers(0, 3))
def test_order_of_the_data_set_does_not_matter(labels_names, split_seed):
    labels, names = labels_names
    shuffled = np.random.default_rng(split_seed).permutation(len(names))
    one = select_budget(labels, names, budget_share=0.5, split_seed=split_seed)
    other = select_budget(labels[shuffled], [names[i] for i in shuffled], budget_share=0.5, split_seed=split_seed)
    assert one == other and one.sha256 == other.sha256


@given(data)
def test_every_further_image_is_the_best_one_by_exhaustive_search(labels_names):
    # Independent of the incremental integers inside: the definition, in fractions, over single images.
    labels, names = labels_names
    order = [names.index(name) for name in select_budget(labels, names, None).names]
    strata = np.column_stack([labels[:, 1:] > 0, ~(labels[:, 1:] > 0).any(axis=1)]).astype(int)
    total, sizes = len(names), strata.sum(axis=0)
    used = np.flatnonzero(sizes)

    def distance(chosen: list[int]) -> Fraction:
        counts, share = strata[chosen].sum(axis=0), Fraction(len(chosen), total)
        return sum(
            (-(-total // int(sizes[c])) * (int(counts[c]) - share * int(sizes[c])) ** 2 for c in used),
            Fraction(0),
        )

    first = next(k for k in range(total + 1) if (strata[order[:k], :-1].any(axis=0) == (sizes > 0)[:-1]).all())
    for count in range(first, total):
        costs = [distance([*order[:count], candidate]) for candidate in order[count:]]
        assert costs[0] == min(costs)


def test_class_counts_follow_the_data_set_more_closely_than_a_random_choice():
    labels, names = random_labels(400, 8, seed=1)
    rng = np.random.default_rng(0)
    for count in (40, 100, 200):
        wanted = labels[:, 1:].mean(axis=0) * count
        rows = [names.index(name) for name in select_budget(labels, names, count).names]
        ours = np.abs(labels[rows, 1:].sum(axis=0) - wanted).max()
        randoms = [np.abs(labels[rng.permutation(400)[:count], 1:].sum(axis=0) - wanted).max() for _ in range(50)]
        assert ours < 2 and ours < min(randoms)


def test_single_label_data_is_split_in_exact_proportion():
    labels = np.zeros((100, 4), dtype=np.float32)
    labels[:50, 1] = labels[50:80, 2] = labels[80:, 3] = 1  # 50, 30 and 20 of 100
    names = [str(i) for i in range(100)]
    rows = [int(name) for name in select_budget(labels, names, 20).names]
    np.testing.assert_array_equal(labels[rows].sum(axis=0), [0, 10, 6, 4])


def test_images_without_objects_are_represented_but_do_not_delay_coverage():
    labels = np.zeros((40, 3), dtype=np.float32)
    labels[:10, 1] = labels[10:20, 2] = 1  # the other half shows nothing
    names = [str(i) for i in range(40)]
    rows = np.array([int(name) for name in select_budget(labels, names, 20).names])
    assert set(labels[rows[:2], 1:].argmax(axis=1)) == {0, 1}
    assert (rows >= 20).sum() == 10


def test_the_background_column_is_ignored():
    labels, names = random_labels(30, 3, seed=3)
    other = labels.copy()
    other[:, 0] = 0
    assert select_budget(labels, names, 10).names == select_budget(other, names, 10).names


def test_unknown_labels_are_strata_of_their_own():
    """Images that show nothing and those of which nothing is known are each represented in proportion."""
    labels = np.array([[1, 1], [1, 0], [1, np.nan], [1, np.nan]] * 10, dtype=np.float32)
    names = [f"image{i:02d}" for i in range(40)]
    chosen = [names.index(name) for name in select_budget(labels, names, 20).names]
    counts = [sum(row % 4 in kind for row in chosen) for kind in ((0,), (1,), (2, 3))]
    assert counts == [5, 5, 10]
    only = select_budget(labels[1:4], names[1:4], "all")
    assert len(only.names) == 3 and only.fingerprint == fingerprint_data(labels[1:4], names[1:4])


def test_the_fingerprint_tells_unknown_labels_from_others():
    rows = [np.array([[1, value, 1]], dtype=np.float32) for value in (0, 1, np.nan)]
    assert len({fingerprint_data(row, ["a"]) for row in rows}) == 3


def test_split_seed_alone_decides():
    labels, names = random_labels(60, 4, seed=2)
    np.random.seed(1)
    random.seed(1)
    first = select_budget(labels, names, 10, split_seed=5)
    np.random.seed(2)
    random.seed(2)
    assert select_budget(labels, names, 10, split_seed=5) == first
    assert len({select_budget(labels, names, 10, split_seed=seed).names for seed in range(10)}) == 10


def test_the_choice_is_the_same_on_every_machine_and_version():
    # Written down once: results refer to budgets by number and seed.
    labels = np.array([[1, a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], dtype=np.float32)
    budget = select_budget(labels, [f"{i}" for i in range(8)], 4, split_seed=0)
    assert budget.names == ("7", "1", "4", "2")
    assert budget.sha256 == "afcab4a4eec0cc28f3de0ac024e6fcf40d36f3e33ee07251695d3262521e3a60"


@pytest.mark.parametrize(
    ("budget", "share", "count"),
    [
        (1, None, 1),
        (30, None, 30),
        (None, None, 30),
        (None, 1.0, 30),
        (None, 1, 30),
        (None, 0.5, 15),
        (None, 0.05, 2),
        (None, 0.02, 1),
    ],
)
def test_numbers_and_shares(budget, share, count):
    labels, names = random_labels(30, 3, seed=4)
    chosen = select_budget(labels, names, budget, budget_share=share)
    assert len(chosen.names) == count and (chosen.budget, chosen.budget_share) == (budget, share)
    assert chosen.names == select_budget(labels, names, count).names


@pytest.mark.parametrize(
    ("budget", "share", "message"),
    [
        (0, None, "budget is empty"),
        (-3, None, "budget is empty"),
        (31, None, "asks for 31 images, but only 30 have a mask"),
        (1.0, None, "whole number of images or 'all', got 1.0; a share is a budget_share"),
        (20.0, None, "whole number of images or 'all', got 20.0"),
        (True, None, "got True"),
        ("20", None, "got '20'"),
        (None, 0.001, "0.001 of 30 images rounds to none"),
        (None, 0.0, "above 0 and up to 1, got 0.0"),
        (None, 20, "above 0 and up to 1, got 20; a number of images is a budget"),
        (None, float("nan"), "share above 0"),
        (None, True, "got True"),
        (None, "0.5", "got '0.5'"),
        (3, 0.5, r"a budget \(3\) or a budget_share \(0.5\), not both"),
    ],
)
def test_bad_numbers_and_shares(budget, share, message):
    labels, names = random_labels(30, 3, seed=4)
    with pytest.raises(BudgetError, match=message):
        select_budget(labels, names, budget, budget_share=share)


def test_bad_data():
    labels, names = random_labels(5, 3, seed=4)
    with pytest.raises(BudgetError, match=r"labels of shape \(4, K\)"):
        select_budget(labels, names[:4], 1)
    with pytest.raises(BudgetError, match="not unique"):
        select_budget(labels, ["a", "b", "c", "d", "a"], 1)
    with pytest.raises(BudgetError, match="no image has a mask"):
        select_budget(labels[:0], [], None)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[LabelBudget, Path, np.ndarray, list[str]]:
    labels, names = random_labels(20, 3, seed=5)
    budget = select_budget(labels, names, 6, split_seed=7)
    path = tmp_path / "new" / "label_budget.json"
    budget.save(path)
    return budget, path, labels, names


@pytest.mark.parametrize(("number", "share"), [(6, None), ("all", None), (None, 0.3), (None, 1.0), (None, None)])
def test_round_trip(tmp_path, number, share):
    labels, names = random_labels(20, 3, seed=5)
    budget = select_budget(labels, names, number, budget_share=share, split_seed=7)
    budget.save(tmp_path / "b.json")
    again = LabelBudget.load(tmp_path / "b.json")
    assert again == budget and again.sha256 == budget.sha256
    assert os.listdir(tmp_path) == ["b.json"]


def test_hash_covers_every_field(saved):
    budget, path, *_ = saved
    content = json.loads(path.read_text())
    changes = {
        "names": content["names"][:-1],
        "budget": 7,
        "budget_share": 0.5,
        "split_seed": 8,
        "fingerprint": "0" * 64,
    }
    for field, value in changes.items():
        path.write_text(json.dumps(content | {field: value}))
        with pytest.raises(BudgetError, match=rf"{path}.*changed after it was written"):
            LabelBudget.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": []}, "empty or names an image twice"),
        ({"names": ["a", "a"]}, "empty or names an image twice"),
        ({"names": "abc"}, "wrong type"),
        ({"names": [1]}, "wrong type"),
        ({"split_seed": "0"}, "wrong type"),
        ({"budget": "six"}, "wrong type"),
        ({"budget": 6.0}, "wrong type"),
        ({"budget_share": True}, "wrong type"),
        ({"kind": "shopping list"}, "expected a JSON object with kind"),
        ({"more": 1}, "expected the fields"),
    ],
)
def test_wrong_content(saved, change, message):
    _, path, *_ = saved
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BudgetError, match=rf"{path}.*{message}"):
        LabelBudget.load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "names: [a]", "\x00"])
def test_not_a_budget_file(tmp_path, text):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(BudgetError, match=str(path)):
        LabelBudget.load(path)


def test_missing_or_binary_file(tmp_path):
    with pytest.raises(BudgetError, match=rf"{tmp_path / 'no.json'}: cannot read"):
        LabelBudget.load(tmp_path / "no.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BudgetError, match="b.json: expected a JSON label budget"):
        LabelBudget.load(tmp_path / "b.json")


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    budget, path, *_ = saved
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        LabelBudget(("z",), 1, None, 0, "f").save(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_indices(saved):
    budget, _, labels, names = saved
    rows = budget.indices(labels, names)
    assert {names[row] for row in rows} == set(budget.names) and list(rows) == sorted(rows)
    backwards = budget.indices(labels[::-1], names[::-1])
    assert {names[::-1][row] for row in backwards} == set(budget.names)


def test_indices_in_another_data_set(saved):
    budget, _, labels, names = saved
    gone = names.index(budget.names[0])
    keep = [i for i in range(len(names)) if i != gone]
    with pytest.raises(BudgetError, match=f"names 1 images that have no mask.*{budget.names[0]}"):
        budget.indices(labels[keep], [names[i] for i in keep])
    with pytest.raises(BudgetError, match="fingerprint"):
        budget.indices(np.vstack([labels, labels[:1]]), [*names, "one more"])
    changed = labels.copy()
    changed[3, 1] = 1 - changed[3, 1]
    with pytest.raises(BudgetError, match="fingerprint"):
        budget.indices(changed, names)


def test_fingerprint_sees_every_name_and_label_but_no_order():
    labels, names = random_labels(6, 3, seed=6)
    base = fingerprint_data(labels, names)
    assert fingerprint_data(labels[::-1], names[::-1]) == base
    seen = {base}
    for row in range(6):
        renamed = [*names]
        renamed[row] += "x"
        seen.add(fingerprint_data(labels, renamed))
        for column in range(1, 4):
            flipped = labels.copy()
            flipped[row, column] = 1 - flipped[row, column]
            seen.add(fingerprint_data(flipped, names))
    assert len(seen) == 1 + 6 + 18


@given(data, st.integers(1, 12), st.integers(0, 10**6))
def test_of_each_group_one_image_is_chosen_and_budgets_stay_nested(labels_names, count, seed):
    labels, names = labels_names
    groups = np.random.default_rng(seed).integers(count, size=len(names)) * 7 - 3  # any numbers
    everything = select_budget(labels, names, groups=groups).names
    chosen = [groups[names.index(name)] for name in everything]
    assert sorted(chosen) == sorted(set(groups.tolist()))
    for fewer in range(1, len(everything) + 1):
        assert select_budget(labels, names, fewer, groups=groups).names == everything[:fewer]
    with pytest.raises(BudgetError, match=f"asks for {len(everything) + 1} groups, but only {len(everything)} have"):
        select_budget(labels, names, len(everything) + 1, groups=groups)


@given(data)
def test_each_image_covers_a_new_class_if_one_of_a_free_group_does(labels_names):
    labels, names = labels_names
    groups = np.arange(len(names)) // 2
    order = [names.index(name) for name in select_budget(labels, names, groups=groups).names]
    objects = labels[:, 1:] > 0
    for count in range(1, len(order)):
        free = ~np.isin(groups, groups[order[:count]])
        covered = objects[order[:count]].any(axis=0)
        best = (objects[free] & ~covered).sum(axis=1).max()
        assert (objects[order[count]] & ~covered).sum() == best or best == 0


def test_groups_of_one_image_change_nothing_but_the_note_in_the_file(tmp_path):
    labels, names = random_labels(30, 4, seed=6)
    plain = select_budget(labels, names, 10)
    grouped = select_budget(labels, names, 10, groups=np.arange(30), grouped_by="near-duplicates")
    assert grouped.names == plain.names and grouped.fingerprint == plain.fingerprint
    assert grouped.sha256 != plain.sha256
    grouped.save(tmp_path / "b.json")
    assert LabelBudget.load(tmp_path / "b.json") == grouped
    assert json.loads((tmp_path / "b.json").read_text())["grouped_by"] == "near-duplicates"
    (tmp_path / "b.json").write_text((tmp_path / "b.json").read_text().replace("near-", "nearer-"))
    with pytest.raises(BudgetError, match="changed after it was written"):
        LabelBudget.load(tmp_path / "b.json")
    with pytest.raises(BudgetError, match=r"groups of shape \(30,\)"):
        select_budget(labels, names, 10, groups=np.arange(3))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"kind":' * 100_000, "9" * 10_000, "\0"])
def test_a_file_that_would_fill_the_stack(text, tmp_path):
    (tmp_path / "budget.json").write_text(text)
    with pytest.raises(BudgetError, match=r"budget\.json: expected a JSON label budget"):
        LabelBudget.load(tmp_path / "budget.json")
