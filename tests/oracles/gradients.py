"""Oracles by autograd: what heatmaps, and losses on heatmaps, must equal where epsilon is 0."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def input_x_gradient(
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    classes: Iterable[int] | None = None,
    *,
    create_graph: bool = False,
) -> Tensor:
    """Sum over channels of ``x * d logit_k / d x``, shape (N, K, H, W); double backpropagation if asked for."""
    images = images.detach().requires_grad_()
    logits = classifier(images)
    maps = []
    for k in range(logits.shape[1]) if classes is None else classes:
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), images, retain_graph=True, create_graph=create_graph)
        maps.append((images * gradient).sum(1))
    return torch.stack(maps, 1) if create_graph else torch.stack(maps, 1).detach()


def gradient_x_activation(classifier: nn.Module, module: nn.Module, images: Tensor) -> Tensor:
    """The same at a module's (last) output, shape (N, K, h, w)."""
    seen: list[Tensor] = []
    # A clone: what follows may work in place, and the module's own output is then not the activation any more.
    handle = module.register_forward_hook(lambda _, __, output: seen.append(output) or output.clone())
    try:
        logits = classifier(images.detach().requires_grad_())
    finally:
        handle.remove()
    maps = []
    for k in range(logits.shape[1]):
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), seen[-1], retain_graph=True)
        maps.append((seen[-1] * gradient).sum(1))
    return torch.stack(maps, 1).detach()


class HeldStatistics:
    """A copy of a classifier in training mode, whose batch statistics are held constant along the input.

    The statistics still depend on the weights: they come from a first run on other leaf tensors of the same
    values, so that gradients reach the weights through them but never the images of the second run.
    """

    def __init__(self, classifier: nn.Module) -> None:
        self.net = copy.deepcopy(classifier).train()

    def __call__(self, images: Tensor) -> Tensor:
        norms = [m for m in self.net.modules() if isinstance(m, NORMS) and m.training]
        statistics: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in norms}

        def record(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            dims = [0, *range(2, inputs[0].ndim)]
            statistics[norm].append((inputs[0].mean(dims), inputs[0].var(dims, unbiased=False)))

        def hold(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            shape = (1, -1, *([1] * (inputs[0].ndim - 2)))
            mean, var = (s.reshape(shape) for s in statistics[norm].pop(0))
            result = (inputs[0] - mean) / torch.sqrt(var + norm.eps)
            if norm.weight is not None:
                result = result * norm.weight.reshape(shape) + norm.bias.reshape(shape)
            return result

        state = torch.random.get_rng_state()
        for hook, register in ((record, "register_forward_pre_hook"), (hold, "register_forward_hook")):
            handles = [getattr(norm, register)(hook) for norm in norms]
            torch.random.set_rng_state(state)
            logits = self.net(images.detach().clone() if hook is record else images)
            for handle in handles:
                handle.remove()
        return logits


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradient of each parameter; zeros for one that the loss does not depend on."""
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def agreement(found: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, float]:
    """``1 - cosine`` and ``|norm ratio - 1|`` of two gradients of all parameters."""
    a, b = (torch.cat([g.flatten() for g in gradient]) for gradient in (found, expected))
    return 1 - float(a @ b / (a.norm() * b.norm())), abs(float(a.norm() / b.norm()) - 1)
