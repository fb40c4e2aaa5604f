"""The benchmark runs and measures every contender as often as asked."""

from __future__ import annotations

import pytest

from experiments.benchmarks import step_time

pytest.importorskip("segmentation_models_pytorch")


def test_prints_a_row_for_each_contender(capsys) -> None:
    step_time.main(["--batch_size=3", "--labelled=1", "--classes=3", "--present=1", "--size=32", "--repeats=2"])
    out = capsys.readouterr().out
    for name in step_time.contenders(3):
        assert f"| {name} |" in out
    assert "1 + K * labelled share = 2.00" in out


def test_every_contender_is_timed_in_turn() -> None:
    seconds = step_time.measure(batch_size=2, labelled=1, classes=2, present=1, negatives=1, size=32, repeats=3)
    assert set(seconds) == set(step_time.contenders(2))
    assert all(len(values) == 3 and min(values) > 0 for values in seconds.values())
