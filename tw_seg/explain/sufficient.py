"""Whether a region is enough for a model to return its mask, and how far a mask must be dilated for that."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import distance_transform_cdt
from torch import Tensor

from tw_seg.explain.hiding import show_regions
from tw_seg.explain.model import ExplainedModel, predict_class
from tw_seg.explain.pairs import Pairs, dice


class SufficientRegions(NamedTuple):
    """A dilated mask for each of P pairs.

    Attributes:
        regions: Bool, shape (P, H, W).
        radii: By how many pixels the predicted mask was dilated, diagonal steps included, int64 (P,).
        dice: Dice of the predicted mask and what the model returns when shown the region only, (P,).
        sufficient: Whether that is enough, bool (P,); false only where the largest allowed radius is not enough.
    """

    regions: Tensor
    radii: Tensor
    dice: Tensor
    sufficient: Tensor


class Shown(NamedTuple):
    """P pairs, with what the model may be shown of them.

    Attributes:
        images: All N images, (N, C, H, W).
        fills: What their hidden pixels become, (N, C, H, W).
        pairs: The pairs.
    """

    images: Tensor
    fills: Tensor
    pairs: Pairs

    def show(self, rows: Tensor, regions: Tensor) -> Tensor:
        """Images (R, C, H, W) of pairs ``rows`` (R,), of which only ``regions`` (R, H, W) are shown."""
        samples = self.pairs.samples[rows]
        return show_regions(self.images[samples], self.fills[samples], regions)

    def measure_dice(self, model: ExplainedModel, rows: Tensor, regions: Tensor) -> Tensor:
        """Dice of the predicted masks and what the model returns when shown regions only, without gradients.

        Args:
            model: The model.
            rows: Which pairs, int64 (R,), with repetitions.
            regions: A region for each, bool (R, H, W).

        Returns:
            Shape (R,).
        """
        found = [self.images.new_zeros(0, dtype=torch.float32)]
        with torch.no_grad():
            for some, few in zip(rows.split(model.batch_size), regions.split(model.batch_size), strict=True):
                if len(some) == 0:
                    continue
                again = predict_class(model(self.show(some, few)), self.pairs.classes[some])
                found.append(dice(again, self.pairs.predictions[some]))
        return torch.cat(found)


def measure_distances(predictions: Tensor) -> Tensor:
    """How many times a mask is dilated by a 3 x 3 square until it reaches a pixel: the chessboard distance from it.

    Args:
        predictions: Bool, shape (P, H, W), a pixel or more in each.

    Returns:
        Int64, shape (P, H, W).

    Examples:
        >>> measure_distances(torch.tensor([[[True, False, False]]]))
        tensor([[[0, 1, 2]]])
    """
    maps = [distance_transform_cdt(~one, metric="chessboard") for one in predictions.cpu().numpy()]
    distances = np.stack(maps) if maps else np.zeros(predictions.shape)
    return torch.from_numpy(distances.astype(np.int64)).to(predictions.device)


def find_sufficient_regions(
    model: ExplainedModel, shown: Shown, *, min_dice: float, max_radius: int | None = None
) -> SufficientRegions:
    """Dilate predicted masks until the model, shown only that region, returns them.

    The radius is doubled until it is enough and then bisected: with r the result, the region of r is enough and that
    of r - 1 is not. Where a larger region can be worse than a smaller one, that r need not be the smallest. All pairs
    advance together, at most about 2 log2(side) model calls for each.

    Args:
        model: The model, in evaluation mode.
        shown: The pairs.
        min_dice: What is enough.
        max_radius: The largest radius to try; ``None``: until the whole image is shown, which is always enough.

    Returns:
        The regions; those of the largest radius where even that is not enough.
    """
    distances = measure_distances(shown.pairs.predictions)
    limits = distances.flatten(1).amax(1) if len(distances) else distances.new_zeros(0)
    if max_radius is not None:
        limits = limits.clamp_max(max_radius)
    low, high = torch.full_like(limits, -1), limits.clone()  # not enough; enough, once it is known to be
    known = torch.zeros_like(limits, dtype=torch.bool)
    found = torch.zeros(len(limits), device=limits.device)
    while True:
        rows = torch.where(known, high - low > 1, low < limits).nonzero()[:, 0]
        if len(rows) == 0:
            break
        doubled = torch.minimum(torch.where(low < 1, low + 1, 2 * low), limits)
        radii = torch.where(known, (low + high) // 2, doubled)[rows]
        scores = shown.measure_dice(model, rows, distances[rows] <= radii[:, None, None])
        enough = scores >= min_dice
        low[rows[~enough]] = radii[~enough]
        high[rows[enough]] = radii[enough]
        known[rows[enough]] = True
        last = enough | (radii == limits[rows])  # the Dice of the region that is returned if nothing better comes
        found[rows[last]] = scores[last]
    return SufficientRegions(distances <= high[:, None, None], high, found, known)
