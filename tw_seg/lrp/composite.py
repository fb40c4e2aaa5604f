"""Which rule for which call. A composite is data; presets stand in one dict under zennit's names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from tw_seg.errors import InputError
from tw_seg.lrp.core.graph import Call
from tw_seg.lrp.core.rule import InputRule, LinearRule, Rule
from tw_seg.lrp.ops import KIND_GROUPS, OPS
from tw_seg.lrp.rules import RULES, AlphaBeta, Deconvnet, Epsilon, Flat, Gamma, Guided, Pass, WSquare, ZBox, ZPlus


def _expand(kinds: Iterable[str]) -> frozenset[str]:
    """Kinds with every group replaced by its members."""
    return frozenset(kind for name in kinds for kind in KIND_GROUPS.get(name, (name,)))


@dataclass(frozen=True)
class Assign:
    """A rule and the calls that it is for: those of a kind, by path and depth, that the rule can act on.

    Attributes:
        rule: The rule.
        kinds: Kinds of calls, or groups of `KIND_GROUPS`; empty for every kind that the rule acts on.
        name: Pattern of the path of the call's module as in a shell, such as ``"layer4.*"``; ``*`` matches dots.
        depth: Smallest and largest depth, both included: 0 is the linear call nearest the images, 1 that nearest
            the logits.
    """

    rule: Rule
    kinds: tuple[str, ...] = ()
    name: str = "*"
    depth: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise InputError(
                f"{self.rule!r} cannot be assigned to calls; the rule of the images goes to the composite's `input`, "
                f"here one of {_names(Rule)} is needed"
            )
        if not isinstance(self.name, str):
            raise InputError(f"name must be a pattern of module paths such as 'layer4.*', got {self.name!r}")
        for key, of_type in (("kinds", str), ("depth", (int, float))):
            value = getattr(self, key)
            if (
                isinstance(value, str)
                or not isinstance(value, Sequence)
                or not all(isinstance(v, of_type) for v in value)
            ):
                example = "['convolution']" if key == "kinds" else "[0.5, 1.0]"
                raise InputError(f"{key} must be a list such as {example}, got {value!r}")
            object.__setattr__(self, key, tuple(value))
        if len(self.depth) != 2 or not 0 <= self.depth[0] <= self.depth[1] <= 1:
            raise InputError(f"depth must be [smallest, largest] within 0..1, got {list(self.depth)}")
        able = _expand(self.rule.acts_on)
        for kind in self.kinds:
            if kind not in KIND_GROUPS and kind not in OPS:
                raise InputError(f"unknown kind {kind!r}; there are the groups {_join(KIND_GROUPS)} and {_join(OPS)}")
            if not able & _expand((kind,)):
                raise InputError(f"{self.rule} cannot act on {kind!r}, only on {_join(sorted(able))}")

    @property
    def able(self) -> frozenset[str]:
        """The kinds of calls that the rule can be for."""
        able = _expand(self.rule.acts_on)
        return able & _expand(self.kinds) if self.kinds else able

    def matches(self, call: Call) -> bool:
        """Whether the rule is for this call."""
        return (
            call.kind in self.able
            and fnmatchcase(call.path, self.name)
            and self.depth[0] <= call.depth <= self.depth[1]
        )


@dataclass(frozen=True)
class Composite:
    """A rule for every call, and one for the calls that read the images.

    Attributes:
        layers: The first that matches a call gives its rule. Without one, linear calls have ``Epsilon(0)`` and
            activations ``Pass``.
        input: Rule of the convolutions and linear layers that read the images themselves, when the heatmap is
            read at the input; ``None``: as every other layer.
        heatmap: What is summed over channels: the relevance, or the coefficient as it is (a modified gradient).
        overrides: Assignments that come before ``layers`` and that must be of use, see `unmatched`.
    """

    layers: tuple[Assign, ...] = ()
    input: InputRule | None = None
    heatmap: Literal["relevance", "coefficient"] = "relevance"
    overrides: tuple[Assign, ...] = ()

    def __post_init__(self) -> None:
        if self.heatmap not in ("relevance", "coefficient"):
            raise InputError(f"heatmap must be 'relevance' or 'coefficient', got {self.heatmap!r}")
        if self.input is not None and not isinstance(self.input, InputRule):
            raise InputError(f"{self.input!r} is no rule of the input; there are {_names(InputRule)}")
        if self.input is not None and self.heatmap == "coefficient":
            raise InputError(f"heatmaps of coefficients need no rule of the input, got {self.input!r}: leave it out")

    def rule(self, call: Call) -> Rule:
        """The rule of a call."""
        for assign in (*self.overrides, *self.layers):
            if assign.matches(call):
                return assign.rule
        return _LINEAR if call.kind in _LINEAR_KINDS else _OTHER

    def rules(self, calls: Iterable[Call]) -> dict[str, Rule]:
        """The rule of each call by its name."""
        return {call.name: self.rule(call) for call in calls}

    def unmatched(self, calls: Iterable[Call]) -> list[str]:
        """A description of each override that matches none of the calls."""
        known = tuple(calls)
        return [str(assign) for assign in self.overrides if not any(assign.matches(call) for call in known)]


_LINEAR, _OTHER = Epsilon(0.0), Pass()
_LINEAR_KINDS = _expand(Epsilon.acts_on)
"""Kinds whose rule is ``_LINEAR`` where no assignment matches."""


def epsilon(epsilon: float = 0.0) -> Composite:
    """LRP-epsilon in every linear call; with ``epsilon = 0`` and ReLUs this is input x gradient.

    Sums of two branches pass the coefficient on as it is: nothing is stabilised there.
    """
    return Composite(_everywhere(epsilon))


def epsilon_flat(epsilon: float = 0.0, stabilizer: float = 1e-6) -> Composite:
    """LRP-epsilon, with the flat rule at the input."""
    return Composite(_everywhere(epsilon), Flat(stabilizer))


def epsilon_wsquare(epsilon: float = 0.0, stabilizer: float = 1e-6) -> Composite:
    """LRP-epsilon, with the w-square rule at the input."""
    return Composite(_everywhere(epsilon), WSquare(stabilizer))


def epsilon_box(
    low: float | tuple[float, ...],
    high: float | tuple[float, ...],
    *,
    epsilon: float = 0.0,
    stabilizer: float = 1e-6,
) -> Composite:
    """LRP-epsilon, with the z-box rule at the input for images normalised into ``[low, high]``."""
    return Composite(_everywhere(epsilon), ZBox(low, high, stabilizer))


def epsilon_plus(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Composite:
    """z+ in convolutions, epsilon in linear layers, as zennit's ``EpsilonPlus``.

    In this preset and the following ones average pools and sums of two branches have ``Epsilon(stabilizer)``, as
    zennit's ``Norm``. So have calls that zennit has no rule for: a BatchNorm that is not fused into a linear call
    (zennit passes relevance through it, which is right only where its shift is 0), interpolation and products of
    matrices.
    """
    return Composite(_zennit(ZPlus(stabilizer), epsilon, stabilizer))


def epsilon_plus_flat(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Composite:
    """`epsilon_plus` with the flat rule at the input, as zennit's ``EpsilonPlusFlat``."""
    return Composite(_zennit(ZPlus(stabilizer), epsilon, stabilizer), Flat(stabilizer))


