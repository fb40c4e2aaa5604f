from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from tw_seg.metrics.confidence import BINS, calibration_error, count_confidences


def draw(seed: int, ignored: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = (3 * torch.randn(4, 20, 30, generator=generator)).softmax(0)
    mask = torch.randint(0, 4, (20, 30), generator=generator)
    mask[torch.rand(20, 30, generator=generator) < ignored] = 255
    return probabilities, mask


def test_the_error_of_several_images_is_that_of_torchmetrics():
    images = [draw(seed) for seed in range(3)]
    found = calibration_error(sum(count_confidences(*image) for image in images))
    labelled = [(p[:, m != 255].T, m[m != 255]) for p, m in images]
    expected = multiclass_calibration_error(
        torch.cat([p for p, _ in labelled]), torch.cat([m for _, m in labelled]), num_classes=4, n_bins=BINS, norm="l1"
    )
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_sums_are_those_of_the_labelled_pixels():
    probabilities, mask = draw(1)
    counts = count_confidences(probabilities, mask)
    labelled = mask != 255
    confidence, predicted = probabilities.max(0)
    assert counts[:, 0].sum() == labelled.sum()
    assert counts[:, 1].sum() == (predicted == mask)[labelled].sum()
    assert counts[:, 2].sum() == pytest.approx(float(confidence[labelled].sum()), rel=1e-5)


def test_certainty_and_nothing():
    sure = torch.tensor([1.0, 0.0])[:, None, None].expand(2, 1, 2)
    assert calibration_error(count_confidences(sure, torch.tensor([[0, 1]]))) == 0.5
    assert np.isnan(calibration_error(count_confidences(sure, torch.tensor([[255, 255]]))))
