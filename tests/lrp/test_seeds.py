from __future__ import annotations

import numpy as np
import pytest
import torch

from tw_seg.errors import InputError
from tw_seg.lrp.seeds import class_indices, logit_seed


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (None, (0, 1, 2, 3)),
        ([3, 0], (3, 0)),
        (range(1, 3), (1, 2)),
        (np.array([2, 2]), (2, 2)),
        (torch.tensor([1, 0]), (1, 0)),
        (torch.tensor([1], dtype=torch.uint8), (1,)),
        ([], ()),
    ],
)
def test_class_indices(classes, expected) -> None:
    assert class_indices(classes, 4) == expected


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        ([4], r"classes \[4\] are outside 0..3"),
        ([-1, 2, 7], r"classes \[-1, 7\]"),
        (torch.tensor([4]), r"classes \[4\]"),
        (torch.tensor([-1]), r"classes \[-1\]"),
        (torch.tensor([0.0]), "torch.float32"),
        (torch.tensor([True, False, True, True]), "torch.bool"),
        (torch.tensor([[0]]), r"\(1, 1\)"),
    ],
)
def test_wrong_classes(classes, named: str) -> None:
    with pytest.raises(InputError, match=named):
        class_indices(classes, 4)


@pytest.mark.parametrize("classes", [(2, 0), torch.tensor([2, 0])])
def test_logit_seed(classes) -> None:
    logits = torch.randn(3, 4, dtype=torch.float64)
    seed = logit_seed(logits, classes)
    assert seed.shape == (3, 2, 4) and seed.dtype == torch.float64
    assert torch.equal((seed * logits.unsqueeze(1)).sum(2), logits[:, [2, 0]])
    assert seed.count_nonzero() == 6
