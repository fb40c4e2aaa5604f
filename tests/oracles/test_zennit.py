"""Composites equal zennit's, in value, on copies of VGG, ResNet and DenseNet.

Conventions that have to be matched for that:

* zennit's canonizers merge a BatchNorm into the convolution before it, as the decoder does on the tape. They
  change the model: zennit works on a copy. They leave an identity with the BatchNorm's ``eps`` behind, which
  divides by ``sqrt(1 + eps)``: here a merged BatchNorm is skipped instead.
* zennit gives a BatchNorm that is not merged (DenseNet's, after a concatenation) its ``Pass`` rule, which is right
  only where the shift is 0. Here it is a linear map with the epsilon rule, and zennit is told so.
* In presets of zennit's names its own composite is the reference, as it is. Presets ``epsilon*`` are not zennit's:
  there sums hand their coefficient on as it is, so they get a ``Norm`` with a stabiliser next to nothing, and
  average pools follow the composite's epsilon.
* zennit's ``WSquare`` counts the bias among the squared weights unless told otherwise; here biases take no part in
  an input rule.
* Heatmaps of ``deconvnet`` and ``guided_backprop`` are the modified gradient itself, summed over channels.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import DenseNet
from zennit.attribution import Gradient
from zennit.canonizers import AttributeCanonizer, Canonizer, NamedMergeBatchNorm
from zennit.composites import COMPOSITES, MixedComposite, NameMapComposite, SpecialFirstLayerMapComposite
from zennit.core import Composite
from zennit.layer import Sum
from zennit.rules import Epsilon, Flat, Norm, Pass, WSquare, ZBox
from zennit.torchvision import ResNetCanonizer, VGGCanonizer
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

from tests.oracles import nets
from tw_seg.lrp import HeatmapDecoder

EPSILON, STABILIZER = 1e-2, 1e-3  # they differ, so that one taken for the other is seen
LOW, HIGH = (-4.0, -4.5, -5.0), (4.0, 4.5, 5.0)
TARGET = 1


def bounds(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 3, 1, 1)


FIRST = {
    "epsilon": Epsilon(EPSILON),
    "epsilon_flat": Flat(STABILIZER),
    "epsilon_wsquare": WSquare(STABILIZER, zero_params=["bias"]),
    "epsilon_box": ZBox(bounds(LOW), bounds(HIGH), STABILIZER),
}
"""Presets that zennit lacks -> rule of the first convolution."""

BOX = {"low": LOW, "high": HIGH}
NUMBERS: dict[str, dict[str, Any]] = {
    "epsilon": {"epsilon": EPSILON},
    "epsilon_flat": {"epsilon": EPSILON, "stabilizer": STABILIZER},
    "epsilon_wsquare": {"epsilon": EPSILON, "stabilizer": STABILIZER},
    "epsilon_box": {"epsilon": EPSILON, "stabilizer": STABILIZER, **BOX},
    "epsilon_plus": {"epsilon": EPSILON, "stabilizer": STABILIZER},
    "epsilon_plus_flat": {"epsilon": EPSILON, "stabilizer": STABILIZER},
    "epsilon_alpha2_beta1": {"epsilon": EPSILON, "stabilizer": STABILIZER},
    "epsilon_alpha2_beta1_flat": {"epsilon": EPSILON, "stabilizer": STABILIZER},
    "epsilon_gamma_box": {"epsilon": EPSILON, "stabilizer": STABILIZER, "gamma": 0.3, **BOX},
    "excitation_backprop": {"stabilizer": STABILIZER},
    "deconvnet": {},
    "guided_backprop": {},
}
"""Preset -> its numbers, for zennit and for the decoder."""


def densenet_pairs(net: nn.Module) -> list[tuple[list[str], str]]:
    """The BatchNorms of a DenseNet that directly follow a convolution."""
    layers = [name for name, _ in net.named_modules() if name.split(".")[-1].startswith("denselayer")]
    return [(["features.conv0"], "features.norm0"), *(([f"{n}.conv1"], f"{n}.norm2") for n in layers)]


def densenet_modules(name: str, module: nn.Module) -> dict[str, Any] | None:
    """The last ReLU and pool of a DenseNet, which its forward calls as functions, as modules."""
    if not isinstance(module, DenseNet):
        return None

    def forward(x: Tensor) -> Tensor:
        pooled: Tensor = module.canonizer_pool(module.canonizer_relu(module.features(x)))
        return module.classifier(pooled.flatten(1))

    return {"forward": forward, "canonizer_relu": nn.ReLU(), "canonizer_pool": nn.AdaptiveAvgPool2d(1)}


def canonizers(net: nn.Module, name: str) -> tuple[list[Canonizer], list[str]]:
    """zennit's canonizers for a net, and the BatchNorms that they merge."""
    if name.startswith("densenet"):
        pairs = densenet_pairs(net)
        merged = [norm for _, norm in pairs]
        found: list[Canonizer] = [NamedMergeBatchNorm(pairs), AttributeCanonizer(densenet_modules)]
    else:
        merged = [path for path, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
        found = [ResNetCanonizer() if name.startswith("resnet") else VGGCanonizer()]
    skip = AttributeCanonizer(lambda path, _: {"forward": lambda x: x} if path in merged else None)
    return [*found, skip], merged


def zennit_composite(composite: str) -> Composite:
    if composite in FIRST:
        layers = [
            (Activation, Pass()),
            (Sum, Norm(stabilizer=1e-300)),
            (AvgPool, Epsilon(EPSILON)),
            (BatchNorm, Epsilon(EPSILON)),
            (Convolution, Epsilon(EPSILON)),
            (Linear, Epsilon(EPSILON)),
        ]
        return SpecialFirstLayerMapComposite(layers, [(Convolution, FIRST[composite])])
    numbers = {key: bounds(v) if isinstance(v, tuple) else v for key, v in NUMBERS[composite].items()}
    gradient = composite in ("deconvnet", "guided_backprop")
    return COMPOSITES[composite](layer_map=[] if gradient else [(BatchNorm, Epsilon(STABILIZER))], **numbers)


def zennit_heatmap(net: nn.Module, name: str, composite: str, images: Tensor) -> Tensor:
    steps, merged = canonizers(net, name)
    rules = MixedComposite([NameMapComposite([(merged, Pass())]), zennit_composite(composite)], canonizers=steps)
    with Gradient(model=copy.deepcopy(net), composite=rules) as attribute:
        seed = torch.eye(3, dtype=torch.float64)[[TARGET] * len(images)]
        gradient = composite in ("deconvnet", "guided_backprop")
        _, relevance = attribute(images.clone(), lambda output: seed if gradient else output * seed)
    return relevance.sum(1)


@cache
def example(name: str) -> tuple[nn.Module, Tensor]:
    return nets.create(name), nets.images(name, samples=1)


SOME_COMPOSITES = {
    "vgg11": ("epsilon", "epsilon_alpha2_beta1_flat"),
    "vgg11_bn": ("epsilon_wsquare", "epsilon_gamma_box", "guided_backprop"),
    "densenet121": ("epsilon", "epsilon_alpha2_beta1", "excitation_backprop", "deconvnet"),
    "resnet50": ("epsilon_plus_flat",),
}
"""Each a kind of rule for BatchNorm, sums and concatenations that other nets have, or have in another order."""
CASES = [
    *(("resnet18", composite) for composite in NUMBERS),
    *((name, composite) for name, composites in SOME_COMPOSITES.items() for composite in composites),
]


@pytest.mark.parametrize(("name", "composite"), CASES)
def test_composites(name: str, composite: str) -> None:
    net, images = example(name)
    decoder = HeatmapDecoder(net, composite, composite_kwargs=NUMBERS[composite])
    with torch.no_grad():
        found = decoder(images, [TARGET]).heatmaps[:, 0]
    expected = zennit_heatmap(net, name, composite, images).detach()
    deviation = float((found - expected).abs().max() / expected.abs().max())
    assert deviation < 1e-9
