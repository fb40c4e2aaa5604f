"""A trained model as one module that takes pictures and returns masks: what is written to files for other programs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tw_seg.arguments import image_size
from tw_seg.errors import InputError
from tw_seg.models.base import SegModel
from tw_seg.models.gated import get_rejected_logit
from tw_seg.types import BACKGROUND, Normalization


class Deployed(nn.Module):
    """Everything from the pixels of files to masks: resize, normalisation, model, gate, argmax at their own size.

    Args:
        model: The trained model; it is put into evaluation mode.
        size: Height and width of what the model sees.
        normalization: How its images are normalised.
        gate: Image-level probability below which an object class is in no mask; 0: none.
        value_range: The values of a pixel that became 0 and 1 in training; ``None``: images have 8 bits.

    Shapes:
        images (N, H, W, C) of any size, uint8, or float32 with a ``value_range``; RGB if C is 3 -> masks, uint8
        (N, H, W), class ids; probabilities (N, K), and mask logits (N, K, h, w) at ``size``. A model without masks
        returns probabilities alone.

    Raises:
        InputError: The model cannot be exported, the numbers of channels differ, or ``gate`` is no probability.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: SegModel,
        size: int | Sequence[int],
        *,
        normalization: Normalization,
        gate: float = 0.0,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if not model.can_export:
            raise InputError(
                f"{type(model).__name__} decodes only what passes a gate and differentiates inside its forward, so it "
                "cannot be exported: write its masks with `tw-seg predict`, or train a model on them"
            )
        if model.in_channels != len(normalization.mean):
            raise InputError(
                f"the model takes {model.in_channels} channels, the normalisation is of {len(normalization.mean)}: "
                "give that of its training"
            )
        if not 0 <= gate <= 1:
            raise InputError(f"gate must be a probability in [0, 1], got {gate}")
        self.model = model.eval()
        self.size = image_size(size)
        self.gate = gate
        self.value_range = value_range
        self.register_buffer("mean", 255 * torch.tensor(normalization.mean)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(normalization.std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        height, width = images.shape[1:3]
        output = self.model(self.prepare(images))
        probabilities = output.logits.sigmoid()
        if not self.model.makes_masks:
            return (probabilities,)
        maps = output.mask_logits
        if self.gate > 0:
            # As `select_classes` does, without its assignment to a row of booleans: onnxruntime has no such operation.
            objects = torch.arange(self.model.num_classes, device=maps.device) != BACKGROUND
            rejected = (output.logits.double().sigmoid() < self.gate) & objects
            maps = maps.masked_fill(rejected[..., None, None], get_rejected_logit(maps.dtype))
        # Not by `resize_logits`, which asks whether there is something to resize: an exported graph has no such branch.
        whole = F.interpolate(maps.float(), size=(height, width), mode="bilinear", align_corners=False)
        masks = whole.argmax(1).to(torch.uint8)
        return masks, probabilities, maps

    def make_example(self, *size: int) -> Tensor:
        """Pictures of zeros, of a size (N, H, W)."""
        dtype = torch.uint8 if self.value_range is None else torch.float32
        return torch.zeros((*size, self.model.in_channels), dtype=dtype, device=self.mean.device)

    def prepare(self, images: Tensor) -> Tensor:
        """What the model sees of pictures (N, H, W, C): (N, C, h, w), normalised."""
        height, width = images.shape[1:3]
        pixels = images.permute(0, 3, 1, 2).to(self.mean.dtype)
        rows, columns = (
            make_resize_matrix(old, new, like=self.mean) for old, new in zip((height, width), self.size, strict=True)
        )
        if self.value_range is not None:
            low, high = self.value_range
            pixels = 255 * ((pixels - low) / (high - low)).clamp(0, 1)
        pixels = rows @ pixels @ columns.T
        if self.value_range is None:
            pixels = pixels.round()  # 8-bit again, as in training
        return (pixels - self.mean) / self.std


def make_resize_matrix(old: int, new: int, *, like: Tensor) -> Tensor:
    """The matrix that resizes an axis: the mean over each new pixel's area, or linear interpolation to enlarge.

    Made by operations alone, so that ``old`` may be known only when an exported file runs.

    Args:
        old: Pixels that there are.
        new: Pixels that are wanted.
        like: Gives type and device.

    Returns:
        Shape (new, old); each row sums to 1.

    Examples:
        >>> make_resize_matrix(4, 2, like=torch.zeros(1))
        tensor([[0.5000, 0.5000, 0.0000, 0.0000],
                [0.0000, 0.0000, 0.5000, 0.5000]])
    """
    pixel = torch.arange(old, dtype=like.dtype, device=like.device)[None]
    last = pixel[:, -1:]
    place = torch.arange(new, dtype=like.dtype, device=like.device)[:, None]
    step = old / new
    start, end = place * step, (place + 1) * step
    area = (torch.minimum(end, pixel + 1) - torch.maximum(start, pixel)).clamp(min=0)
    middle = ((place + 0.5) * step - 0.5).clamp(min=0)
    middle = torch.minimum(middle, last)
    linear = (1 - (middle - pixel).abs()).clamp(min=0)
    weights = torch.where(last + 1 >= new, area, linear)
    return weights / weights.sum(1, keepdim=True)
