"""Features of what a model returned: of the mask logits, the image-level logits and the relevance, without another run.

Each feature is a number for each image, float (N,). Those of a mask's classes are means over the object classes that it
shows, and NaN where it shows none.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from tw_seg.explain.model import probabilities
from tw_seg.explain.pairs import Pairs, dice
from tw_seg.explain.reliability.masks import predict_mask
from tw_seg.explain.scores import energy_inside
from tw_seg.types import BACKGROUND

MASK_FEATURES = (
    "max_probability",  # largest probability of a pixel, mean over all pixels: "maximum softmax"
    "entropy",  # of a pixel's probabilities, 1 if all are equal; mean over all pixels
    "object_max_probability",  # the same two over the pixels of objects
    "object_entropy",
    "soft_dice",  # Dice of the mask and the probabilities
    "empty",  # 1 if the mask shows no object
    "area",  # share of the pixels that are an object's
    "compactness",  # of a class's region, see `measure_compactness`
    "largest_part",  # share of a class's region that is connected
)
IMAGE_LEVEL_FEATURES = (
    "shown_probability",  # smallest image-level probability of a class that the mask shows
    "hidden_probability",  # largest one of a class that it does not show
)
RELEVANCE_FEATURES = ("relevance_inside",)  # share of a class's positive relevance that lies in its region


def measure_mask(mask_logits: Tensor, pairs: Pairs) -> dict[str, Tensor]:
    """The features of mask logits.

    Args:
        mask_logits: Shape (N, K, H, W), finite.
        pairs: The classes that the masks show, see `tw_seg.explain.pairs.find_pairs`.

    Returns:
        A tensor (N,) for each name in `MASK_FEATURES`.
    """
    count = len(mask_logits)
    chances = probabilities(mask_logits)
    whole = torch.cat([1 - chances, chances], 1) if chances.shape[1] == 1 else chances
    largest = whole.amax(1)
    entropy = torch.special.entr(whole).sum(1) / math.log(whole.shape[1])
    objects = predict_mask(mask_logits) != BACKGROUND
    pixels = objects.sum((1, 2))
    compactness, largest_part = measure_compactness(pairs.predictions), measure_largest_part(pairs.predictions)
    found = dice(chances[pairs.samples, pairs.classes], pairs.predictions)
    features = (
        largest.mean((1, 2)),
        entropy.mean((1, 2)),
        (largest * objects).sum((1, 2)) / pixels,  # 0 / 0 is NaN
        (entropy * objects).sum((1, 2)) / pixels,
        average_pairs(found, pairs.samples, count),
        (pixels == 0).to(largest),
        objects.to(largest).mean((1, 2)),
        average_pairs(compactness, pairs.samples, count),
        average_pairs(largest_part, pairs.samples, count),
    )
    return dict(zip(MASK_FEATURES, features, strict=True))


def measure_image_level(logits: Tensor, pairs: Pairs) -> dict[str, Tensor]:
    """How far the image-level probabilities agree with the masks.

    Args:
        logits: Image-level logits, shape (N, K).
        pairs: The classes that the masks show.

    Returns:
        A tensor (N,) for each name in `IMAGE_LEVEL_FEATURES`; the second is 0 where every class is shown.
    """
    chances = logits.sigmoid()
    shown = torch.zeros_like(chances, dtype=torch.bool)
    shown[pairs.samples, pairs.classes] = True
    hidden = ~shown
    if chances.shape[1] > 1:
        hidden[:, BACKGROUND] = False
    least = chances.masked_fill(~shown, torch.inf).amin(1)
    features = least.masked_fill(~shown.any(1), torch.nan), chances.masked_fill(~hidden, 0).amax(1)
    return dict(zip(IMAGE_LEVEL_FEATURES, features, strict=True))


def measure_relevance(relevance: Tensor, pairs: Pairs) -> dict[str, Tensor]:
    """Where the relevance of a class lies that the mask shows.

    Args:
        relevance: Heatmaps of all classes, signed, shape (N, K, H, W).
        pairs: The classes that the masks show.

    Returns:
        A tensor (N,) for each name in `RELEVANCE_FEATURES`; a class without positive relevance counts as 0.
    """
    inside = energy_inside(relevance[pairs.samples, pairs.classes], pairs.predictions).nan_to_num(0.0)
    return {RELEVANCE_FEATURES[0]: average_pairs(inside, pairs.samples, len(relevance))}


def average_pairs(values: Tensor, samples: Tensor, count: int) -> Tensor:
    """Means over the pairs of each image.

    Args:
        values: A number for each pair, shape (P,).
        samples: The row of its image, int64 (P,).
        count: Number N of images.

    Returns:
        Shape (N,), NaN for an image without a pair.

    Examples:
        >>> average_pairs(torch.tensor([1.0, 2.0]), torch.tensor([1, 1]), 2)
        tensor([   nan, 1.5000])
    """
    sums = values.new_zeros(count).index_add_(0, samples, values)
    return sums / torch.bincount(samples, minlength=count)


def measure_compactness(regions: Tensor) -> Tensor:
    """16 x area / perimeter^2: 1 for a square, less for any other region of pixels; 0 for an empty one.

    The perimeter counts sides of pixels, those at the border of the image too.

    Args:
        regions: Bool, shape (P, H, W).

    Returns:
        Shape (P,), in [0, 1].

    Examples:
        >>> measure_compactness(torch.tensor([[[True, True], [True, True]], [[True, True], [False, False]]]))
        tensor([1.0000, 0.8889])
    """
    padded = torch.nn.functional.pad(regions.float(), (1, 1, 1, 1))
    perimeter = sum(padded.diff(dim=axis).abs().sum((1, 2)) for axis in (1, 2))
    return 16 * padded.sum((1, 2)) / torch.as_tensor(perimeter).square().clamp_min(1)


def measure_largest_part(regions: Tensor) -> Tensor:
    """Share of a region that its largest part holds; parts are connected by sides and corners.

    Args:
        regions: Bool, shape (P, H, W).

    Returns:
        Shape (P,), in [0, 1]; 0 for an empty region.

    Examples:
        >>> measure_largest_part(torch.tensor([[[True, False, True, True]]]))
        tensor([0.6667])
    """
    shares = []
    for region in regions.cpu().numpy():
        parts, _ = ndimage.label(region, structure=np.ones((3, 3)))
        sizes = np.bincount(parts[region], minlength=1)
        shares.append(sizes.max() / max(1, sizes.sum()))
    return torch.tensor(shares, dtype=torch.float32, device=regions.device)
