"""Seeds: the coefficient rows at the logits with which a decode begins.

A seed is a function ``seed(logits, classes)`` of logits (S, K) and K' chosen classes. It returns the coefficient at
the logits, shape (K'*S, K), classes outermost: row ``k*S + s`` decodes the k-th chosen class of sample s. Relevance
starts as ``logits * coefficient``. S and K' may be 0; classes may be a tensor on the device, nothing waits for it. Of
shape (K', S) it names other classes for each sample.

Seeds are differentiable functions of the logits, so a loss on heatmaps trains through them too; ``logit`` and
``contrastive`` are constants.

The seeds of the literature are given as relevance R. They become coefficients ``R / z`` with a stabilised
denominator: the coefficient of a logit with ``|z|`` near the stabilizer is large, the relevance is not. Rules that
use ``c * z``, as z+ and alpha-beta do, take up the relevance again, and these are the rules which the two papers use
at the head; the epsilon rule uses the coefficient itself and amplifies the evidence of logits near zero.

CLRP2 (Gu et al. 2018, ``cLRP_type2`` in the code of Yu et al. 2024) starts from the relevance of the logit alone; what
makes it contrastive is a rule of the head, which negates the class's weights: see `HEAD_RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tw_seg.arguments import class_tensor
from tw_seg.errors import InputError
from tw_seg.lrp.core.linear_map import stabilize
from tw_seg.lrp.core.rule import LinearRule
from tw_seg.lrp.rules import Contrast

Classes = Sequence[int] | Tensor
Seed = Callable[[Tensor, Classes], Tensor]


def logit_seed(logits: Tensor, classes: Classes) -> Tensor:
    """One-hot rows: the relevance of class k starts as its logit, ``R_k = z_k`` (Bach et al. 2015).

    Args:
        logits: Image-level class scores, shape (S, K).
        classes: The K' classes to decode.

    Returns:
        Coefficients (K'*S, K).

    Examples:
        >>> logit_seed(torch.tensor([[2.0, 3.0, 5.0], [7.0, 1.0, 4.0]]), [2]).tolist()
        [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    """
    return _rows(_target(logits, classes), logits)


def contrastive_seed(logits: Tensor, classes: Classes) -> Tensor:
    """The logit less the mean of the others: ``c_k = 1``, ``c_j = -1/(K-1)``, so ``R_j = -z_j/(K-1)``.

    Each other class takes away its own evidence. No division by a logit, so it goes with every rule. Up to the
    factor 1/(K-1), which makes a row of coefficients sum to 0, it is what the code of Yu et al. 2024
    (arXiv 2407.03009) calls "normal-contrastive".

    Args:
        logits: Image-level class scores, shape (S, K).
        classes: The K' classes to decode.

    Returns:
        Coefficients (K'*S, K).

    Raises:
        InputError: If there is no other class, K = 1.

    Examples:
        >>> contrastive_seed(torch.tensor([[2.0, 3.0, 5.0]]), [1]).tolist()
        [[-0.5, 1.0, -0.5]]
    """
    target = _target(logits, classes)
    return _rows(target - (1 - target) / _others(logits), logits)


def clrp1_seed(logits: Tensor, classes: Classes, *, stabilizer: float = 1e-6) -> Tensor:
    """CLRP1: ``R_k = z_k``, and the same score spread evenly over the others, ``R_j = -z_k/(K-1)``.

    The definition is that of the papers: Gu et al. 2018, "Understanding individual decisions of CNNs via contrastive
    backpropagation" (arXiv 1812.02100), in the signed form of Iwana et al. 2019. Published code differs: Gu's
    starts its dual map from ``|z_j|`` and divides both maps by their sums, that of Yu et al. 2024 (``cLRP_type1``)
    shares out ``-|z_k|`` in proportion to ``|z_j|``.

    Args:
        logits: Image-level class scores, shape (S, K).
        classes: The K' classes to decode.
        stabilizer: Added to the magnitude of ``z_j`` before it divides, in logits; > 0.

    Returns:
        Coefficients (K'*S, K); ``c_k`` is exactly 1. The relevance of a row sums to 0.

    Raises:
        InputError: If there is no other class, K = 1, or for a stabilizer that is not positive.

    Examples:
        >>> logits = torch.tensor([[2.0, 4.0, 8.0]])
        >>> (clrp1_seed(logits, [1]) * logits).round(decimals=3).tolist()
        [[-2.0, 4.0, -2.0]]
    """
    target, z = _target(logits, classes), _single(logits)
    relevance = -(target * z).sum(2, keepdim=True) / _others(logits)
    return _rows(target + (1 - target) * _ratio(relevance, z, stabilizer, logits.dtype), logits)


def softmax_gradient_seed(logits: Tensor, classes: Classes, *, stabilizer: float = 1e-6) -> Tensor:
    """SGLRP: the relevance is the gradient of ``p_k = softmax(z)_k``, ``R_k = p_k (1-p_k)``, ``R_j = -p_k p_j``.

    The paper sets the relevance, not the coefficient, to the gradient: units of probability, not of the logit.
    A saturated softmax has no gradient, so where ``p_k`` rounds to 0 or 1 there is no relevance; the published code
    adds 1e-8 to ``R_k`` and scales the other classes' map to the sum of the target's, neither is done here.

    Args:
        logits: Image-level class scores, shape (S, K).
        classes: The K' classes to decode.
        stabilizer: Added to the magnitude of a logit before it divides, in logits; > 0.

    Returns:
        Coefficients (K'*S, K). The relevance of a row sums to 0.

    Raises:
        InputError: If there is no other class, K = 1, or for a stabilizer that is not positive.

    Reference:
        Iwana, Kuroki, Uchida 2019, "Explaining convolutional neural networks using softmax gradient layer-wise
        relevance propagation", arXiv 1908.04351.

    Examples:
        >>> logits = torch.tensor([[1.0, 1.0]])
        >>> (softmax_gradient_seed(logits, [0]) * logits).round(decimals=3).tolist()
        [[0.25, -0.25]]
    """
    _others(logits)
    target, z = _target(logits, classes), _single(logits)
    p = z.softmax(1)
    others = (1 - target) * p
    # The sum of the others, not 1 - p_k, which has lost its digits where p_k is nearly 1.
    relevance = (target * p).sum(2, keepdim=True) * (target * others.sum(2, keepdim=True) - others)
    return _rows(_ratio(relevance, z, stabilizer, logits.dtype), logits)


SEEDS: dict[str, Seed] = {
    "logit": logit_seed,
    "contrastive": contrastive_seed,
    "clrp1": clrp1_seed,
    "clrp2": logit_seed,
    "softmax_gradient": softmax_gradient_seed,
}


HEAD_RULES: dict[str, LinearRule] = {"clrp2": Contrast()}
"""Seeds that come with a rule of the classifier's last convolution or linear layer."""


def create_seed(name: str) -> Seed:
    """A seed by name.

    Raises:
        InputError: For an unknown name.

    Examples:
        >>> create_seed("logit").__name__
        'logit_seed'
    """
    if name not in SEEDS:
        raise InputError(f"unknown seed {name!r}; there are {', '.join(SEEDS)}")
    return SEEDS[name]


def _target(logits: Tensor, classes: Classes) -> Tensor:
    """One-hot rows (K', S or 1, K), in the precision of `_single`."""
    index = class_tensor(classes, logits.device)
    if index.ndim == 1:
        index = index.unsqueeze(1)
    return F.one_hot(index, logits.shape[1]).to(_single(logits).dtype)


def _rows(c: Tensor, logits: Tensor) -> Tensor:
    """(K', S or 1, K) -> (K'*S, K), in the precision of the logits."""
    return c.expand(-1, logits.shape[0], -1).flatten(0, 1).to(logits.dtype)


def _single(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _others(logits: Tensor) -> int:
    if logits.shape[1] < 2:
        raise InputError(
            f"a contrastive seed needs at least 2 classes, the classifier has {logits.shape[1]}: use the seed 'logit'"
        )
    return logits.shape[1] - 1


def _ratio(relevance: Tensor, z: Tensor, stabilizer: float, dtype: torch.dtype) -> Tensor:
    """``R / z``, stabilised; saturates where ``dtype`` would overflow, as infinity times zero is no number."""
    if not stabilizer > 0:
        raise InputError(f"stabilizer must be a number > 0, as logits may be zero, got {stabilizer!r}")
    bound = torch.finfo(dtype).max
    return (relevance / stabilize(z, stabilizer)).clamp(-bound, bound)