def epsilon_alpha2_beta1(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Composite:
    """Alpha-beta with 2 and 1 in convolutions, epsilon in linear layers, as zennit's ``EpsilonAlpha2Beta1``."""
    return Composite(_zennit(AlphaBeta(2.0, 1.0, stabilizer), epsilon, stabilizer))


def epsilon_alpha2_beta1_flat(epsilon: float = 1e-6, stabilizer: float = 1e-6) -> Composite:
    """`epsilon_alpha2_beta1` with the flat rule at the input, as zennit's ``EpsilonAlpha2Beta1Flat``."""
    return Composite(_zennit(AlphaBeta(2.0, 1.0, stabilizer), epsilon, stabilizer), Flat(stabilizer))


def epsilon_gamma_box(
    low: float | tuple[float, ...],
    high: float | tuple[float, ...],
    *,
    epsilon: float = 1e-6,
    gamma: float = 0.25,
    stabilizer: float = 1e-6,
) -> Composite:
    """Gamma in convolutions, epsilon in linear layers, z-box at the input, as zennit's ``EpsilonGammaBox``."""
    return Composite(_zennit(Gamma(gamma, stabilizer), epsilon, stabilizer), ZBox(low, high, stabilizer))


def excitation_backprop(stabilizer: float = 1e-6) -> Composite:
    """z+ in convolutions and linear layers, as zennit's ``ExcitationBackprop`` (Zhang et al. 2016)."""
    return Composite((Assign(ZPlus(stabilizer), ("convolution", "dense")), Assign(Epsilon(stabilizer))))


def deconvnet() -> Composite:
    """The gradient with `tw_seg.lrp.rules.Deconvnet` in every ReLU, as zennit's ``DeconvNet``.

    The heatmap is that gradient itself, not times the input. Other activations than the ReLU have ``f(u) / u``,
    where zennit has their gradient.
    """
    return Composite((Assign(Deconvnet()),), heatmap="coefficient")


def guided_backprop() -> Composite:
    """The gradient with `tw_seg.lrp.rules.Guided` in every ReLU, as zennit's ``GuidedBackprop``.

    Heatmap and other activations as in `deconvnet`.
    """
    return Composite((Assign(Guided()),), heatmap="coefficient")


COMPOSITES: dict[str, Callable[..., Composite]] = {
    "epsilon": epsilon,
    "epsilon_flat": epsilon_flat,
    "epsilon_wsquare": epsilon_wsquare,
    "epsilon_box": epsilon_box,
    "epsilon_plus": epsilon_plus,
    "epsilon_plus_flat": epsilon_plus_flat,
    "epsilon_alpha2_beta1": epsilon_alpha2_beta1,
    "epsilon_alpha2_beta1_flat": epsilon_alpha2_beta1_flat,
    "epsilon_gamma_box": epsilon_gamma_box,
    "excitation_backprop": excitation_backprop,
    "deconvnet": deconvnet,
    "guided_backprop": guided_backprop,
}
"""Name -> preset; its arguments are numbers, so that it can be written in YAML."""


def create_composite(name: str, kwargs: Mapping[str, Any] | None = None) -> Composite:
    """Build a preset from names and numbers.

    Args:
        name: Key of `COMPOSITES`.
        kwargs: Arguments of the preset and, for every preset, ``overrides``: a list of assignments that come
            first, each the name of a ``rule``, its numbers, and any of ``kinds``, ``name`` and ``depth``
            (`Assign`); and ``input``: the name of the ``rule`` of the input with its numbers.

    Raises:
        InputError: For an unknown name, an argument that is unknown or missing, or a wrong number.

    Examples:
        >>> override = {"rule": "gamma", "gamma": 0.1, "name": "layer4.*"}
        >>> composite = create_composite("epsilon_plus", {"overrides": [override], "input": {"rule": "flat"}})
        >>> composite.overrides[0].rule
        Gamma(gamma=0.1, stabilizer=1e-06, zero_bias=False)
    """
    if name not in COMPOSITES:
        raise InputError(f"unknown composite {name!r}; there are {_join(COMPOSITES)}")
    given = dict(kwargs or {})
    overrides, rule = given.pop("overrides", None) or [], given.pop("input", None)
    parameters = inspect.signature(COMPOSITES[name]).parameters
    if unknown := [key for key in given if key not in parameters]:
        choices = _join([*parameters, "overrides", "input"])
        raise InputError(f"composite {name!r} does not take {_join(map(repr, unknown))}; its arguments are {choices}")
    if missing := [key for key, p in parameters.items() if p.default is p.empty and key not in given]:
        raise InputError(f"composite {name!r} needs {_join(missing)}, got {given}")
    if not isinstance(overrides, Sequence) or isinstance(overrides, str):
        raise InputError(f"overrides must be a list, got {overrides!r}")
    composite = COMPOSITES[name](**given)
    if rule is not None:
        composite = replace(composite, input=_rule(rule, "input"))
    return replace(composite, overrides=tuple(_override(entry) for entry in overrides))


def _override(entry: Any) -> Assign:
    """An assignment from its entry in a config."""
    where = ("kinds", "name", "depth")
    place = {key: entry[key] for key in where if key in entry} if isinstance(entry, Mapping) else {}
    return Assign(_rule(entry, "override", *where), **place)


def _rule(entry: Any, what: str, *ignored: str) -> Any:
    """A rule from its entry in a config, whose keys ``ignored`` are none of its arguments."""
    if not isinstance(entry, Mapping) or "rule" not in entry:
        raise InputError(f"{what} must name its rule, such as {{'rule': 'flat', 'stabilizer': 0.1}}, got {entry!r}")
    name = entry["rule"]
    if not isinstance(name, str) or name not in RULES:
        raise InputError(f"unknown rule {name!r} of {what}; there are {_join(RULES)}")
    rule: Any = RULES[name]
    numbers = {key: value for key, value in entry.items() if key not in ("rule", *ignored)}
    names = [f.name for f in fields(rule)]
    if unknown := [key for key in numbers if key not in names]:
        choices = _join(["rule", *names, *ignored])
        raise InputError(f"{what} {name!r} does not take {_join(map(repr, unknown))}; its keys are {choices}")
    try:
        return rule(**numbers)
    except TypeError as error:
        raise InputError(f"{what} {name!r} with {numbers}: {error}; its keys are {_join(names)}") from error


def _everywhere(epsilon: float) -> tuple[Assign, ...]:
    kinds = ("convolution", "dense", "pool", "batch_norm", "interpolate", "product")
    return (Assign(Epsilon(epsilon), kinds),)


def _zennit(convolution: LinearRule, epsilon: float, stabilizer: float) -> tuple[Assign, ...]:
    """Rules of zennit's composites; whatever is left and linear is stabilised."""
    return (
        Assign(convolution, ("convolution",)),
        Assign(Epsilon(epsilon), ("dense",)),
        Assign(Epsilon(stabilizer)),
    )


def _names(base: Any) -> str:
    return _join(name for name, rule in RULES.items() if issubclass(rule, base))


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)
