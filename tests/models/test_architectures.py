"""Classifiers of torchvision and timm as heatmap segmenters, random weights: decoded and trained one step.

Sizes are as small as the architecture takes, and large enough for the statistics of BatchNorm: with two values a
channel, decoding through the statistics of the batch explodes. ``docs/support.md`` has more families, at the size
that they were made for; ResNet-50 and VGG without BatchNorm are trained in ``tests/oracles``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

from tests.oracles.nets import initialise
from tw_seg.models.segmenter import HeatmapSegmenter

CLASSES = 3


NARROW = {"alexnet", "vgg11_bn", "vit_b_16", "swin_t", "swin_v2_t"}


def narrow(in_channels: int, num_classes: int, name: str) -> nn.Module:
    """AlexNet, VGG and transformers of the same layers, less wide and fewer of the same kind: seconds less each."""
    if name == "vit_b_16":
        return VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48, num_classes=num_classes)
    if name == "swin_t":
        return SwinTransformer([4, 4], 24, [2, 2], [1, 2], [7, 7], num_classes=num_classes)
    if name == "swin_v2_t":
        parts = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
        return SwinTransformer([4, 4], 24, [2, 2], [1, 2], [8, 8], num_classes=num_classes, **parts)
    with torch.device("meta"):
        net = torchvision.models.get_model(name, num_classes=num_classes)
        linear = [(key, layer) for key, layer in net.classifier.named_children() if isinstance(layer, nn.Linear)]
        inputs = linear[0][1].in_features
        for key, layer in linear:
            outputs = num_classes if layer.out_features == num_classes else 64
            net.classifier[int(key)] = nn.Linear(inputs, outputs)
            inputs = outputs
    return initialise(net.to_empty(device="cpu"))


ARCHITECTURES: list[tuple[str, int, dict[str, Any]]] = [
    ("alexnet", 64, {}),
    ("vgg11_bn", 32, {}),
    ("resnet18", 33, {}),
    ("resnext50_32x4d", 32, {}),
    ("densenet121", 32, {}),
    ("squeezenet1_1", 40, {}),
    ("mobilenet_v2", 32, {}),
    ("mobilenet_v3_small", 32, {}),
    ("efficientnet_b0", 32, {}),
    ("efficientnet_v2_s", 32, {}),
    ("convnext_tiny", 32, {}),
    ("regnet_x_400mf", 96, {}),
    ("regnet_y_400mf", 96, {}),
    ("shufflenet_v2_x0_5", 32, {}),
    ("googlenet", 32, {"init_weights": False}),
    ("inception_v3", 80, {"init_weights": False}),
    ("mnasnet0_5", 32, {}),
    ("vit_b_16", 32, {}),
    ("swin_t", 48, {}),
    ("swin_v2_t", 48, {}),
]


def create(name: str, size: int, kwargs: dict[str, Any]) -> tuple[HeatmapSegmenter, Tensor]:
    torch.manual_seed(0)
    at_once = {"image_size": (size, size)}  # nothing is traced at a size that is not decoded
    if name in NARROW:
        name, kwargs = f"{__name__}:narrow", {"name": name}
    segmenter = HeatmapSegmenter(name, classes=CLASSES, encoder_kwargs=kwargs, decoder_kwargs=at_once)
    with torch.no_grad():
        for parameter in segmenter.classifier.parameters():
            if not parameter.any():  # heads that start at zero have no heatmap
                parameter.normal_(std=0.02)
    return segmenter, torch.randn(2, 3, size, size)


@pytest.mark.parametrize(("name", "size", "kwargs"), ARCHITECTURES, ids=[name for name, *_ in ARCHITECTURES])
def test_decodes_and_trains(name: str, size: int, kwargs: dict[str, Any], quick_init: None) -> None:
    segmenter, images = create(name, size, kwargs)
    decodes(segmenter.eval(), images)
    trains(segmenter.train(), images)


def decodes(segmenter: HeatmapSegmenter, images: Tensor) -> None:
    """Finite masks of every class; the logits are the classifier's own; a choice of rows and classes is the slice."""
    state = {key: value.clone() for key, value in segmenter.state_dict().items()}
    seed = torch.random.get_rng_state()
    with torch.no_grad():
        whole = segmenter(images)
        some = segmenter(images, classes=[2, 0], samples=torch.tensor([1]))
        logits = segmenter.classifier(images)
    assert whole.mask_logits.shape == (2, CLASSES, *images.shape[2:])
    assert whole.mask_logits.isfinite().all() and whole.mask_logits.abs().sum() > 0
    torch.testing.assert_close(whole.logits, logits, rtol=1e-4, atol=1e-5)
    scale = float(whole.mask_logits.abs().max())
    torch.testing.assert_close(some.mask_logits, whole.mask_logits[1:, [2, 0]], rtol=1e-4, atol=1e-4 * scale)
    assert all(torch.equal(value, state[key]) for key, value in segmenter.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), seed)


def trains(segmenter: HeatmapSegmenter, images: Tensor) -> None:
    """A step on masks and labels reaches the first weight, and the loss of the next one is another."""
    optimizer = torch.optim.SGD(segmenter.parameters(), lr=1e-3)
    output = segmenter(images, samples=torch.tensor([0]))
    masks, labels = torch.zeros(1, *images.shape[2:], dtype=torch.int64), torch.tensor([0, 1])
    loss = nn.functional.cross_entropy(output.mask_logits, masks) + nn.functional.cross_entropy(output.logits, labels)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in segmenter.parameters())
    first = next(m for m in segmenter.classifier.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert first.weight.grad is not None and first.weight.grad.abs().sum() > 0
    before = first.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(first.weight, before)
