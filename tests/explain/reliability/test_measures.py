from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from tw_seg.errors import InputError
from tw_seg.explain.reliability.measures import (
    compare_detection,
    measure_calibration_error,
    measure_detection,
    trace_risk,
)


def make_scores(count=40, seed=0, rounded=1):
    rng = np.random.default_rng(seed)
    dice = rng.random(count)
    return np.clip(dice + 0.3 * rng.standard_normal(count), 0, 1).round(rounded), dice


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    scores, dice = make_scores()
    bad, good = scores[dice < 0.6], scores[dice >= 0.6]
    pairs = [(b < g) + 0.5 * (b == g) for b in bad for g in good]
    assert measure_detection(scores, dice, 0.6).auroc == pytest.approx(np.mean(pairs))


def test_aupr_is_the_sum_over_thresholds():
    scores, dice = make_scores(rounded=1)
    bad, area, before = dice < 0.6, 0.0, 0.0
    for threshold in sorted(set(scores)):
        found = scores <= threshold
        recall = (found & bad).sum() / bad.sum()
        area += (recall - before) * (found & bad).sum() / found.sum()
        before = recall
    assert measure_detection(scores, dice, 0.6).aupr == pytest.approx(area)


@pytest.mark.parametrize("dice", [[0.9, 0.8], [0.1, 0.2], []])
def test_detection_is_undefined_where_all_masks_are_of_one_kind(dice):
    assert all(math.isnan(value) for value in measure_detection([0.5] * len(dice), dice, 0.7))


def test_the_risk_of_equal_scores_is_the_mean_over_all_orders():
    scores, dice = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([1.0, 0.2, 0.6, 0.9, 0.3])
    curves = []
    for order in itertools.permutations(range(5)):
        if list(scores[list(order)]) == sorted(scores, reverse=True):
            curves.append(np.cumsum(1 - dice[list(order)]) / np.arange(1, 6))
    assert len(curves) == 6
    found = trace_risk(scores, dice)
    assert np.allclose(found.risks, np.mean(curves, axis=0)) and found.area == pytest.approx(np.mean(curves))
    assert np.allclose(found.coverages, np.arange(1, 6) / 5)


def test_the_best_score_has_the_least_area_and_a_constant_one_the_mean_risk():
    scores, dice = make_scores()
    best, worst = trace_risk(dice, dice).area, trace_risk(-dice, dice).area
    assert best < trace_risk(scores, dice).area < worst
    assert trace_risk(np.zeros(40), dice).area == pytest.approx(np.mean(1 - dice))


def test_calibration_error_is_that_of_torchmetrics_and_by_hand():
    scores, dice = make_scores(200, rounded=3)
    good = dice >= 0.6
    expected = 0.0
    for place in range(10):
        inside = (scores > place / 10) & (scores <= (place + 1) / 10) | ((place == 0) & (scores == 0))
        if inside.any():
            expected += inside.mean() * abs(scores[inside].mean() - good[inside].mean())
    found = measure_calibration_error(scores, good)
    assert found == pytest.approx(expected)
    inner = (scores * 10 % 1 != 0) & (scores > 0)  # torchmetrics puts the borders of bins elsewhere
    theirs = binary_calibration_error(torch.tensor(scores[inner]), torch.tensor(good[inner]).long(), n_bins=10)
    assert measure_calibration_error(scores[inner], good[inner]) == pytest.approx(theirs.item(), abs=1e-5)


def test_a_calibrated_score_has_no_error():
    scores = np.repeat([0.25, 0.75], 400)
    good = np.concatenate([np.arange(400) % 4 == 0, np.arange(400) % 4 != 0])
    assert measure_calibration_error(scores, good) == pytest.approx(0)
    assert measure_calibration_error([1.0, 0.0], [False, True]) == 1


def test_a_better_score_is_better_with_its_interval():
    dice = np.random.default_rng(1).random(200)
    noisy = dice + np.random.default_rng(2).standard_normal(200)
    difference, low, high = compare_detection(dice, noisy, dice, 0.6, resamples=200)
    expected = 1 - measure_detection(noisy, dice, 0.6).auroc
    assert difference == pytest.approx(expected) and 0 < low < difference < high
    assert compare_detection(noisy, noisy, dice, 0.6, resamples=50) == (0, 0, 0)


def test_its_interval_is_that_of_scikit_learns_areas():
    scores, dice = make_scores(25)
    other = make_scores(25, seed=3)[0]
    rng, found = np.random.default_rng(7), []
    for _ in range(40):
        rows = rng.integers(25, size=25)
        found.append(
            measure_detection(scores[rows], dice[rows], 0.6).auroc
            - measure_detection(other[rows], dice[rows], 0.6).auroc
        )
    expected = np.percentile(found, [2.5, 97.5])
    assert compare_detection(scores, other, dice, 0.6, resamples=40, seed=7)[1:] == pytest.approx(tuple(expected))


def test_units_are_drawn_as_a_whole():
    scores, dice = make_scores(30)
    other = make_scores(30, seed=3)[0]
    one = ["a"] * 30
    difference, low, high = compare_detection(scores, other, dice, 0.6, units=one)
    assert not math.isnan(difference) and math.isnan(low) and math.isnan(high)
    twice = [np.concatenate([values, values]) for values in (scores, other, dice)]
    pairs = [str(i % 30) for i in range(60)]
    together = compare_detection(*twice, 0.6, units=pairs, resamples=300)
    apart = compare_detection(scores, other, dice, 0.6, units=[str(i) for i in range(30)], resamples=300)
    assert together[0] == pytest.approx(apart[0]) and together[2] - together[1] > 0.8 * (apart[2] - apart[1])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: measure_detection([0.1], [0.1, 0.2], 0.5), "a score and a Dice for each mask"),
        (lambda: measure_detection([math.nan], [0.1], 0.5), "must be finite"),
        (lambda: trace_risk([0.1], [math.nan]), "must be finite"),
        (lambda: trace_risk([], []), "needs a mask or more"),
        (lambda: measure_calibration_error([], []), "one or more"),
        (lambda: measure_calibration_error([1.5], [True]), r"probabilities in \[0, 1\]"),
        (lambda: measure_calibration_error([0.5], [True], bins=0), "bins must be a whole number >= 1"),
    ],
)
def test_wrong_arguments(function, message):
    with pytest.raises(InputError, match=message):
        function()
