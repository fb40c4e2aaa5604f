"""What layers returned in one run is returned in the next, and only where the layer would compute the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tw_seg.lrp.trace.build import trace
from tw_seg.lrp.trace.layer_runs import LayerRuns
from tw_seg.lrp.trace.trial import Trial


class Counts(nn.Module):
    """Two layers, and the number of times that the first computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.conv(x)[:, :3]).mean((2, 3)))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    found: list[Tensor] = []
    own = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: found.append(x) or own(self, x))
    return found


def weights_changed(net: Counts) -> None:
    with torch.no_grad():
        net.conv.weight.mul_(2)


def stride_changed(net: Counts) -> None:
    net.conv.stride = (2, 2)


@pytest.mark.parametrize(
    ("change", "again"), [(None, 0), (weights_changed, 2), (stride_changed, 2), ("input", 2), ("autocast", 2)]
)
def test_a_layer_is_computed_again_where_something_differs(
    change: Callable[[Counts], None] | str | None, again: int, computed: list[Tensor]
) -> None:
    net, images = Counts().eval(), torch.rand(2, 3, 8, 8)
    trial, layers = Trial(net, False), LayerRuns(net, trace(net, False))
    expected, _ = trial.run(lambda: layers.record(images))
    assert len(computed) == 2 and "forward" not in vars(net.conv)
    computed.clear()

    def replay() -> Tensor:
        layers.replay()
        with torch.autocast("cpu", enabled=change == "autocast"):
            return net(images + 1 if change == "input" else images)

    if callable(change):
        change(net)
    found, _ = trial.run(replay)
    assert len(computed) == again and "forward" not in vars(net.conv)
    assert torch.equal(found, expected) == (change is None)
