from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tw_seg.errors import InputError
from tw_seg.explain.reliability.features import measure_features
from tw_seg.explain.reliability.measures import measure_calibration_error
from tw_seg.explain.reliability.region_features import RegionOptions
from tw_seg.explain.reliability.score import ReliabilityScore, Term, fit_classifier, fit_score, rate_batch

NAMES = ("entropy", "soft_dice", "area")


def make_data(count=120, seed=0):
    """Features of which the first two tell the Dice, with gaps, the Dice and names."""
    rng = np.random.default_rng(seed)
    dice = rng.random(count)
    values = np.stack([5 - 3 * dice, 0.1 * dice, np.ones(count)]) + rng.standard_normal((3, count)) * [[1], [0.03], [2]]
    values[1, ::7] = np.nan
    features = {name: torch.from_numpy(row) for name, row in zip(NAMES, values, strict=True)}
    return features, torch.from_numpy(dice), [f"{seed}-{i}" for i in range(count)]


def make_score():
    terms = {"entropy": Term(2.0, 0.5, -1.0), "soft_dice": Term(0.5, 0.25, 2.0)}
    return ReliabilityScore(0.7, terms, 0.5, ("a", "b"), RegionOptions(fill="blur"))


def test_it_is_scikit_learns_classifier():
    features, dice, names = make_data()
    score = fit_score(features, dice, names, min_dice=0.6)
    values = torch.stack(list(features.values()), 1).numpy()
    expected = fit_classifier(values, (dice >= 0.6).numpy()).predict_proba(values)[:, 1]
    assert np.allclose(score.rate(features), expected, atol=1e-10)
    assert score.names == tuple(names) and score.min_dice == 0.6 and tuple(score.terms) == NAMES


def test_it_finds_bad_masks_that_it_has_not_seen_and_means_what_it_says():
    score = fit_score(*make_data(300), min_dice=0.6)
    features, dice, _ = make_data(2000, seed=1)
    trust, good = score.rate(features).numpy(), (dice >= 0.6).numpy()
    alone = [
        roc_auc_score(good, values.nan_to_num(0.05).numpy()) for values in (-features["entropy"], features["soft_dice"])
    ]
    assert roc_auc_score(good, trust) > max(alone)
    assert measure_calibration_error(trust, good) < 0.08
    assert score.terms["entropy"].weight < 0 < score.terms["soft_dice"].weight


def test_features_that_say_nothing_leave_the_share_of_good_masks():
    generator = torch.Generator().manual_seed(0)
    dice = torch.rand(200, generator=generator)
    constant = {"area": torch.ones(200), "empty": torch.full((200,), torch.nan)}
    score = fit_score(constant, dice, [str(i) for i in range(200)], min_dice=0.5)
    share = (dice >= 0.5).double().mean()
    assert score.rate(constant).numpy() == pytest.approx(share.item(), abs=0.02)
    assert score.rate({"area": torch.tensor([5.0]), "empty": torch.tensor([1.0])}).isfinite().all()


def test_the_sum_by_hand_gaps_and_no_feature_at_all():
    features = {"entropy": torch.tensor([1.0, 1.0, torch.nan]), "soft_dice": torch.tensor([0.75, torch.nan, torch.nan])}
    logits = torch.tensor([0.5 + 2 + 2, 0.5 + 2], dtype=torch.float64)
    found = make_score().rate({**features, "luck": torch.zeros(3)})
    torch.testing.assert_close(found, torch.cat([logits.sigmoid(), torch.zeros(1, dtype=torch.float64)]))


def test_a_missing_feature():
    with pytest.raises(InputError, match="the score needs the features soft_dice"):
        make_score().rate({"entropy": torch.zeros(1)})


def test_a_file_gives_the_same_score_and_holds_names_and_numbers(tmp_path: Path, monkeypatch):
    features, dice, names = make_data()
    score = fit_score(features, dice, names, min_dice=0.6, regions=RegionOptions(steps=5))
    file = tmp_path / "new" / "reliability.json"
    score.save(file)
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(pickle, "load", None)
    again = ReliabilityScore.load(file)
    assert again == score and torch.equal(again.rate(features), score.rate(features))
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert json.loads(file.read_text())["features"]["entropy"].keys() == {"mean", "scale", "weight"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=2), "expected a score of format 1"),
        (lambda c: c.pop("intercept"), "no whole score .'intercept'."),
        (lambda c: c.update(intercept=None), "expected a finite number, got None"),
        (lambda c: c["features"]["entropy"].update(scale=0), "a scale must be positive"),
        (lambda c: c["features"]["entropy"].update(weight=float("nan")), "expected a finite number, got nan"),
        (lambda c: c.update(features={}), "has no feature"),
        (lambda c: c.update(features=[]), "no whole score"),
        (lambda c: c["features"].update(luck=c["features"]["entropy"]), "no feature luck"),
        (lambda c: c["regions"].update(fill="grey"), "fill must be one of"),
        (lambda c: c["regions"].update(size=3), "size"),
    ],
)
def test_a_file_that_is_not_whole(tmp_path: Path, change, message):
    file = tmp_path / "reliability.json"
    make_score().save(file)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        ReliabilityScore.load(file)
    assert str(file) in str(caught.value) and "tw-seg reliability fit" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "no json"])
def test_a_file_that_is_none(tmp_path: Path, text):
    file = tmp_path / "reliability.json"
    with pytest.raises(InputError, match="check the path"):
        ReliabilityScore.load(file)
    file.write_text(text)
    with pytest.raises(InputError, match="expected a score"):
        ReliabilityScore.load(file)


def test_images_that_it_was_fitted_on_are_refused():
    make_score().check_unseen(["c", "d"])
    with pytest.raises(InputError, match="1 of these images were used to fit the score, first 'b'"):
        make_score().check_unseen(["c", "b"])


def test_what_cannot_be_fitted():
    features, dice, names = make_data(20)
    with pytest.raises(InputError, match="20 masks have a Dice of at least 0.0001 and 0 less; .* needs 10 of each"):
        fit_score(features, dice, names, min_dice=0.0001)
    with pytest.raises(InputError, match=r"min_dice must be in \(0, 1\]"):
        fit_score(features, dice, names, min_dice=0)
    with pytest.raises(InputError, match="got 20, 20, 19"):
        fit_score(features, dice, names[:-1], min_dice=0.5)
    with pytest.raises(InputError, match="a feature or more"):
        fit_score({}, dice, names, min_dice=0.5)
    with pytest.raises(InputError, match="1 images have .* first '0-3'"):
        fit_score(features, dice.index_fill(0, torch.tensor([3]), torch.nan), names, min_dice=0.5)


def test_a_batch_is_rated_by_its_features():
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[2, 0, 0, 0] = torch.nan
    score = make_score()
    found = rate_batch(score, lambda seen: 5 * seen, images)
    expected = score.rate(measure_features(lambda seen: 5 * seen, images, groups=["mask"]))
    assert torch.equal(found, expected) and found[2] == 0 and 0 < found[0] < 1
    assert torch.equal(rate_batch(score, lambda seen: 5 * seen, images, 5 * images), found)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"features":' * 100_000, "9" * 10_000, "\0"])
def test_a_file_that_would_fill_the_stack(text, tmp_path):
    (tmp_path / "score.json").write_text(text)
    with pytest.raises(InputError, match=r"score\.json: expected a score in JSON"):
        ReliabilityScore.load(tmp_path / "score.json")
