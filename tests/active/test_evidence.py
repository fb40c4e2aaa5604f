"""Numbers of evidence against loops over pixels, SciPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from sklearn.metrics import jaccard_score

from tw_seg.active.evidence import (
    Evidence,
    expect_iou,
    find_presence,
    measure_divergence,
    measure_entropy,
    measure_evidence,
)
from tw_seg.types import SegOutput


def random_output(seed: int, n: int = 3, k: int = 4, h: int = 6, w: int = 5) -> SegOutput:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return SegOutput(logits, 2 * torch.randn(n, k, h, w, generator=generator, dtype=torch.float64))


@given(st.integers(0, 1000))
def test_the_expected_iou_is_its_definition_by_loops(seed):
    probabilities = random_output(seed).mask_logits.softmax(1)
    found = expect_iou(probabilities)
    for image, row in zip(probabilities.numpy(), found.numpy(), strict=True):
        for k in range(4):
            inside = union = 0.0
            for pixel in image.reshape(4, -1).T:
                chosen = pixel.argmax() == k
                inside += pixel[k] if chosen else 0
                union += 1 if chosen else pixel[k]
            assert row[k] == pytest.approx(inside / union)


def test_the_expected_iou_is_about_the_iou_of_masks_that_are_drawn_from_the_probabilities():
    probabilities = random_output(0, n=1, h=40, w=40).mask_logits.softmax(1)
    pixels = probabilities[0].flatten(1).T.numpy()
    rng = np.random.default_rng(0)
    truths = [(pixels.cumsum(1) > rng.random((len(pixels), 1))).argmax(1) for _ in range(50)]
    scores = [jaccard_score(truth, pixels.argmax(1), average=None, labels=range(4)) for truth in truths]
    np.testing.assert_allclose(expect_iou(probabilities)[0].numpy(), np.mean(scores, axis=0), atol=0.01)


def test_masks_that_are_sure_are_not_doubted_and_classes_that_are_nowhere_are():
    sure = torch.zeros(1, 3, 4, 4).index_fill_(1, torch.tensor([1]), 1.0)
    assert expect_iou(sure).tolist() == [[0.0, 1.0, 0.0]]


@given(st.floats(0, 1), st.floats(0, 1))
def test_entropy_and_divergence_are_those_of_scipy(p, q):
    one, other = torch.tensor([p, q], dtype=torch.float64)
    assert float(measure_entropy(one)) == pytest.approx(entropy([p, 1 - p], base=2), abs=1e-9)
    expected = np.nan_to_num(jensenshannon([p, 1 - p], [q, 1 - q], base=2)) ** 2
    assert float(measure_divergence(one, other)) == pytest.approx(expected, abs=1e-7)


def test_presence_looks_at_the_likeliest_hundredth():
    pixels = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = np.sort(pixels.numpy().reshape(2, 3, 400), axis=2)[:, :, -4:].mean(2)
    np.testing.assert_allclose(find_presence(pixels).numpy(), expected)
    assert find_presence(pixels[:, :, :2, :2]).tolist() == pixels[:, :, :2, :2].amax((2, 3)).tolist()


@given(st.integers(0, 1000))
def test_known_labels_stand_in_for_the_classifier(seed):
    output = random_output(seed)
    unknown = torch.full((3, 4), torch.nan)
    evidence = measure_evidence(output, unknown)
    probability = output.logits.sigmoid()[:, 1:].numpy()
    np.testing.assert_allclose(evidence.presence, probability, rtol=1e-6)
    np.testing.assert_allclose(
        evidence.label_uncertainty, entropy(np.stack([probability, 1 - probability]), base=2), atol=1e-6
    )
    labels = torch.tensor([[1, 0, 1, torch.nan]]).repeat(3, 1)
    known = measure_evidence(output, labels)
    np.testing.assert_array_equal(known.presence[:, :2], [[0, 1]] * 3)
    assert not known.label_uncertainty[:, :2].any()
    np.testing.assert_array_equal(known.presence[:, 2], evidence.presence[:, 2])
    np.testing.assert_array_equal(known.doubt, evidence.doubt)


def test_evidence_is_between_0_and_1_also_where_a_model_is_sure():
    output = random_output(1)
    for scale in (0.0, 1.0, 1e4):
        evidence = measure_evidence(
            SegOutput(scale * output.logits, scale * output.mask_logits), torch.full((3, 4), torch.nan)
        )
        for numbers in (evidence.presence, evidence.doubt, evidence.disagreement, evidence.label_uncertainty):
            assert numbers.shape == (3, 3) and numbers.min() >= 0 and numbers.max() <= 1 + 1e-6


def test_an_image_whose_mask_denies_its_label_disagrees():
    mask_logits = torch.zeros(2, 2, 8, 8)
    mask_logits[:, 0] = 9.0
    mask_logits[1, 1, :4] = 18.0  # the object is in the second mask alone
    evidence = measure_evidence(SegOutput(torch.zeros(2, 2), mask_logits), torch.ones(2, 2))
    assert evidence.disagreement[0, 0] > 0.95 and evidence.disagreement[1, 0] < 0.01
    assert evidence.doubt[0, 0] > 0.95 and evidence.doubt[1, 0] < 0.01


def test_parts_are_joined_in_order():
    output, unknown = random_output(2, n=5), torch.full((5, 4), torch.nan)
    whole = measure_evidence(output, unknown)
    parts = [
        measure_evidence(SegOutput(output.logits[rows], output.mask_logits[rows]), unknown[rows])
        for rows in ([0, 1], [2, 3, 4])
    ]
    joined = Evidence.join(parts)
    assert len(joined) == 5
    np.testing.assert_allclose(joined.add_up(), whole.add_up())
