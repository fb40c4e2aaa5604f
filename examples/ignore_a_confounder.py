"""Right for the right reasons: a classifier that must not look at a watermark, though it gives the answer away.

In training every image of class 1 has a white patch in its corner; later any image may have one. A penalty on the
relevance in the corner makes the classifier look at the colour of the square instead.

    python examples/ignore_a_confounder.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg import HeatmapDecoder

CORNER = slice(0, 6)


def draw(count: int, *, confounded: bool) -> tuple[Tensor, Tensor]:
    """Images with a square that is a little more red (class 0) or green (class 1), and perhaps a patch."""
    images, labels = torch.rand(count, 3, 24, 24) * 0.3, torch.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        image[label, 12:20, 10:18] += 0.4
        if label if confounded else torch.rand(()) < 0.5:
            image[:, CORNER, CORNER] = 1.0
    return images, labels


def train(weight: float) -> float:
    """Accuracy on images whose patch says nothing, after training with a penalty of this weight."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())
    classifier = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(12, 2))
    decoder = HeatmapDecoder(classifier)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    images, labels = draw(64, confounded=True)
    for _ in range(150):
        logits, heatmaps, _ = decoder(images)
        loss = F.cross_entropy(logits, labels) + weight * heatmaps[..., CORNER, CORNER].square().sum((1, 2, 3)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels = draw(200, confounded=False)
    return (classifier(images).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    print(f"accuracy without the penalty {train(0.0):.2f}, with it {train(1.0):.2f}")
