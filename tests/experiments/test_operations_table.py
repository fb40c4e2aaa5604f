"""Nothing of torch that takes and returns tensors is forgotten, in the release that is installed."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from experiments.operations_table import PAGE, REASONS, list_public, list_reasons, write_page


@pytest.mark.skipif(
    torch.__version__ >= torch.torch_version.TorchVersion("2.16"), reason="a release that came after the page"
)
def test_everything_has_a_rule_or_a_reason() -> None:
    reasons = list_reasons()
    unknown = [name for name, known in list_public().items() if not known]
    assert len(unknown) > 100, "torch's list was not found"
    missing = sorted(n for n in unknown if n not in reasons and n.rstrip("_") not in reasons)
    assert missing == [], "give them a rule in tw_seg/lrp/ops, or a reason in experiments/operations_table.py"


def test_no_reason_for_what_has_a_rule() -> None:
    known = {name for name, known in list_public().items() if known}
    assert sorted(known & set(list_reasons())) == []


def test_one_reason_each() -> None:
    counts = Counter(name for names in REASONS.values() for name in names.split())
    assert [name for name, n in counts.items() if n > 1] == []


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == write_page(), "python -m experiments.operations_table"
