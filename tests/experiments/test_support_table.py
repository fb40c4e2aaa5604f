"""The table in docs/ is what its script finds: a sample is measured again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from experiments import support_table

RECORDED = {
    row["name"]: row for row in json.loads((support_table.ROOT / "docs" / "support.json").read_text(encoding="utf-8"))
}
SAMPLE = ["squeezenet1_1", "timm/test_vit"]  # resnet18 and its exports: tests/lrp/test_decoder.py


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_again(name: str) -> None:
    recorded = RECORDED[name]
    for column in set(support_table.COLUMNS) & set(recorded):
        found = support_table.check(name, column)
        assert found[column] == recorded[column], found.get("reason")
        assert (found["parameters"], found["image"]) == (recorded["parameters"], recorded["image"])
        for mode, value in found.get("compared", {}).items():
            assert value == recorded["compared"][mode] == "random" or max(value, recorded["compared"][mode]) < 1e-5


def test_the_document_is_that_of_the_numbers() -> None:
    document = (support_table.ROOT / "docs" / "support.md").read_text(encoding="utf-8")
    found = support_table.markdown(list(RECORDED.values()))
    # All but the versions that are installed.
    assert document.splitlines()[4:] == found.splitlines()[4:]


def test_no_refusal_without_a_reason() -> None:
    for row in RECORDED.values():
        for column in set(support_table.CHECKS) & set(row):
            assert row[column] != bool(row["about"][column]["reason"]), row["name"]


def test_a_classifier_that_does_not_exist_is_a_column_with_a_reason() -> None:
    part = support_table.check_apart("resnet17", "decodes")
    assert part["decodes"] is False and "resnet17" in part["reason"]


def test_what_is_there_for_the_same_code_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def check_apart(name: str, column: str, limit: float) -> dict[str, Any]:
        measured.append((name, column))
        return {"name": name, column: False, "reason": "none", "seconds": 1.0}

    monkeypatch.setattr(support_table, "check_apart", check_apart)
    out = ["--out", str(tmp_path / "table")]
    support_table.main(["resnet18", "--columns", "decodes", *out])
    support_table.main(["resnet18", "timm/test_vit", *out])
    assert measured == [("resnet18", c) for c in support_table.COLUMNS] + [
        ("timm/test_vit", c) for c in support_table.COLUMNS
    ]
    monkeypatch.setattr(support_table, "digest", lambda: "other code")
    support_table.main(["resnet18", "--columns", "trains", *out])
    assert measured[10:] == [("resnet18", "trains")]
    rows = {row["name"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert set(rows) == {"resnet18", "timm/test_vit"}
    assert rows["resnet18"]["about"]["trains"]["code"] == "other code"


def test_a_column_that_takes_too_long_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(support_table.TESTS, "decodes", lambda net, images: time.sleep(60))
    part = support_table.check_apart("squeezenet1_1", "decodes", 0.5)
    assert part["decodes"] is False and part["reason"] == "took longer than 0 s"


def test_every_family_has_a_row() -> None:
    families = {name for name in support_table.torchvision_names()}
    assert families <= set(RECORDED)
    assert sum(name.startswith(support_table.TIMM) and RECORDED[name]["trains"] for name in RECORDED) >= 25
