"""Training-free segmentation: attributions of an image-level classifier, cut at a calibrated threshold.

These rows say what the classifier alone can do. Each method gives one map per foreground class; the common
part makes scores of them:

1. upsample to the image, keep positive values, divide by the maximum of the map: scores in [0, 1];
2. set classes to 0 whose image-level probability is below ``gate``: a method without that step paints every
   class into every image, because each map is normalised on its own;
3. the background's score is one number, ``threshold``, chosen by :meth:`PostHoc.calibrate`.

The argmax of these scores is the mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from captum.attr import InputXGradient as CaptumInputXGradient
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.nn import functional as F

from tw_seg.arguments import class_indices
from tw_seg.errors import InputError
from tw_seg.metrics import mean_iou
from tw_seg.models.base import SegModel
from tw_seg.models.weights import find_head
from tw_seg.resize import resize_maps
from tw_seg.types import BACKGROUND, IGNORE_INDEX, Batch, SegOutput

PROBE_SIZE = 96
"""Side of the blank image in which the last feature map is looked for; larger than any backbone's stride."""


class PostHoc(SegModel):
    """Base of the training-free models; a method is one function, :meth:`attribute`.

    The classifier is frozen and always in evaluation mode, whatever ``train()`` is called with.

    Args:
        encoder_name: See :func:`tw_seg.models.backbones.create_classifier`, as for the next four.
        encoder_weights: Library's weights name, a local file or ``None``.
        in_channels: Channels of the images.
        classes: Number of classes K, background included.
        encoder_kwargs: Passed to the encoder's constructor.
        gate: Image-level probability from which on a class may appear in the mask; 0 switches the gate off.

    Shapes:
        images (N, C, H, W) -> logits (N, K), mask_logits (S, K', H, W), which are scores in [0, 1] without a
        gradient. Classes that pass the gate in no image of the batch cost nothing.
    """

    trainable = False
    needs_calibration = True
    classifier_path = "classifier"
    threshold: Tensor

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None = None,
        *,
        in_channels: int = 3,
        classes: int,
        encoder_kwargs: Mapping[str, Any] | None = None,
        gate: float = 0.5,
    ) -> None:
        super().__init__(
            encoder_name, encoder_weights, in_channels=in_channels, classes=classes, encoder_kwargs=encoder_kwargs
        )
        if not 0 <= gate <= 1:
            raise InputError(f"gate must be a probability in [0, 1], got {gate}.")
        self.gate = gate
        self.classifier = self.create_classifier(encoder_weights).requires_grad_(False)
        self.register_buffer("threshold", torch.tensor(0.3))  # a common choice for CAM until calibrated
        self.eval()

    def attribute(self, images: Tensor, targets: Sequence[int]) -> Tensor:
        """Attributions (N, T, h, w) of T classes' logits, for images (N, C, H, W) that require a gradient."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> PostHoc:
        return super().train(False)

    def segment(self, images: Tensor, classes: tuple[int, ...] | Tensor, samples: Tensor | None) -> SegOutput:
        if isinstance(classes, Tensor):  # the gate waits for the device in any case
            classes = class_indices(classes.cpu(), self.num_classes)
        chosen = [int(k) for k in classes]
        with torch.no_grad():
            logits: Tensor = self.classifier(images)
        if samples is not None:
            images = images.index_select(0, samples)
        scores = self._scores(images, logits if samples is None else logits.index_select(0, samples), chosen)
        return SegOutput(logits, scores)

    def calibrate(self, batches: Iterable[Batch]) -> float:
        """Set ``threshold`` to the value on a grid that gives the best mean IoU on the labelled images.

        Args:
            batches: Batches whose masks may be used: labelled training images, never test images.

        Returns:
            The mean IoU over the classes that occur, on these images, at the chosen threshold.

        Raises:
            InputError: No batch holds a labelled pixel.
        """
        k = self.num_classes
        grid = torch.linspace(0, 0.99, 100).square()  # finer near 0, where input x gradient needs it
        counts = torch.zeros(k * k * (len(grid) + 1), dtype=torch.int64)
        for batch in batches:
            if len(batch.labelled) == 0:
                continue
            images = batch.images.to(self.threshold.device)
            scores = self(images, samples=batch.labelled).mask_logits.cpu()
            scores[:, BACKGROUND] = -1  # the winner is a foreground class; the grid decides if it shows
            best, winner = scores.max(dim=1)
            masks = batch.masks.cpu()
            keep = masks != IGNORE_INDEX
            # The number of thresholds that the pixel's score exceeds: one count serves the whole grid.
            exceeded = torch.bucketize(best[keep].to(grid.dtype), grid)
            index = (masks[keep] * k + winner[keep]) * (len(grid) + 1) + exceeded
            counts += torch.bincount(index, minlength=len(counts))
        if not counts.any():
            raise InputError("calibrate needs at least one labelled pixel; give it labelled training batches.")
        scores_per_threshold = mean_iou(_confusions(counts.view(k, k, len(grid) + 1)).double())
        index_of_best = int(scores_per_threshold.argmax())
        self.threshold.fill_(float(grid[index_of_best]))
        return float(scores_per_threshold[index_of_best])

    def _scores(self, images: Tensor, logits: Tensor, chosen: list[int]) -> Tensor:
        """Scores (S, K', H, W) of the chosen classes."""
        scores = images.new_zeros((len(images), len(chosen), *images.shape[-2:]), dtype=torch.float32)
        passes = logits.float().sigmoid() >= self.gate
        wanted = passes.any(dim=0).tolist()
        columns = [i for i, target in enumerate(chosen) if target != BACKGROUND and wanted[target]]
        if columns:
            targets = [chosen[i] for i in columns]
            scores[:, columns] = self._maps(images, targets) * passes[:, targets, None, None]
        for column in (i for i, target in enumerate(chosen) if target == BACKGROUND):
            scores[:, column] = self.threshold
        return scores

    def _maps(self, images: Tensor, targets: Sequence[int]) -> Tensor:
        """Normalised maps (S, T, H, W) in [0, 1]."""
        # Lightning evaluates in inference mode, where nothing can be differentiated: leave it, with a copy of
        # the images that is not marked as an inference tensor.
        with torch.inference_mode(False), torch.enable_grad():
            attribution = self.attribute(images.clone().requires_grad_(), targets).detach().float()
        maps = resize_maps(attribution, images.shape[-2:]).relu()
        peak = maps.amax(dim=(2, 3), keepdim=True)
        return maps / peak.clamp_min(torch.finfo(torch.float32).tiny)


class CAM(PostHoc):
    """Class activation map (Zhou et al., 2016): the head's weights at every place of the last feature map.

    Needs a classifier that ends in global average pooling and one linear layer (ResNet, MobileNetV2, ...);
    for these it is Grad-CAM without the gradient. Other classifiers: use :class:`GradCAM`.

    Raises:
        InputError: The classifier ends otherwise.
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
    ) -> None:
        super().__init__(
            encoder_name,
            encoder_weights,
            in_channels=in_channels,
            classes=classes,
            encoder_kwargs=encoder_kwargs,
            gate=gate,
        )
        self.layer = last_feature_map(self.classifier, in_channels)
        self.head = find_head(self.classifier, classes)
        head = self.classifier.get_submodule(self.head)
        size = (1, in_channels, PROBE_SIZE, PROBE_SIZE)
        images = torch.randn(size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            features, logits = _run_with_output(self.classifier, self.layer, images)
            fits = isinstance(head, nn.Linear) and head.in_features == features.shape[1]
            if not fits or not torch.allclose(head(features.mean(dim=(2, 3))), logits, rtol=1e-3, atol=1e-4):
                raise InputError(
                    f"CAM needs a classifier that ends in global average pooling and one linear layer; "
                    f"{encoder_name!r} does not (last feature map {self.layer!r}, head {self.head!r}). "
                    "Use 'gradcam'."
                )

    def attribute(self, images: Tensor, targets: Sequence[int]) -> Tensor:
        features, _ = _run_with_output(self.classifier, self.layer, images)
        weight = self.classifier.get_parameter(f"{self.head}.weight")[list(targets)]
        return F.conv2d(features, weight[:, :, None, None].to(features.dtype))


class GradCAM(PostHoc):
    """Grad-CAM (Selvaraju et al., 2017), captum's, at the last feature map.

    Args:
        layer: Qualified name of the module whose output is read; ``None``: the last feature map before the
            classifier pools or flattens.
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
        layer: str | None = None,
    ) -> None:
        super().__init__(
            encoder_name,
            encoder_weights,
            in_channels=in_channels,
            classes=classes,
            encoder_kwargs=encoder_kwargs,
            gate=gate,
        )
        names = [name for name, _ in self.classifier.named_modules() if name]
        if layer is not None and layer not in names:
            raise InputError(f"layer={layer!r} is no module of {encoder_name!r}. Its modules: {', '.join(names)}.")
        self.layer = layer or last_feature_map(self.classifier, in_channels)

    def attribute(self, images: Tensor, targets: Sequence[int]) -> Tensor:
        method = LayerGradCam(self.classifier, self.classifier.get_submodule(self.layer))
        return torch.cat([method.attribute(images, target=target).detach() for target in targets], dim=1)


