"""Small and standard classifiers in float64, with biases and BatchNorm statistics that are not trivial."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

DYNAMIC_BATCH = torch.__version__ >= (2, 12)
"""torch 2.11 cannot simplify the strides of a BatchNorm's output in a dynamic batch: it exports for one batch size."""

NAMES = ("resnet18", "resnet50", "vgg11", "vgg11_bn", "resnet10t")
SIZES = {name: (35, 33) if name.startswith("vgg") else (33, 35) for name in NAMES}


def create(name: str, classes: int = 3) -> nn.Module:
    """A torchvision or timm classifier in evaluation mode, float64, random but reproducible."""
    with torch.device("meta"):
        if name == "resnet10t":
            net = timm.create_model(name, num_classes=classes)
        else:
            net = getattr(torchvision.models, name)(num_classes=classes)
        if name.startswith("vgg"):  # the same layers, 16 units wide instead of 4096: 1 GB less
            net.classifier[0] = nn.Linear(512 * 7 * 7, 16)
            net.classifier[3] = nn.Linear(16, 16)
            net.classifier[6] = nn.Linear(16, classes)
    return initialise(net.double().to_empty(device="cpu")).eval()


def initialise(net: nn.Module, seed: int = 0) -> nn.Module:
    """He-normal weights, normal biases, BatchNorm statistics and weights away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
                std = (2 / module.weight[0].numel()) ** 0.5
                module.weight.normal_(0, std, generator=generator)
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                if module.running_mean is not None:
                    module.running_mean.normal_(0, 0.3, generator=generator)
                    module.running_var.uniform_(0.5, 2, generator=generator)
                    module.num_batches_tracked.zero_()
                if module.weight is not None:
                    module.weight.uniform_(0.5, 1.5, generator=generator)
            if isinstance(getattr(module, "bias", None), nn.Parameter):
                module.bias.normal_(0, 0.2, generator=generator)
    return net


def images(name: str, samples: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 3, *SIZES.get(name, (33, 35)), generator=generator, dtype=torch.float64)


class Tiny(nn.Module):
    """Everything that matters once: BatchNorm, a skip connection, overlapping max pool, concat, pools, dropout."""

    def __init__(self, classes: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 2, 1)
        self.fc = nn.Linear(6, classes)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        y = self.bn2(self.conv2(x))
        y += x
        y = F.relu(y, inplace=True)
        y = torch.cat([y, self.conv3(y)], 1)
        y = F.dropout(y, self.dropout, self.training)
        # Without count_include_pad: torch's inductor has the gradient wrong with it (pytorch issue 198119).
        y = F.avg_pool2d(y, 2, ceil_mode=True, count_include_pad=False)
        return self.fc(y.mean([2, 3]))


def tiny(**kwargs: Any) -> Tiny:
    net = initialise(Tiny(**kwargs)).double().eval()
    return net


class Calls(nn.Module):
    """A classifier out of a function of (self, images) -> (N, C, h, w) and the modules it uses."""

    def __init__(self, function: Any, channels: int = 4, **modules: Any) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)
        self.fc = nn.Linear(channels, 3)
        initialise(self).double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.function(self, x).mean((2, 3)))


def conv(inputs: int = 3, outputs: int = 4, **kwargs: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **kwargs)
