"""The benchmark of the input pipeline runs, and its table says what its numbers say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.benchmarks import input_pipeline
from tw_seg.data import VOCDataset
from tw_seg.types import BACKGROUND, IGNORE_INDEX


def test_every_loader_is_measured_in_every_repeat(tmp_path, capsys) -> None:
    output = tmp_path / "made" / "results.json"
    arguments = ["--images=6", "--size=32", "--batch_size=3", "--labelled=1", "--batches=2", "--repeats=2"]
    input_pipeline.main([*arguments, "--workers", "0", "1", "--device=cpu", f"--output={output}"])
    out, results = capsys.readouterr().out, json.loads(output.read_text())
    rows = [(row["cache"], row["workers"]) for row in results["loaders"]]
    assert rows == [(False, 0), (False, 1), (True, 0), (True, 1)]
    for speeds in (results["step"], *(row["images_per_second"] for row in results["loaders"])):
        assert len(speeds) == 2 and min(speeds) > 0
    for name, milliseconds in results["parts"].items():
        assert milliseconds > 0 and f"| {name} |" in out


def test_verdicts_follow_from_the_medians() -> None:
    def loader(workers: int, speeds: list[float]) -> dict[str, object]:
        return {"cache": False, "workers": workers, "fill_seconds": 0.0, "images_per_second": speeds}

    results = {
        "step": [100.0, 90.0, 300.0],
        "loaders": [loader(0, [400.0]), loader(1, [99.0, 98.0, 900.0]), loader(2, [200.0])],
        "parts": {},
        "options": {},
        "machine": {},
    }
    lines = input_pipeline.table(results).splitlines()
    assert "| no | 0 | 400 (400 to 400) | 4 x | adds 25.0% to the step |" in lines
    assert "| no | 1 | 99 (98 to 900) | 0.99 x | no |" in lines
    assert "| no | 2 | 200 (200 to 200) | 2 x | yes |" in lines


@pytest.fixture
def photographs(tmp_path) -> VOCDataset:
    return VOCDataset(input_pipeline.write_photographs(tmp_path / "voc", 5, size=(60, 80)), "train")


def test_photographs_are_a_data_set(photographs) -> None:
    assert len(photographs) == 5 and photographs.has_mask.all()
    for index in range(5):
        sample = photographs[index]
        assert sample.image.shape == (60, 80, 3) and sample.image.std() > 10
        present = set(np.unique(sample.mask)) - {BACKGROUND, IGNORE_INDEX}
        assert present <= set(np.flatnonzero(sample.labels)) and sample.labels.sum() == 2
