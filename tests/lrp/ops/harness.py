"""A small classifier around one operation, and what its heatmaps must equal.

images -> convolution ``a`` -> the operation -> linear head: every element of the operation's output has a coefficient
of its own, and its three classes are folded into the batch. The heatmap must be input x gradient of the net, or of a
*surrogate*: the same net with what LRP holds constant detached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.oracles.gradients import input_x_gradient
from tw_seg.lrp import HeatmapDecoder, Schedule
from tw_seg.lrp.conservation.diagnose import completeness, conservation

Body = Callable[[Any, Tensor], Tensor]
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZES = {1: (2, 3, 12), 2: (2, 3, 6, 8), 3: (2, 3, 4, 6, 5)}


@dataclass(frozen=True)
class Case:
    """One way of writing one operation.

    Attributes:
        body: ``body(net, images)`` -> (N, ...), with the operation in it.
        surrogate: The same where LRP is no gradient of it; ``None``: it is.
        size: Shape of the images.
        modules: Makes the modules and parameters that the body uses as attributes of the net.
        training: Whether the net is in training mode.
        custom_rules: Rules that the decoder is given.
    """

    body: Body
    surrogate: Body | None = None
    size: tuple[int, ...] = SIZES[2]
    modules: Callable[[], Mapping[str, Any]] = dict
    training: bool = False
    custom_rules: Mapping[Any, Any] | None = None


class Net(nn.Module):
    """The classifier of a case."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = case.body
        dims = len(case.size) - 2
        if dims == 2:  # traced at another size than is decoded, smaller than the default
            self.image_size = (2 * case.size[2], 2 * case.size[3])
        self.a = CONV[dims](3, 4, 3, padding=1)
        for name, module in case.modules().items():
            setattr(self, name, module)
        randomise(self.double())
        with torch.no_grad():  # in evaluation mode: nothing is drawn or counted
            features = self.eval().body(self, torch.zeros(case.size, dtype=torch.float64)).flatten(1).shape[1]
        self.head = randomise(nn.Linear(features, 3).double())
        self.train(case.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, x).flatten(1))


class Many(nn.Module):
    """The sum of the logits of several cases, in one classifier."""

    def __init__(self, cases: Iterable[Case]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(Net(case) for case in cases)

    def forward(self, x: Tensor) -> Tensor:
        return sum(net(x) for net in self.nets)


def randomise(module: nn.Module) -> nn.Module:
    """Parameters and statistics that are not trivial; weights of both signs, of norms too."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return module


def build(case: Case) -> tuple[Net, Tensor]:
    net = Net(case)
    return net, torch.randn(case.size, dtype=torch.float64)


def expected_heatmaps(case: Case, net: Net, images: Tensor) -> Tensor:
    """Input x gradient of the surrogate, which must be the net in value."""
    surrogate = case.surrogate or case.body
    torch.manual_seed(1)
    with torch.no_grad():
        logits = net(images)
    torch.manual_seed(1)
    found = net.head(surrogate(net, images).flatten(1))
    torch.testing.assert_close(found, logits, rtol=1e-12, atol=1e-12, msg="the surrogate is another function")
    torch.manual_seed(1)
    return input_x_gradient(lambda x: net.head(surrogate(net, x).flatten(1)), images)


def decode(decoder: HeatmapDecoder, *args: Any) -> Any:
    torch.manual_seed(1)  # dropout and stochastic depth draw the same in every run
    return decoder(*args)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def check(case: Case) -> None:
    """Every property of one case."""
    net, images = build(case)
    expected = expected_heatmaps(case, net, images)
    assert expected.abs().max() > 1e-3, "a case that shows nothing"
    decoder = HeatmapDecoder(net, custom_rules=case.custom_rules).train(case.training)
    decoded = decode(decoder, images)
    torch.manual_seed(1)
    close(decoded.logits, net(images))
    close(decoded.heatmaps, expected)
    sample = torch.tensor([1])
    close(decode(decoder, images, [2, 0], sample).heatmaps, expected[1:2, [2, 0]])
    decoder.schedule = Schedule(chunk_size=2)
    close(decode(decoder, images).heatmaps, expected)
    decoder.schedule = Schedule()
    if not case.training:  # statistics of the batch, and draws, are those of this batch
        close(decode(decoder, images[:1]).heatmaps, expected[:1])
    check_balances(decoder, images)
    check_gradients(decoder, images)


def check_balances(decoder: HeatmapDecoder, images: Tensor) -> None:
    """Relevance is accounted for, at each call and in all."""
    for balance in conservation(decoder, images):
        scale = max(float(part.abs().max()) for part in (balance.relevance_out, balance.relevance_in, balance.bias))
        assert float(balance.missing.abs().max()) <= 1e-10 * scale, balance
    torch.manual_seed(1)
    account = completeness(decoder, images)
    assert float(account.missing.abs().max()) <= 1e-10 * float(account.logits.abs().max()), account


def check_gradients(decoder: HeatmapDecoder, images: Tensor) -> None:
    """The gradient of a heatmap loss along a random direction in weight space, by central differences."""
    parameters = [p for p in decoder.parameters() if p.is_floating_point()]
    with torch.no_grad():
        weights = torch.randn_like(decode(decoder, images).heatmaps)
        generator = torch.Generator().manual_seed(2)
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def loss() -> Tensor:
        return (decode(decoder, images).heatmaps * weights).sum()

    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    slopes = [(g * d).sum() for g, d in zip(gradients, direction, strict=True) if g is not None]
    step, values = 1e-6, []
    with torch.no_grad():
        for sign in (1, -2):  # there, and back beyond
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=sign * step)
            values.append(loss())
        for p, d in zip(parameters, direction, strict=True):
            p.add_(d, alpha=step)
    scale = max(float(sum(s.abs() for s in slopes)), float(values[0].abs()))
    assert abs(float(sum(slopes) - (values[0] - values[1]) / (2 * step))) <= 1e-6 * scale


def spellings(name: str, *bodies: Body, **shared: Any) -> dict[str, Case]:
    """Cases that differ only in how the operation is written."""
    return {f"{name} {number}": Case(body, **shared) for number, body in enumerate(bodies)}
