from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from tw_seg.metrics.ranking import average_precision


@given(st.integers(1, 30), st.integers(0, 10**6))
def test_it_is_scikit_learns_with_weights(count, seed):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 8, count) / 8  # with equal ones
    labels = random.random(count) < 0.4
    weights = random.multinomial(count, np.full(count, 1 / count), 5)
    found = average_precision(scores, labels, weights)
    for row, value in zip(weights, found, strict=True):
        if not (row * labels).any():
            assert np.isnan(value)
            continue
        with warnings.catch_warnings(action="ignore"):
            assert value == pytest.approx(average_precision_score(labels, scores, sample_weight=row))
