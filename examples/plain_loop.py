"""A loss on heatmaps in a plain PyTorch loop: four masks teach a classifier where its object is.

python examples/plain_loop.py
"""

import torch
import torch.nn.functional as F
from torch import nn

from tw_seg import HeatmapDecoder

torch.manual_seed(0)
images, masks, labels = torch.rand(16, 3, 32, 32), torch.zeros(16, 32, 32), torch.arange(16) % 2
for image, mask, label in zip(images, masks, labels, strict=True):  # a red or a green square somewhere
    y, x = torch.randint(0, 24, (2,)).tolist()
    image[label, y : y + 8, x : x + 8] += 0.5
    mask[y : y + 8, x : x + 8] = 1.0

classifier = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2),
)  # fmt: skip
decoder = HeatmapDecoder(classifier, read_out="3")
optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
for step in range(101):
    tape = decoder.record(images)
    # One heatmap for each of the four images with a mask: that of its class.
    heatmaps = decoder.decode_pairs(tape, torch.arange(4), labels[:4]).heatmaps[:, 0]
    guide = F.binary_cross_entropy_with_logits(heatmaps * heatmaps[0].numel() - 1, masks[:4])
    loss = F.cross_entropy(tape.logits, labels) + guide
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        with torch.no_grad():
            relevance = decoder.decode_pairs(decoder.record(images), torch.arange(16), labels).heatmaps[:, 0].relu()
        inside = (relevance * masks).sum((1, 2)) / relevance.sum((1, 2)).clamp(min=1e-9)
        print(f"step {step}: loss {loss:.3f}, relevance inside of the objects without a mask {inside[4:].mean():.2f}")