class InputXGradient(PostHoc):
    """Input x gradient (Shrikumar et al., 2016), captum's, summed over the channels.

    For ReLU networks this is LRP-epsilon with epsilon 0: what the untrained heatmap model shows.
    """

    def attribute(self, images: Tensor, targets: Sequence[int]) -> Tensor:
        method = CaptumInputXGradient(self.classifier)
        return torch.stack([method.attribute(images, target=t).detach().sum(dim=1) for t in targets], dim=1)


def last_feature_map(classifier: nn.Module, in_channels: int) -> str:
    """Name of the module that makes the last feature map before the classifier pools it away or flattens it.

    Found by running a blank image: the last 4-dimensional output that comes before the last adaptive pooling
    (before the end, where there is none). Definition order would name some ResNets' shortcut convolution.

    Raises:
        InputError: The classifier has no feature map (N, C, h, w).
    """
    names = {module: name for name, module in classifier.named_modules()}
    calls: list[tuple[str, bool]] = []  # (name, whether it is an adaptive pooling), in order of execution

    def record(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            calls.append((names[module], isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)))

    handles = [module.register_forward_hook(record) for module in names if module is not classifier]
    modes = {module: module.training for module in names}
    try:
        classifier.eval()
        with torch.no_grad():
            classifier(torch.zeros((1, in_channels, PROBE_SIZE, PROBE_SIZE)))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"{type(classifier).__name__} does not take an image of {PROBE_SIZE}x{PROBE_SIZE} pixels "
            f"({error}), which is how its last feature map is found. Use 'input_x_gradient'."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    pools = [position for position, (_, is_pool) in enumerate(calls) if is_pool]
    before = calls[: pools[-1]] if pools else calls
    if not before:
        raise InputError(
            f"{type(classifier).__name__} has no feature map (N, C, h, w) before its head, so no class "
            "activation map. Use 'input_x_gradient'."
        )
    return before[-1][0]


def _run_with_output(classifier: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """The output of ``layer`` and the logits for ``images``."""
    kept: list[Tensor] = []
    handle = classifier.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output))
    try:
        logits = classifier(images)
    finally:
        handle.remove()
    return kept[-1], logits


def _confusions(counts: Tensor) -> Tensor:
    """Confusion matrices (T, K, K) by threshold, from counts (true class, best object class, thresholds exceeded)."""
    # At threshold j a pixel is an object's if it exceeds more than j thresholds.
    above = counts.flip(2).cumsum(2).flip(2)[:, :, 1:]
    confusions = above.clone()
    confusions[:, BACKGROUND] += counts.sum(dim=(1, 2))[:, None] - above.sum(dim=1)
    return confusions.permute(2, 0, 1)
