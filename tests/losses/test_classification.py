from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tw_seg.errors import InputError
from tw_seg.losses.classification import multilabel_bce


def test_equals_torch_with_weight_zero_on_the_background():
    logits = torch.randn(6, 4, dtype=torch.float64)
    labels = torch.randint(0, 2, (6, 4)).double()
    weight = torch.tensor([0.0, 1, 1, 1]).double()
    total = F.binary_cross_entropy_with_logits(logits, labels, weight=weight, reduction="sum")
    torch.testing.assert_close(multilabel_bce(logits, labels), total / 18, rtol=1e-13, atol=0)


def test_the_background_logit_gets_no_gradient():
    logits = torch.randn(3, 4, requires_grad=True)
    multilabel_bce(logits, torch.ones(3, 4)).backward()
    assert (logits.grad[:, 0] == 0).all()
    assert (logits.grad[:, 1:] != 0).all()


def test_gradcheck():
    labels = torch.rand(3, 4, dtype=torch.float64)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: multilabel_bce(x, labels), (logits,))


def test_unknown_labels_do_not_count():
    """A sum over the known ones, one by one; what stands at the others changes neither value nor gradient."""
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 2, (5, 4)).double()
    unknown = torch.rand(5, 4) < 0.4
    unknown[0, 1:], unknown[1, 1:] = True, False
    labels[unknown] = torch.nan
    loss = multilabel_bce(logits, labels)
    terms = []
    for image in range(5):
        for k in range(1, 4):
            if not unknown[image, k]:
                p = 1 / (1 + math.exp(-logits[image, k].item()))
                terms.append(-math.log(p if labels[image, k] else 1 - p))
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[unknown].any() and torch.autograd.gradcheck(lambda x: multilabel_bce(x, labels), (logits,))
    moved = torch.where(unknown, torch.inf, logits.detach()).requires_grad_()
    moved_loss = multilabel_bce(moved, labels)
    moved_loss.backward()
    assert moved_loss == loss and torch.equal(moved.grad, gradient)


def test_nothing_known_is_zero():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = multilabel_bce(logits, torch.tensor([[1.0, torch.nan, torch.nan]] * 2))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_bfloat16_logits_and_large_values_are_finite():
    logits = torch.tensor([[0.0, 3e4, -3e4]], dtype=torch.bfloat16, requires_grad=True)
    loss = multilabel_bce(logits, torch.tensor([[1.0, 0.0, 1.0]]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"\(2, 3\) and \(2, 4\)"),
        (torch.zeros(2, 1), torch.zeros(2, 1), "K >= 2"),
        (torch.zeros(0, 3), torch.zeros(0, 3), r"\(0, 3\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), "labels.float"),
    ],
)
def test_bad_input(logits, labels, message):
    with pytest.raises(InputError, match=message):
        multilabel_bce(logits, labels)
