"""The choice against its definition by loops, and on images of which it is known what is worth a mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tw_seg.active.choose import choose_images, find_mean_doubt
from tw_seg.active.evidence import Evidence
from tw_seg.errors import InputError


def random_evidence(seed: int, count: int = 12, classes: int = 3) -> tuple[Evidence, np.ndarray]:
    rng = np.random.default_rng(seed)
    numbers = [rng.random((count, classes)) for _ in range(4)]
    return Evidence(*numbers), rng.normal(size=(count, 5))


def make(doubt: list[list[float]], presence: list[list[float]] | None = None) -> Evidence:
    numbers = np.array(doubt, dtype=float)
    shown = np.ones_like(numbers) if presence is None else np.array(presence, dtype=float)
    return Evidence(shown, numbers, np.zeros_like(numbers), np.zeros_like(numbers))


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 3))
def test_every_choice_is_the_best_by_the_definition(seed, count, masked):
    evidence, features = random_evidence(seed)
    old = np.random.default_rng(seed + 1).normal(size=(masked, 5))
    masks = np.random.default_rng(seed + 2).integers(5, size=3)
    choices = choose_images(evidence, features, count, masked_features=old, masks=masks)
    assert len({choice.row for choice in choices}) == count
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    known = [row / np.linalg.norm(row) for row in old]
    shown = masks.astype(float)
    worth = evidence.presence * evidence.doubt + evidence.disagreement + evidence.label_uncertainty
    doubt = [np.average(evidence.doubt[:, k], weights=evidence.presence[:, k]) for k in range(3)]
    left = set(range(12))
    for choice in choices:
        scores = {}
        for i in left:
            gain = sum(worth[i, k] * doubt[k] / (1 + shown[k]) for k in range(3))
            near = min((np.linalg.norm(unit[i] - other) for other in known), default=2.0)
            scores[i] = gain * near, gain, near
        assert scores[choice.row][0] == pytest.approx(max(score for score, _, _ in scores.values()))
        assert (choice.gain, choice.distance) == pytest.approx(scores[choice.row][1:])
        left.remove(choice.row)
        known.append(unit[choice.row])
        shown = shown + evidence.presence[choice.row]


def test_what_is_doubted_comes_first():
    features = np.eye(4)
    choices = choose_images(make([[0.1], [0.9], [0.5], [0.2]]), features, 4)
    assert [choice.row for choice in choices] == [1, 2, 3, 0]


def test_copies_come_last():
    features = np.array([[1, 0], [1, 0], [2, 0], [0, 1], [1, 1]], dtype=float)
    choices = choose_images(make([[0.9], [0.8], [0.7], [0.1], [0.2]]), features, 5)
    assert choices[0].row == 0 and {choice.row for choice in choices[1:3]} == {3, 4}
    assert [choice.row for choice in choices[3:]] == [1, 2] and choices[-1].distance == 0
    masked = choose_images(make([[0.9], [0.1]]), np.eye(2), 1, masked_features=np.array([[3.0, 0.0]]))
    assert masked[0].row == 1  # what is like an image with a mask is not needed


def test_a_class_that_few_masks_show_is_preferred_until_it_has_some():
    doubt, presence = [[0.5, 0.5]] * 6, [[1, 0]] * 3 + [[0, 1]] * 3
    choices = choose_images(make(doubt, presence), np.eye(6), 4, masks=np.array([10, 0]))
    assert {choice.row for choice in choices[:3]} == {3, 4, 5} and choices[3].row < 3
    balanced = choose_images(make(doubt, presence), np.eye(6), 6, masks=np.array([2, 2]))
    kinds = [choice.row // 3 for choice in balanced]
    assert [sorted(kinds[i : i + 2]) for i in (0, 2, 4)] == [[0, 1]] * 3


def test_the_mean_doubt_counts_an_image_by_the_probability_that_it_shows_the_class():
    evidence = make([[0.2, 0.3], [0.8, 0.9]], [[1, 0], [0.5, 0]])
    np.testing.assert_allclose(find_mean_doubt(evidence), [0.4, 0.0])


@pytest.mark.parametrize("count", [0, 13])
def test_bad_numbers(count):
    evidence, features = random_evidence(0)
    with pytest.raises(InputError, match=f"from 1 to the 12 candidates, got {count}: ask for fewer"):
        choose_images(evidence, features, count)
    with pytest.raises(InputError, match="features of 12 candidates"):
        choose_images(evidence, features[:3], 2)
