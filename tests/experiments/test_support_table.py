"""The table in docs/ is what its script finds: a sample is measured again."""

from __future__ import annotations

import json

import pytest

from experiments import support_table

RECORDED = {
    row["name"]: row for row in json.loads((support_table.ROOT / "docs" / "support.json").read_text(encoding="utf-8"))
}
SAMPLE = ["mobilenet_v3_small", "timm/test_vit"]  # resnet18 and its exports: tests/lrp/test_decoder.py


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_again(name: str) -> None:
    found, recorded = support_table.check(name), RECORDED[name]
    for check in support_table.CHECKS:
        assert found[check] == recorded[check], found["reason"]
    assert (found["parameters"], found["image"]) == (recorded["parameters"], recorded["image"])


def test_the_document_is_that_of_the_numbers() -> None:
    document = (support_table.ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    table = [line for line in document.splitlines() if line.startswith("|")]
    assert table == [line for line in support_table.markdown(list(RECORDED.values())).splitlines() if line[:1] == "|"]


def test_no_refusal_without_a_reason() -> None:
    for row in RECORDED.values():
        assert all(row[c] for c in support_table.CHECKS) != bool(row["reason"]), row["name"]


def test_a_classifier_that_does_not_exist_is_a_row_with_a_reason() -> None:
    row = support_table.check("resnet17")
    assert [row[c] for c in support_table.CHECKS] == [False] * 3 and "resnet17" in row["reason"]


def test_every_family_has_a_row() -> None:
    families = {name for name in support_table.torchvision_names()}
    assert families <= set(RECORDED)
    assert sum(name.startswith(support_table.TIMM) and RECORDED[name]["trains"] for name in RECORDED) >= 25
