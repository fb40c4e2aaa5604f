"""The score of a mask: the probability that it is good enough, from features, fitted where masks are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tw_seg.arguments import check_shares, is_number
from tw_seg.errors import InputError
from tw_seg.explain.reliability.features import find_groups, measure_features
from tw_seg.explain.reliability.region_features import RegionOptions
from tw_seg.files import write_text
from tw_seg.plain_files import read_json

FORMAT = 1
FEWEST = 10
"""So many masks of each kind, good enough or not, are needed to fit."""

_STRENGTHS = (0.01, 0.1, 1.0)  # inverse penalties that are tried


class Term(NamedTuple):
    """What a feature adds to the logit of the score: ``weight * (feature - mean) / scale``; 0 where it is NaN."""

    mean: float
    scale: float
    weight: float


@dataclass(frozen=True)
class ReliabilityScore:
    """The probability that the Dice of a mask is at least ``min_dice``.

    Attributes:
        min_dice: What is good enough.
        terms: What each feature adds, by its name.
        intercept: What is added to all terms.
        names: The images that it was fitted on.
        regions: How the regions of its features were found; of no meaning without them.
    """

    min_dice: float
    terms: Mapping[str, Term]
    intercept: float
    names: tuple[str, ...]
    regions: RegionOptions = RegionOptions()

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of features that it needs, see `tw_seg.explain.reliability.features.GROUPS`."""
        return find_groups(self.terms)

    def rate(self, features: Mapping[str, Tensor]) -> Tensor:
        """Score predictions.

        Args:
            features: Tensors (N,) by name, more than are needed if one likes.

        Returns:
            Float64, shape (N,), in [0, 1]. A feature that is NaN tells nothing; where all are, the score is 0.

        Raises:
            InputError: A feature is missing.
        """
        if lacking := [name for name in self.terms if name not in features]:
            raise InputError(f"the score needs the features {', '.join(lacking)}, which were not measured")
        values = torch.stack([features[name].double() for name in self.terms])
        mean, scale, weight = torch.tensor(list(self.terms.values()), dtype=torch.float64, device=values.device).T
        parts = weight[:, None] * (values - mean[:, None]) / scale[:, None]
        trust = (self.intercept + parts.nan_to_num(0.0).sum(0)).sigmoid()
        return trust.masked_fill(values.isnan().all(0), 0.0)

    def check_unseen(self, names: Iterable[str]) -> None:
        """Refuse to judge the score on images that it was fitted on.

        Raises:
            InputError: There is one among them.
        """
        if seen := sorted(set(names) & set(self.names)):
            raise InputError(
                f"{len(seen)} of these images were used to fit the score, first {seen[0]!r}: measure it on others"
            )

    def save(self, path: Path) -> None:
        """Write it as JSON: names and numbers."""
        content = {
            "format": FORMAT,
            "min_dice": self.min_dice,
            "intercept": self.intercept,
            "features": {name: term._asdict() for name, term in self.terms.items()},
            "regions": asdict(self.regions),
            "images": list(self.names),
        }
        write_text(path, json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> ReliabilityScore:
        """Read what `save` wrote.

        Raises:
            InputError: The file is missing, no such JSON, or of a version that this one does not read.
        """
        remedy = "write it anew with `tw-seg reliability fit`"
        try:
            content = read_json(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check the path, or {remedy}") from error
        except ValueError as error:
            raise InputError(f"{path}: expected a score in JSON ({error}); {remedy}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{path}: expected a score of format {FORMAT}; {remedy}")
        try:
            terms = {str(name): _read_term(term) for name, term in content["features"].items()}
            regions = RegionOptions(**content["regions"])
            names = tuple(str(name) for name in content["images"])
            score = cls(_read_number(content["min_dice"]), terms, _read_number(content["intercept"]), names, regions)
            find_groups(terms)
        except (KeyError, TypeError, AttributeError, ValueError) as error:  # InputError is a ValueError
            raise InputError(f"{path}: no whole score ({error}); {remedy}") from error
        if not terms:
            raise InputError(f"{path}: the score has no feature; {remedy}")
        return score


def fit_score(
    features: Mapping[str, Tensor],
    dice: Tensor,
    names: Sequence[str],
    *,
    min_dice: float,
    regions: RegionOptions | None = None,
) -> ReliabilityScore:
    """Fit a score on predictions whose Dice is known, of validation images: never on those that it is judged on.

    A logistic regression of standardised features, its penalty by cross-validation; then a second one (Platt 1999), of
    the scores of folds that were left out, so that its probabilities are calibrated. Both are scikit-learn's.

    Args:
        features: Tensors (N,) by name; what is NaN counts as the mean.
        dice: Of the predictions and the true masks, (N,), see `tw_seg.explain.reliability.masks.mean_dice`.
        names: Of the N images.
        min_dice: From which Dice on a mask is good enough, in (0, 1].
        regions: How regions were found, if there are features of them.

    Raises:
        InputError: Numbers differ, a Dice is NaN, all features of an image are NaN, or there are fewer than
            `FEWEST` masks that are good enough, or that are not.
    """
    check_shares(min_dice=min_dice)
    if not features:
        raise InputError("a score needs a feature or more, got none")
    values = torch.stack([one.double().cpu() for one in features.values()], dim=1)
    if not len(values) == len(dice) == len(names):
        raise InputError(
            f"expected features, Dice and names of the same images, got {len(values)}, {len(dice)}, {len(names)}"
        )
    broken = values.isnan().all(1) | dice.cpu().isnan()
    if bool(broken.any()):
        first = names[int(broken.nonzero()[0])]
        raise InputError(
            f"{int(broken.sum())} images have mask logits that are not finite, or no labelled pixel, first {first!r}: "
            "leave them out"
        )
    good = (dice.cpu() >= min_dice).numpy()
    if min(good.sum(), (~good).sum()) < FEWEST:
        raise InputError(
            f"{good.sum()} masks have a Dice of at least {min_dice:g} and {(~good).sum()} less; a score needs {FEWEST} "
            f"of each: choose a min_dice nearer to their median, {float(dice.median()):.2f}, or give more images"
        )
    mean, scale, weight, intercept = _read_numbers(fit_classifier(values.numpy(), good))
    terms = (Term(*map(float, term)) for term in zip(mean, scale, weight, strict=True))
    return ReliabilityScore(
        float(min_dice),
        dict(zip(features, terms, strict=True)),
        float(intercept),
        tuple(names),
        regions or RegionOptions(),
    )


def rate_batch(
    score: ReliabilityScore, function: Callable[[Tensor], Any], images: Tensor, output: Any = None
) -> Tensor:
    """The score of each mask of a batch, that of predictions that are there already included.

    Args:
        score: The score.
        function: The model, see `tw_seg.explain.model.ExplainedModel`.
        images: Shape (N, C, H, W), as the model takes them.
        output: What the model returned for them, all classes of it; ``None``: it is run. Features of the set
            ``"output"`` need no further run, ``"cheap"`` ones one.

    Returns:
        Float64 on the CPU, shape (N,), in [0, 1]; 0 where mask logits are not finite.

    Raises:
        InputError: The model lacks what a feature needs.
    """
    return score.rate(measure_features(function, images, groups=score.groups, output=output, regions=score.regions))


def fit_classifier(values: np.ndarray, good: np.ndarray) -> Any:
    """The calibrated classifier of scikit-learn.

    Args:
        values: Features, shape (N, F), NaN where there is none.
        good: What is to be foretold, bool (N,).
    """
    # Here, as predictions with a score have no use for it: it takes a second.
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    inner = StratifiedKFold(3, shuffle=True, random_state=0)
    search = GridSearchCV(LogisticRegression(max_iter=2000), {"C": list(_STRENGTHS)}, scoring="neg_log_loss", cv=inner)
    steps = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler(), search)
    return CalibratedClassifierCV(steps, method="sigmoid", ensemble=False, cv=folds).fit(values, good)


def _read_numbers(classifier: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Mean, scale and weight of each feature, and the intercept: both regressions together are one."""
    (fitted,) = classifier.calibrated_classifiers_
    imputer, scaler, search = (step for _, step in fitted.estimator.steps)
    (sigmoid,) = fitted.calibrators  # 1 / (1 + exp(a * score + b))
    linear = search.best_estimator_
    # A missing value becomes the imputer's mean, which is the scaler's.
    weight = -sigmoid.a_ * linear.coef_[0]
    return imputer.statistics_, scaler.scale_, weight, -(sigmoid.a_ * linear.intercept_[0] + sigmoid.b_)


def _read_term(term: Mapping[str, Any]) -> Term:
    found = Term(*(_read_number(term[field]) for field in Term._fields))
    if found.scale <= 0:
        raise ValueError(f"a scale must be positive, got {found.scale!r}")
    return found


def _read_number(value: Any) -> float:
    if not is_number(value) or not np.isfinite(value):
        raise ValueError(f"expected a finite number, got {value!r}")
    return float(value)
