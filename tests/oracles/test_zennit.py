"""Composites equal zennit's, in value, on copies of ResNet, VGG and a small net.

Conventions that have to be matched for that:

* zennit's canonizers merge a BatchNorm into the convolution before it, as the decoder does on the tape. They
  change the model: zennit works on a copy. They leave an identity with the BatchNorm's ``eps`` behind, which
  divides by ``sqrt(1 + eps)``: here ``eps`` is 0.
* zennit gives sums and average pools its ``Norm`` rule, an epsilon rule with a stabiliser of its own. Here a sum
  hands its coefficient on as it is, and pools follow the composite's rule: so sums get a ``Norm`` with a
  stabiliser next to nothing, average pools zennit's ``Epsilon``.
* zennit's ``WSquare`` and ``Flat`` count the bias among the squared weights unless told otherwise; here biases
  take no part in an input rule.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from zennit.attribution import Gradient
from zennit.composites import SpecialFirstLayerMapComposite
from zennit.layer import Sum
from zennit.rules import Epsilon, Flat, Norm, Pass, WSquare, ZBox
from zennit.torchvision import ResNetCanonizer, VGGCanonizer
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

from tests.oracles import nets
from tw_seg.lrp import HeatmapDecoder

LOW, HIGH = (-4.0, -4.5, -5.0), (4.0, 4.5, 5.0)
CANONIZERS = {"resnet18": ResNetCanonizer, "resnet50": ResNetCanonizer}


def bounds(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 3, 1, 1)


FIRST = {
    "epsilon": lambda epsilon: Epsilon(epsilon),
    "epsilon_flat": lambda _: Flat(1e-6),
    "epsilon_wsquare": lambda _: WSquare(1e-6, zero_params=["bias"]),
    "epsilon_box": lambda _: ZBox(bounds(LOW), bounds(HIGH), 1e-6),
}
NUMBERS = {"epsilon_box": {"low": LOW, "high": HIGH}}


def zennit_heatmap(net: nn.Module, name: str, composite: str, epsilon: float, images: Tensor, k: int) -> Tensor:
    layers = [
        (Activation, Pass()),
        (Sum, Norm(stabilizer=1e-300)),
        (AvgPool, Epsilon(epsilon)),
        (BatchNorm, Pass()),
        (Convolution, Epsilon(epsilon)),
        (Linear, Epsilon(epsilon)),
    ]
    first = [(Convolution, FIRST[composite](epsilon))]
    canonizer = CANONIZERS.get(name, VGGCanonizer)()
    rules = SpecialFirstLayerMapComposite(layers, first, canonizers=[canonizer])
    with Gradient(model=copy.deepcopy(net), composite=rules) as attribute:
        seed = torch.eye(3, dtype=torch.float64)[[k] * len(images)]
        _, relevance = attribute(images.clone(), lambda output: output * seed)
    return relevance.sum(1)


def _takes_zero_eps() -> bool:
    """Whether torch runs the BatchNorm with eps = 0 that zennit's canonizers leave behind; 2.11 does not."""
    try:
        torch.nn.functional.batch_norm(torch.ones(2, 1), torch.zeros(1), torch.ones(1), eps=0.0)
    except ValueError:
        return False
    return True


@pytest.mark.skipif(not _takes_zero_eps(), reason="this torch refuses the BatchNorm eps of 0 that zennit sets")
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11", "vgg11_bn"])
@pytest.mark.parametrize("composite", FIRST)
def test_composites(name: str, composite: str) -> None:
    net, images, epsilon = nets.create(name), nets.images(name), 1e-2
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eps = 0.0
    decoder = HeatmapDecoder(net, composite, composite_kwargs={"epsilon": epsilon, **NUMBERS.get(composite, {})})
    found = decoder(images, [1]).heatmaps[:, 0].detach()
    expected = zennit_heatmap(net, name, composite, epsilon, images, 1).detach()
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-9
