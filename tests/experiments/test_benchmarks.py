"""The benchmark suite runs and gives a row to every contender; its statistics are right on numbers made up for it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.benchmarks import __main__ as benchmarks
from experiments.benchmarks import suites, targets
from experiments.benchmarks.case import Case, classifier_state, random_data
from experiments.benchmarks.compare import NoResult, Remote, agreement
from experiments.benchmarks.contenders import TRAINING, double_backpropagation, ours
from experiments.benchmarks.inference import INFERENCE, present_pairs
from experiments.benchmarks.memory import CpuMemory, model_bytes
from experiments.benchmarks.published import check_clone, published_model
from experiments.benchmarks.report import markdown
from experiments.benchmarks.summary import Spread, curves, exponent, ratio, spread
from tw_seg.errors import InputError

CASE = Case("made up", "resnet18", classes=4, size=32, batch=2, labelled=1)


def contender(*seconds: float, peak: float = 1.0, failure: str | None = None) -> dict[str, Any]:
    turns = [{"turn": i, "seconds": s, "peak_bytes": peak, "steps": 1} for i, s in enumerate(seconds)]
    return {"turns": turns, "failure": failure, "model_bytes": 2**30, "measure": "made up"}


def record(name: str, contenders: dict[str, Any], axis: str | None = None, **changes: Any) -> dict[str, Any]:
    case = {**CASE.__dict__, "name": name, **changes}
    return {"part": "training", "axis": axis, "case": case, "roofline": Case(**case).roofline, "contenders": contenders}


def test_ratios_are_of_paired_turns() -> None:
    # Every turn is twice as slow for both: the ratio stays 3, that of the medians would be 1.5.
    made = record("x", {"ours": contender(1, 2, 4), "classifier": contender(3, 6)})
    assert ratio(made, "classifier", "ours") == Spread(3.0, 3.0, 3.0, 2)
    assert ratio(made, "ours", "classifier", factor=made["roofline"]) == pytest.approx((1 / 9, 1 / 9, 1 / 9, 2))
    assert ratio(made, "ours", "published") is None


def test_spread() -> None:
    assert spread([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0, 3)
    assert spread([]) is None


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_exponent_of_a_power(power: float) -> None:
    x = [2.0, 5.0, 11.0, 81.0]
    found = exponent(x, [7 * value**power for value in x])
    assert found == pytest.approx(power, abs=1e-12)


def test_exponent_needs_two_points() -> None:
    assert exponent([2.0, 2.0], [1.0, 3.0]) is None


def test_exponent_is_the_least_squares_line() -> None:
    # Logarithms (0, 0), (1, 1), (2, 3): slope 3/2.
    assert exponent([1.0, math.e, math.e**2], [1.0, math.e, math.e**3]) == pytest.approx(1.5)


def test_curves_follow_the_axis() -> None:
    made = [
        record("b", {"ours": contender(8, 9, 8), "double": contender(failure="too large")}, "pixels", size=64),
        record("a", {"ours": contender(2), "double": contender(1)}, "pixels", size=32),
        record("c", {"ours": contender(5)}, "classes", size=32),
    ]
    first, second = curves(made, "pixels", "seconds")
    assert (first.name, first.x, first.y) == ("ours", [1024.0, 4096.0], [2, 8])
    assert first.exponent == pytest.approx(1.0)
    assert (second.x, second.exponent) == ([1024.0], None)


def test_targets_on_made_up_numbers() -> None:
    headline = record(
        targets.HEADLINE,
        {
            "ours": contender(3.3, 3.3, peak=1.0),
            "classifier": contender(1, 1),
            "published, per class": contender(30, peak=5.0),
        },
    )
    few = record(targets.FEW, {"ours, recompute": contender(1, peak=100)})
    many = record(targets.MANY, {"ours, recompute": contender(1, peak=120)})
    found = {
        t.what: (value.median, t.met(value.median, device))
        for t, value, device in targets.measured([headline, few, many])
    }
    assert list(found.values()) == [
        (pytest.approx(30 / 3.3), True),
        (pytest.approx(0.2), True),
        (pytest.approx(1.1), True),
        (pytest.approx(1.2), False),
    ]


def test_the_report_names_the_reason() -> None:
    made = record("headline", {"ours": contender(1), "published": contender(failure="needs | a clone")})
    machine = {"cpu": "x", "cores": 2, "memory": "y", "device": None, "torch": "2", "python": "3", "date": "today"}
    text = markdown({"suite": "made up", "machine": machine, "cases": [made], "profiles": []})
    assert "| published | needs / a clone |" in text
    widths = {
        line.count("|") for line in text.splitlines() if line.startswith("| ours") or line.startswith("| published")
    }
    assert len(widths) == 1


def test_agreement_by_hand() -> None:
    found = agreement(np.array([[3.0, 4.0]], np.float32), np.array([[3.0, 0.0]], np.float32))
    assert found == pytest.approx({"deviation": 4 / 3, "cosine": 0.6})


def test_roofline() -> None:
    assert Case("", "resnet18", classes=21, size=32, batch=4, labelled=2).roofline == 11.5


def test_double_backpropagation_is_another_way_to_our_step() -> None:
    """Same heatmaps, and with BatchNorm frozen the same gradients: the two contenders do the same work."""
    case = Case("", "resnet18", classes=3, size=64, batch=2, labelled=2, batch_norm="eval")
    made, other = ours(case, None), double_backpropagation(case, None)
    assert made.heatmaps is not None and other.heatmaps is not None
    assert agreement(other.heatmaps().numpy(), made.heatmaps().numpy())["deviation"] < 1e-4
    made.run(), other.run()
    pairs = zip(made.model.classifier.parameters(), other.model.parameters(), strict=True)
    a, b = (torch.cat([t.grad.flatten() for t in side]) for side in zip(*pairs, strict=True))
    assert float(torch.cosine_similarity(a, b, dim=0)) > 1 - 1e-4
    assert float(a.norm() / b.norm()) == pytest.approx(1, abs=1e-3)


def test_the_optimizer_state_exists_before_the_first_step_and_the_weights_are_untouched() -> None:
    made = TRAINING["classifier"](CASE, None)
    expected = classifier_state(CASE)
    assert all(torch.equal(value, expected[name]) for name, value in made.model.state_dict().items())
    weights = sum(p.numel() * 4 for p in made.model.parameters())
    size = model_bytes(made.model, made.optimizer)
    assert 4 * weights < size < 4.1 * weights  # weights, gradients, two moments; buffers and step counts


def test_masks_of_unlabelled_images_are_ignored() -> None:
    data = random_data(CASE)
    assert torch.equal(data.all_masks[data.labelled], data.masks)
    assert (data.all_masks[CASE.labelled :] == 255).all()


def test_gated_pairs() -> None:
    case = Case("", "resnet18", classes=21, size=32, batch=10, labelled=10)
    samples, classes = present_pairs(case)
    pairs = list(zip(samples.tolist(), classes.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) == 25  # the background and 1.5 classes for each of 10
    assert {sample for sample, k in pairs if k == 0} == set(range(10))
    assert int(classes.max()) < 21


def test_peak_memory_sees_a_tensor_that_is_gone() -> None:
    memory = CpuMemory()
    if not memory.resettable:
        pytest.skip("this kernel does not let a process reset its peak")
    memory.reset()
    before = memory.now()
    torch.ones(2**25).sum()  # 128 MiB
    assert 127 * 2**20 < memory.peak() - before < 160 * 2**20
    memory.reset()
    assert memory.peak() - before < 32 * 2**20


def test_a_folder_that_is_not_the_clone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be a clone of https://github.com/Kainmueller-Lab/TW-autoencoder"):
        published_model(tmp_path, CASE, {})
    with pytest.raises(InputError, match="--published"):
        check_clone(None)
    with pytest.raises(InputError, match="git clone"):
        benchmarks.run("smoke", tmp_path / "results", published=tmp_path)


def test_wrong_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--suite must be one of"):
        benchmarks.run("gpu", tmp_path)
    with pytest.raises(InputError, match="--only takes"):
        benchmarks.run("smoke", tmp_path, only=["train"])
    with pytest.raises(InputError, match="--cases of suite 'smoke'"):
        benchmarks.run("smoke", tmp_path, names=["headlines"])


@pytest.mark.parametrize("name", suites.SUITES)
def test_suites_name_contenders_that_exist_and_each_case_once(name: str) -> None:
    suite = suites.SUITES[name]()
    for entry in suite.entries:
        known = TRAINING if entry.case.part == "training" else INFERENCE
        assert set(entry.contenders) <= set(known)
        assert entry.case.labelled <= entry.case.batch
        assert "ours" in entry.contenders or entry.contenders == suites.FLAT
    names = [entry.case.name for entry in suite.entries]
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_the_smoke_suite(tmp_path: Path) -> None:
    benchmarks.main(["--suite", "smoke", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    suite = suites.smoke()
    assert [r["case"]["name"] for r in results["cases"]] == [entry.case.name for entry in suite.entries]
    assert results["machine"]["torch"] == torch.__version__
    for found, entry in zip(results["cases"], suite.entries, strict=True):
        assert tuple(found["contenders"]) == entry.contenders
        for name, row in found["contenders"].items():
            if name.startswith("published"):
                assert "--published DIR" in row["failure"] and not row["turns"]
                continue
            assert row["failure"] is None, row["failure"]
            assert len(row["turns"]) == suite.settings.repeats
            assert all(turn["seconds"] > 0 and turn["peak_bytes"] > 0 for turn in row["turns"])
    double = results["cases"][0]["contenders"]["double backpropagation"]["heatmaps"]
    assert double["deviation"] < 1e-4
    (profile,) = results["profiles"]
    assert profile["failure"] is None and any("conv" in row["name"] for row in profile["rows"])
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in text for entry in suite.entries for name in entry.contenders)
    assert {path.name for path in tmp_path.glob("*.png")} == {"training.png", "inference.png", "classes.png"}


@pytest.mark.slow
def test_a_contender_that_takes_too_long_or_dies_is_a_reason() -> None:
    remote = Remote("ours", CASE, None)
    try:
        with pytest.raises(NoResult, match="no answer within 0 s"):
            remote.ask("build", limit=0.0)
        remote.process.kill()
        with pytest.raises(NoResult, match="signal 9, probably out of memory"):
            remote.ask("warm_up", limit=60.0)
    finally:
        remote.close()
