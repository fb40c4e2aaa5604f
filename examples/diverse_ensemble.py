"""An ensemble whose members look at different things: a penalty on the likeness of their heatmaps.

Each image shows its class twice, on the left and on the right. Two classifiers trained alone look at the same places;
with the penalty they do not.

    python examples/diverse_ensemble.py
"""

import torch
import torch.nn.functional as F
from torch import nn

from tw_seg import HeatmapDecoder


def create_decoder() -> HeatmapDecoder:
    """A small classifier that knows where things are."""
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 4, 1), nn.ReLU(), nn.Flatten())
    return HeatmapDecoder(nn.Sequential(*layers, nn.Linear(8 * 6 * 6, 2)))


def train(weight: float) -> float:
    """Likeness (cosine) of the two members' heatmaps after training with a penalty of this weight."""
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    images = torch.rand(64, 3, 24, 24) * 0.3
    for image, label in zip(images, labels, strict=True):
        image[label, 8:16, 2:8] += 0.6
        image[label, 8:16, 16:22] += 0.6
    members = nn.ModuleList([create_decoder(), create_decoder()])
    optimizer = torch.optim.Adam(members.parameters(), lr=3e-3)
    for _ in range(120):
        tapes = [member.record(images) for member in members]
        rows = torch.arange(len(images))
        maps = [m.decode_pairs(tape, rows, labels).heatmaps.flatten(1) for m, tape in zip(members, tapes, strict=True)]
        likeness = F.cosine_similarity(maps[0].abs(), maps[1].abs()).mean()
        loss = sum(F.cross_entropy(tape.logits, labels) for tape in tapes) + weight * likeness
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    correct = min((tape.logits.argmax(1) == labels).float().mean().item() for tape in tapes)
    assert correct == 1.0, correct
    return likeness.item()


if __name__ == "__main__":
    print(f"likeness of the heatmaps without the penalty {train(0.0):.2f}, with it {train(1.0):.2f}")
