"""Input x gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from captum.attr import InputXGradient as CaptumInputXGradient
from torch import Tensor

from tw_seg.models.posthoc.base import PostHoc


class InputXGradient(PostHoc):
    """Input x gradient (Shrikumar et al., 2016), captum's, summed over the channels.

    For ReLU networks this is LRP-epsilon with epsilon 0: what the untrained heatmap model shows.
    """

    def attribute(self, images: Tensor, targets: Sequence[int]) -> Tensor:
        method = CaptumInputXGradient(self.classifier)
        return torch.stack([method.attribute(images, target=t).detach().sum(dim=1) for t in targets], dim=1)
