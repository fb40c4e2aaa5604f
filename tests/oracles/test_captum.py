"""Rules equal captum's LRP, in value, on a sequential net whose linear layers have images and activations >= 0.

What captum's rules compute, and so which setting here is the same:

* every layer, max pools too, divides by ``z + stabiliser * sign(z)`` of its own modified weights: the epsilon rule
  (``EpsilonRule``), whose numbers can be set. Max pools have no stabiliser here, so captum's gets one next to nothing.
* ``GammaRule`` adds ``gamma w+`` to the weights, whatever the signs of inputs and outputs: the gamma rule where both
  are >= 0, so for layers with a ReLU after them. It leaves the bias as it is, while the gamma rule here and in
  zennit treats it as one more weight: equal with ``set_bias_to_zero`` and ``zero_bias``, or where biases are <= 0.
* ``Alpha1_Beta0_Rule`` clamps the weights, not the bias, at 0: z+ with ``zero_bias``, or where biases are >= 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule, PropagationRule
from torch import Tensor, nn

from tests.oracles.nets import initialise
from tw_seg.lrp import HeatmapDecoder

# captum's own notice: its attributions set requires_grad on the images
pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning")

EPSILON, STABILIZER, GAMMA = 1e-2, 1e-3, 0.3

Rules = Callable[[], PropagationRule]
"""Makes a rule of captum's: each module needs one of its own."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.hidden, self.relu, self.fc = nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).flatten(1)  # captum knows no Flatten module
        return self.fc(self.relu(self.hidden(x)))


def example(bias_sign: int = 0) -> tuple[nn.Module, Tensor]:
    """A net, the biases of its convolutions of one sign if asked for, and images >= 0."""
    net = initialise(Net()).double().eval()
    if bias_sign:
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, nn.Conv2d):
                    module.bias.copy_(bias_sign * module.bias.abs())
    return net, torch.rand(2, 3, 17, 15, dtype=torch.float64)


def rule(kind: type[PropagationRule], stabilizer: float, **numbers: Any) -> PropagationRule:
    """A rule of captum's with a stabiliser; only its epsilon rule takes one as an argument."""
    result = kind(**numbers)
    result.STABILITY_FACTOR = stabilizer
    return result


def captum_heatmap(net: nn.Module, images: Tensor, convolutions: Rules, target: int) -> Tensor:
    """The rule ``convolutions()`` in convolutions, epsilon in linear layers and average pools."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.rule = convolutions()
        elif isinstance(module, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
            module.rule = rule(EpsilonRule, STABILIZER)
        elif isinstance(module, nn.Linear):
            module.rule = rule(EpsilonRule, EPSILON)
        elif isinstance(module, nn.MaxPool2d):
            module.rule = rule(EpsilonRule, 1e-300)
    return LRP(net).attribute(images, target=target).sum(1).detach()


def deviation(net: nn.Module, images: Tensor, preset: dict[str, Any], convolutions: Rules) -> float:
    """Largest deviation of the decoder's heatmaps from captum's, relative to the largest value of a class."""
    found = HeatmapDecoder(net, "epsilon_plus", composite_kwargs=preset)(images).heatmaps.detach()
    expected = torch.stack([captum_heatmap(net, images, convolutions, k) for k in range(3)], 1)
    scale = expected.abs().amax((0, 2, 3))
    return float(((found - expected).abs().amax((0, 2, 3)) / scale).max())


def preset(name: str, **numbers: Any) -> dict[str, Any]:
    """``epsilon_plus``, which has epsilon in linear layers and pools, with another rule in convolutions."""
    override = {"rule": name, "kinds": ["convolution"], **numbers}
    return {"epsilon": EPSILON, "stabilizer": STABILIZER, "overrides": [override]}


def test_epsilon() -> None:
    net, images = example()
    numbers = preset("epsilon", epsilon=0.1)
    assert deviation(net, images, numbers, partial(rule, EpsilonRule, 0.1)) < 1e-12


def test_default_rules() -> None:
    # captum's defaults: 1e-9 everywhere, in max pools too, of which the smallest winner is 6e-4
    net, images = example()
    found = HeatmapDecoder(net, composite_kwargs={"epsilon": 1e-9})(images).heatmaps.detach()
    for k in range(3):
        expected = LRP(net).attribute(images, target=k).sum(1).detach()
        assert float((found[:, k] - expected).abs().max() / expected.abs().max()) < 1e-6


def test_gamma_without_bias() -> None:
    net, images = example()
    numbers = preset("gamma", gamma=GAMMA, stabilizer=STABILIZER, zero_bias=True)
    captum = partial(rule, GammaRule, STABILIZER, gamma=GAMMA, set_bias_to_zero=True)
    assert deviation(net, images, numbers, captum) < 1e-12


def test_gamma_with_negative_biases() -> None:
    net, images = example(bias_sign=-1)
    numbers = preset("gamma", gamma=GAMMA, stabilizer=STABILIZER)
    captum = partial(rule, GammaRule, STABILIZER, gamma=GAMMA)
    assert deviation(net, images, numbers, captum) < 1e-12


@pytest.mark.parametrize("name", ["zplus", "alphabeta"])
def test_alpha1_beta0_without_bias(name: str) -> None:
    net, images = example()
    numbers: dict[str, Any] = {"alpha": 1.0, "beta": 0.0} if name == "alphabeta" else {}
    numbers = preset(name, stabilizer=STABILIZER, zero_bias=True, **numbers)
    captum = partial(rule, Alpha1_Beta0_Rule, STABILIZER, set_bias_to_zero=True)
    assert deviation(net, images, numbers, captum) < 1e-12


def test_alpha1_beta0_with_positive_biases() -> None:
    net, images = example(bias_sign=1)
    numbers = preset("zplus", stabilizer=STABILIZER)
    captum = partial(rule, Alpha1_Beta0_Rule, STABILIZER)
    assert deviation(net, images, numbers, captum) < 1e-12


def test_gamma_with_positive_biases_differs() -> None:
    # The other half of what is said on biases above: the tests could not pass for want of an effect.
    net, images = example(bias_sign=1)
    numbers = preset("gamma", gamma=GAMMA, stabilizer=STABILIZER)
    assert deviation(net, images, numbers, partial(rule, GammaRule, STABILIZER, gamma=GAMMA)) > 1e-3


def test_alpha1_beta0_with_negative_biases_differs() -> None:
    net, images = example(bias_sign=-1)
    numbers = preset("zplus", stabilizer=STABILIZER)
    assert deviation(net, images, numbers, partial(rule, Alpha1_Beta0_Rule, STABILIZER)) > 1e-3
