"""Masks from image-level labels alone: relevance of a trained classifier, cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tw_seg.arguments import check_counts, check_numbers
from tw_seg.errors import InputError
from tw_seg.lrp import HeatmapDecoder
from tw_seg.models.posthoc.base import PostHoc
from tw_seg.models.posthoc.guided_filter import check_guide, filter_guided, make_guides
from tw_seg.models.posthoc.regions import EVEN, score_map
from tw_seg.models.posthoc.relevance_maps import check_combination, check_smoothing, combine_depths, smooth_maps
from tw_seg.models.posthoc.threshold_rules import CALIBRATED, check_rule, find_threshold
from tw_seg.models.segmenter import DecoderKwargs, read_decoder_kwargs
from tw_seg.types import BACKGROUND


class LRPMask(PostHoc):
    """Relevance of the classes that pass the gate, cut by a rule that needs no mask (after Seibold et al., 2022).

    In this order, each step by names and numbers:

    1. LRP with any composite, seed and read-outs; ``relevance`` and ``combine`` make one map of several depths
       (`tw_seg.models.posthoc.relevance_maps`);
    2. Gaussian smoothing, then the guided filter, which follows the edges of the image
       (`tw_seg.models.posthoc.guided_filter`); negative values become 0, the maximum 1;
    3. a threshold for each map, by a rule that looks at its values (`tw_seg.models.posthoc.threshold_rules`), or
       one for all that is calibrated on masks;
    4. small regions and holes are removed; of several classes at a pixel the one that exceeds its threshold by the
       largest factor wins (`tw_seg.models.posthoc.regions`).

    Seibold et al.: From Explanations to Segmentation: Using Explainable AI for Image Segmentation, arXiv 2202.00315.

    Args:
        encoder_name: As for all training-free models, see `tw_seg.models.posthoc.base.PostHoc`, and so the next
            five.
        encoder_weights: Library's weights name, a local file or ``None``.
        in_channels: Channels of the images.
        classes: Number of classes K, background included.
        encoder_kwargs: Passed to the encoder's constructor.
        gate: Image-level probability from which on a class may appear in the mask.
        decoder_kwargs: Arguments of the decoder by name, see `tw_seg.models.segmenter.DecoderKwargs`; its
            weights are the classifier's.
        relevance: ``"positive"`` or ``"signed"``: whether negative relevance is left out before maps are averaged.
        combine: ``"mean"`` or ``"geometric_mean"`` of the normalised maps of several read-outs.
        smooth: Standard deviation of the smoothing, in pixels of the images that the model gets, whatever the
            resolution of a read-out; 0 for none.
        guide_radius: Radius of the guided filter in pixels; 0 for none.
        guide_epsilon: Its regularisation, for images scaled to [0, 1].
        threshold_rule: A key of `tw_seg.models.posthoc.threshold_rules.THRESHOLD_RULES`, or ``"calibrated"``: the
            threshold with the best mean IoU on the label budget, before regions are cleaned.
        threshold_value: The rule's number; ``None`` for its default.
        min_region: Regions of fewer pixels are removed.
        max_hole: Holes of up to so many pixels are filled.

    Raises:
        InputError: For an argument that does not fit.

    Examples:
        >>> model = LRPMask("resnet18", classes=3, gate=0.0, decoder_kwargs={"composite": "epsilon_plus"})
        >>> model(torch.randn(1, 3, 64, 64)).mask_logits.argmax(1).shape
        torch.Size([1, 64, 64])
    """

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None = None,
        *,
        in_channels: int = 3,
        classes: int,
        encoder_kwargs: Mapping[str, Any] | None = None,
        gate: float = 0.5,
        decoder_kwargs: DecoderKwargs | Mapping[str, Any] | None = None,
        relevance: str = "positive",
        combine: str = "mean",
        smooth: float = 0.0,
        guide_radius: int = 0,
        guide_epsilon: float = 1e-3,
        threshold_rule: str = "otsu",
        threshold_value: float | None = None,
        min_region: int = 0,
        max_hole: int = 0,
    ) -> None:
        check_combination(relevance, combine)
        check_smoothing(smooth)
        check_guide(guide_radius, guide_epsilon)
        check_rule(threshold_rule, threshold_value)
        check_counts(0, min_region=min_region, max_hole=max_hole)
        check_numbers(min_region=min_region, max_hole=max_hole)  # refuses None, which is no count of these
        decoder_kwargs = read_decoder_kwargs(decoder_kwargs)
        if not decoder_kwargs.get("tie_weights", True):
            raise InputError(
                "decoder_kwargs: lrp_mask trains nothing, so its decoder has no weights: leave tie_weights out"
            )
        super().__init__(
            encoder_name,
            encoder_weights,
            in_channels=in_channels,
            classes=classes,
            encoder_kwargs=encoder_kwargs,
            gate=gate,
        )
        self.needs_calibration = threshold_rule == CALIBRATED
        self.relevance, self.combine, self.smooth = relevance, combine, smooth
        self.guide_radius, self.guide_epsilon = guide_radius, guide_epsilon
        self.threshold_rule, self.threshold_value = threshold_rule, threshold_value
        self.min_region, self.max_hole = min_region, max_hole
        # In a tuple it is no submodule: the classifier, which it holds, would be twice in the state dict.
        self._decoders = (HeatmapDecoder(self.classifier, **decoder_kwargs),)

    @property
    def decoder(self) -> HeatmapDecoder:
        """The decoder on the classifier."""
        return self._decoders[0]

    def attribute(self, images: Tensor, targets: Sequence[int]) -> Tensor:
        with torch.no_grad():
            heatmaps = [one.float() for one in self.decoder(images.detach(), targets).readouts]
            if not all(bool(one.isfinite().all()) for one in heatmaps):
                raise InputError(
                    "the relevance holds NaN or infinity: use another composite or a larger stabilizer in "
                    "decoder_kwargs, and look at the classifier with `tw-seg doctor`"
                )
            maps = combine_depths(heatmaps, images.shape[-2:], relevance=self.relevance, combine=self.combine)
            maps = smooth_maps(maps, self.smooth)
            guides = make_guides(images.detach().float())
            return filter_guided(maps, guides, radius=self.guide_radius, epsilon=self.guide_epsilon)

    def cut(self, maps: Tensor, classes: Sequence[int]) -> Tensor:
        scores = torch.full_like(maps, EVEN)
        for column in (i for i, target in enumerate(classes) if target != BACKGROUND):
            for row, values in enumerate(maps[:, column]):
                scores[row, column] = self._cut_map(values)
        return scores

    def _cut_map(self, values: Tensor) -> Tensor:
        """Scores of one map (H, W)."""
        if values.min() == values.max():  # behind the gate, without positive relevance, or the same everywhere
            return torch.zeros_like(values)
        if self.threshold_rule == CALIBRATED:
            threshold = float(self.threshold)
        else:
            threshold = find_threshold(values.cpu().numpy(), self.threshold_rule, self.threshold_value)
        return score_map(values, threshold, min_region=self.min_region, max_hole=self.max_hole)
