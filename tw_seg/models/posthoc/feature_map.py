"""The last feature map of a classifier: where it is, and what it holds for some images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tw_seg.errors import InputError

PROBE_SIZE = 96
"""Side of the blank image in which the last feature map is looked for; larger than any backbone's stride."""


def find_last_feature_map(classifier: nn.Module, in_channels: int) -> str:
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


def record_output(classifier: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Classify images; returns the output of the module ``layer`` and the logits."""
    kept: list[Tensor] = []
    handle = classifier.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output))
    try:
        logits = classifier(images)
    finally:
        handle.remove()
    return kept[-1], logits
