from __future__ import annotations

import itertools

import numpy as np
import pytest
from skimage.filters import threshold_otsu
from sklearn.mixture import GaussianMixture

from tw_seg.errors import InputError
from tw_seg.models.posthoc.threshold_rules import CALIBRATED, THRESHOLD_RULES, check_rule, find_threshold


def two_humps(seed: int = 0) -> np.ndarray:
    """A map with a dark and a bright group, float32, maximum 1."""
    random = np.random.default_rng(seed)
    values = np.concatenate([random.normal(0.2, 0.05, 300), random.normal(0.7, 0.1, 100)]).clip(0)
    return (values / values.max()).astype(np.float32).reshape(20, 20)


def test_share_quantile_and_otsu_are_what_their_libraries_say():
    values = two_humps()
    assert find_threshold(values, "share", 0.4) == pytest.approx(0.4 * values.max())
    assert find_threshold(values, "quantile", 0.8) == np.quantile(values, 0.8)
    assert (values > find_threshold(values, "quantile", 0.8)).mean() == pytest.approx(0.2)
    assert find_threshold(values, "otsu") == threshold_otsu(values.astype(np.float64))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.83])
def test_mass_is_the_smallest_of_all_regions_that_hold_the_share(share):
    values = np.random.default_rng(1).random(9) ** 2
    region = values > find_threshold(values, "mass", share)
    held = {  # of every region there is
        chosen: values[list(chosen)].sum() for size in range(1, 10) for chosen in itertools.combinations(range(9), size)
    }
    enough = [chosen for chosen, mass in held.items() if mass >= share * values.sum()]
    assert tuple(np.flatnonzero(region)) in enough
    assert region.sum() == min(map(len, enough))


def test_mass_keeps_equal_values_together_and_can_hold_everything():
    values = np.array([[0.2, 0.5, 0.5, 0.0]])
    assert find_threshold(values, "mass", 0.3) == 0.2  # one 0.5 would do
    assert find_threshold(values, "mass", 1.0) == 0.0


def test_mixture_agrees_with_the_components_between_their_means():
    values = two_humps()
    threshold = find_threshold(values, "mixture")
    flat = values.reshape(-1, 1).astype(np.float64)
    mixture = GaussianMixture(2, max_iter=1000, random_state=0).fit(np.sort(flat, axis=0))
    bright, dark = mixture.means_.argmax(), mixture.means_.argmin()
    between = flat[(flat > mixture.means_[dark]) & (flat < mixture.means_[bright])][:, None]
    assert len(between) > 100
    assert ((between[:, 0] > threshold) == (mixture.predict(between) == bright)).all()
    # Where two normal densities of these weights cross, by hand.
    grid = np.linspace(mixture.means_.min(), mixture.means_.max(), 10_001)
    variance = mixture.covariances_[:, 0, 0]
    density = (
        mixture.weights_ / np.sqrt(variance) * np.exp(-((grid[:, None] - mixture.means_[:, 0]) ** 2) / 2 / variance)
    )
    crossing = grid[np.argmax(density[:, bright] > density[:, dark])]
    assert flat[flat <= crossing].max() == threshold


@pytest.mark.parametrize("name", THRESHOLD_RULES)
def test_any_map_has_a_threshold(name):
    one_pixel = np.zeros((8, 8), dtype=np.float32)
    one_pixel[3, 4] = 1
    assert (one_pixel > find_threshold(one_pixel, name)).sum() == 1
    for shape in ((4, 4), (1, 1)):
        for value in (0.0, 0.3, 1.0):  # the same everywhere: it does not say where
            values = np.full(shape, value, dtype=np.float32)
            assert not (values > find_threshold(values, name)).any()


def test_names_and_numbers_are_checked():
    for name in (*THRESHOLD_RULES, CALIBRATED):
        check_rule(name, None)
    check_rule("share", 0)
    with pytest.raises(InputError, match="one of share, otsu, quantile, mass, mixture, calibrated, got 'otzu'"):
        check_rule("otzu", None)
    with pytest.raises(InputError, match="no meaning for threshold_rule='otsu'.*share, quantile, mass"):
        check_rule("otsu", 0.5)
    with pytest.raises(InputError, match="no meaning for threshold_rule='calibrated'"):
        check_rule(CALIBRATED, 0.5)
    with pytest.raises(InputError, match=r"threshold_value must be a number in \[0, 1\], got 1.5"):
        check_rule("share", 1.5)


@pytest.mark.parametrize("name", THRESHOLD_RULES)
def test_values_that_differ_by_rounding_alone_have_a_threshold(name):
    values = np.ones(16, dtype=np.float32)
    values[::3] = np.nextafter(np.float32(1), np.float32(0))
    assert 0 <= find_threshold(values, name) <= 1
