"""Files as they should not be: the check names each and goes on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.check.messy import write_good
from tw_seg.data.check.contact_sheet import draw_contact_sheet
from tw_seg.data.check.report import check_data


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("good")
    write_good(root)
    return root


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["images/im1.png", "masks/im1.png", "images/im9.png"]), st.data())
def test_bytes_that_are_cut_off_or_changed(good, name, data):
    path = good / name
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content) - 1))
    changed = content[:cut] if data.draw(st.booleans()) else content[:cut] + b"\0\0\0\0" + content[cut + 4 :]
    path.write_bytes(changed)
    try:
        report = check_data(good, "folder").report
    finally:
        path.write_bytes(content)
    errors = {finding.text.partition(":")[0] for finding in report.findings if finding.severity == "error"}
    assert errors <= {str(path)}  # the others are as they were, and this one may still be read
    seen = sum(count.images for count in report.splits.values())
    assert seen == 12 - any(finding.kind == "image" for finding in report.findings)


def test_strange_sizes_names_and_links(tmp_path):
    write_good(tmp_path)
    rows = []
    for name, size in (("é ü 木", (1, 1)), ("thin", (1, 5000)), ("a;b", (5000, 1))):
        Image.fromarray(np.zeros((*size, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(np.ones(size, dtype=np.uint8)).save(tmp_path / "masks" / f"{name}.png")
        rows.append(f"{name},train,p,1,0\n")
    os.symlink("loop.png", tmp_path / "images" / "loop.png")
    os.symlink("im0.png", tmp_path / "images" / "link.png")
    os.symlink("nowhere.png", tmp_path / "images" / "gone.png")
    (tmp_path / "images" / "wrong.jpg").write_text("text")
    rows += [f"{name},val,q,1,0\n" for name in ("loop", "link", "gone", "wrong")]
    with (tmp_path / "image_labels.csv").open("a", encoding="utf-8") as table:
        table.writelines(rows)
    result = check_data(tmp_path, "folder")
    broken = {name for finding in result.report.findings if finding.kind == "image" for _, name in finding.images}
    assert broken == {"loop", "gone", "wrong"}
    assert result.report.splits["train"].sizes == ((1, 1), (5000, 1))
    assert any({("train", "im0"), ("val", "link")} <= set(group) for group in result.report.groups)
    draw_contact_sheet(result, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
