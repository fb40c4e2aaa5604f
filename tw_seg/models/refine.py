"""RefiningNet: a small network, the same for every class, that corrects mask logits by looking at the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tw_seg.arguments import check_counts
from tw_seg.resize import resize_maps


class RefiningNet(nn.Module):
    """Computes a correction of the mask logits of one class from that class' maps and the image.

    Three 3x3 convolutions with ReLUs between them, at the size of the largest map. Classes are folded into the batch:
    no weight belongs to a class, so a class that never had a mask is refined too. There is no normalisation: a pair
    depends on no other, and maps of a class that is not in the image stay small. The last layer starts at 0, and so
    does the correction.

    The first convolution is one of the image's channels and the D maps together, computed in two parts that are added
    before the ReLU: that of an image once, that of the maps for each class.

    Args:
        depths: Number of maps D of each class.
        in_channels: Channels of the images.
        channels: Channels inside.

    Shapes:
        D maps (S, K', h_d, w_d), images (S, C, H, W) -> correction (S, K', h, w), (h, w) of the largest map.

    Raises:
        InputError: If ``channels`` is no positive number.

    Example:
        >>> net = RefiningNet(depths=2, in_channels=3, channels=16)
        >>> maps = torch.randn(4, 5, 32, 32), torch.randn(4, 5, 8, 8)
        >>> correction = net(maps, torch.rand(4, 3, 64, 64))
        >>> correction.shape, bool(correction.any())
        (torch.Size([4, 5, 32, 32]), False)
    """

    def __init__(self, depths: int, in_channels: int, channels: int) -> None:
        super().__init__()
        check_counts(1, refine=channels)
        self.maps = nn.Conv2d(depths, channels, 3, padding=1, bias=False)
        self.image = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.inner = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, 1, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Sequence[Tensor], images: Tensor, samples: Tensor | None = None) -> Tensor:
        """Correct the mask logits of some classes of some images.

        Args:
            maps: For each read-out its maps (S, K', h_d, w_d), in units of mask logits; heavy tails compressed.
            images: Shape (N, C, H, W), normalised.
            samples: The image of each row of the maps, int64 (S,), where that is not the row itself.

        Returns:
            What is to be added to the mask logits, (S, K', h, w), of the type of the maps.
        """
        largest = maps[0]
        for one in maps[1:]:  # max(..., key=...) does not compile where sizes vary
            if one.shape[2] * one.shape[3] > largest.shape[2] * largest.shape[3]:
                largest = one
        size = largest.shape[2:]
        image = self.image(F.interpolate(images, size=size, mode="area"))
        image = image if samples is None else image.index_select(0, samples)
        folded = torch.stack([resize_maps(one, size) for one in maps], 2).flatten(0, 1)
        # In place: no convolution keeps its output.
        x = self.maps(folded).unflatten(0, largest.shape[:2]).add_(image[:, None]).flatten(0, 1).relu_()
        x = self.inner(x).relu_()
        return self.last(x).unflatten(0, largest.shape[:2])[:, :, 0].to(largest.dtype)
