"""RefiningNet: a small network, the same for every class, that corrects mask logits by the parts of relevance."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.arguments import check_counts
from tw_seg.resize import resize_maps

PROJECTIONS = 8
"""Weighted sums over the channels of relevance that the net sees of each read-out, beside the heatmap."""


class RefiningNet(nn.Module):
    """Computes a correction of the mask logits of one class from the relevance of that class and the image.

    A decoder of 3x3 convolutions that goes from the read-out next to the logits to the one next to the images: at
    each it adds what the maps there say to what it knows, brought to their size, and takes the ReLU. At the last the
    image is added too; two more convolutions make the correction. Classes are folded into the batch: no weight belongs
    to a class, so a class that never had a mask is refined too. There is no normalisation: a pair depends on no other,
    and maps of a class that is not in the image stay small. The last layer starts at 0, and so does the correction.

    Args:
        depths: Number of read-outs D.
        in_channels: Channels of the images.
        channels: Channels inside.
        maps: Maps M of each read-out.

    Shapes:
        D times maps (S, K', M, h_d, w_d), images (N, C, H, W) -> correction (S, K', h, w) of the size of the last maps.

    Raises:
        InputError: If ``channels`` is no positive number.

    Examples:
        >>> import torch
        >>> net = RefiningNet(depths=2, in_channels=3, channels=16, maps=9)
        >>> maps = torch.randn(4, 5, 9, 8, 8), torch.randn(4, 5, 9, 32, 32)
        >>> correction = net(maps, torch.rand(4, 3, 64, 64))
        >>> correction.shape, bool(correction.any())
        (torch.Size([4, 5, 32, 32]), False)
    """

    def __init__(self, depths: int, in_channels: int, channels: int, *, maps: int = PROJECTIONS + 1) -> None:
        super().__init__()
        check_counts(1, refine=channels)
        self.maps = nn.ModuleList(nn.Conv2d(maps, channels, 3, padding=1) for _ in range(depths))
        self.known = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(depths - 1))
        self.image = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, 1, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Sequence[Tensor], images: Tensor, samples: Tensor | None = None) -> Tensor:
        """Correct the mask logits of some classes of some images.

        Args:
            maps: Those of each read-out (S, K', M, h_d, w_d), from the logits to the images; heavy tails compressed.
            images: Shape (N, C, H, W), normalised.
            samples: The image of each row of the maps, int64 (S,), where that is not the row itself.

        Returns:
            What is to be added to the mask logits, (S, K', h, w), of the type of the maps.
        """
        pairs, size = maps[-1].shape[:2], maps[-1].shape[3:]
        image = self.image(F.interpolate(images, size=size, mode="area"))
        image = image if samples is None else image.index_select(0, samples)
        # In place: no convolution keeps its output.
        x = self.maps[0](maps[0].flatten(0, 1))
        for one, layer, known in zip(maps[1:], self.maps[1:], self.known, strict=True):
            x = layer(one.flatten(0, 1)).add_(known(resize_maps(x.relu_(), one.shape[3:])))
        x = x.unflatten(0, pairs).add_(image[:, None]).flatten(0, 1).relu_()
        x = self.inner(x).relu_()
        return self.last(x).unflatten(0, pairs)[:, :, 0].to(maps[-1].dtype)
