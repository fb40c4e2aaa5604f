from __future__ import annotations

import pytest

from experiments.benchmarks import soak


def test_a_few_steps_are_taken_and_their_memory_is_read(capsys):
    assert soak.main(["--steps=8", "--every=2"]) == 0
    out = capsys.readouterr().out
    assert [int(line.split()[1]) for line in out.splitlines() if line.startswith("step")] == [2, 4, 6, 8]
    assert "8 steps, memory grew by" in out


def test_growth_is_that_after_the_first_fifth():
    assert soak.measure_growth([0, 0, 100, 100, 0, 0, 0, 0, 130, 150]) == 40
    with pytest.raises(SystemExit):
        soak.main(["--steps"])
