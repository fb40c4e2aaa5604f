"""Fake images of two batch sizes, and what a growing graph makes of them: shapes, no data.

The tracer asks here where the forward needs a number or a truth value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tw_seg.lrp.trace.hooks import HookCall

BATCHES = (2, 3)
"""Sizes of the two example batches: what differs between them depends on the batch size."""


def default_image_shape(classifier: nn.Module) -> tuple[int, int, int]:
    """The (C, H, W) that a classifier is made for, as far as it says so; (C, 224, 224) otherwise."""
    config = getattr(classifier, "pretrained_cfg", None) or getattr(classifier, "default_cfg", None) or {}
    config = config if isinstance(config, Mapping) else {}
    channels, height, width = config.get("input_size") or (3, 224, 224)
    modules = dict(classifier.named_modules())
    names = config.get("first_conv", modules)
    named = [modules.get(name) for name in ([names] if isinstance(names, str) else names or ())]
    first = next((m.in_channels for m in named if isinstance(m, nn.Conv2d)), channels)
    # A stem that folds k x k pixels into channels shows k * k times as many.
    folded = first > channels and math.isqrt(first // channels) ** 2 * channels == first
    if type(classifier).__name__ == "Inception3" and not config:
        height = width = 299
    holders = (classifier, getattr(classifier, "patch_embed", None))
    sizes = [getattr(holder, name, None) for holder in holders for name in ("image_size", "img_size")]
    size = next((s for s in sizes if isinstance(s, (int, tuple, list))), None)
    if isinstance(size, int):
        height = width = size
    elif size is not None:
        height, width = size
    return (channels if folded else first, height, width)


@dataclass(frozen=True)
class Failed:
    """Stands for a value: computing it, or one that it needs, raised an error.

    Attributes:
        node: The node that raised it.
        error: The error.
    """

    node: fx.Node
    error: Exception


class Examples:
    """Values of the nodes of a growing graph for two batches of fake images: shapes, no data."""

    def __init__(
        self, root: nn.Module, graph: fx.Graph, attributes: Mapping[str, Any], image_shape: tuple[int, ...]
    ) -> None:
        self.root = root
        self.graph = graph
        self.attributes = attributes
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.found: dict[fx.Node, tuple[Any, ...]] = {}
        self.last: fx.Node | None = None
        tensors = [value for value in attributes.values() if isinstance(value, Tensor)]
        device = tensors[0].device if tensors else torch.device("cpu")
        dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())
        with self.mode:
            self.images = tuple(torch.empty((n, *image_shape), dtype=dtype, device=device) for n in BATCHES)

    def values(self, node: fx.Node) -> tuple[Any, ...]:
        """The values of a node, one for each batch."""
        # Every call in its order: one may change in place what another one reads.
        with torch.inference_mode(False), torch.no_grad(), self.mode:
            while node not in self.found:
                self.last = next(iter(self.graph.nodes)) if self.last is None else self.last.next
                self.found[self.last] = tuple(self._run(self.last, i) for i in range(len(BATCHES)))
        return self.found[node]

    def _run(self, node: fx.Node, batch: int) -> Any:
        failed = [v for v in (self.found[n][batch] for n in node.all_input_nodes) if isinstance(v, Failed)]
        if failed:
            return failed[0]
        args, kwargs = (_filled(value, self.found, batch) for value in (node.args, node.kwargs))
        try:
            return self._call(node, args, kwargs, batch)
        except Exception as error:
            return Failed(node, error)

    def _call(self, node: fx.Node, args: Any, kwargs: Any, batch: int) -> Any:
        if node.op == "placeholder":
            return self.images[batch]
        if node.op == "get_attr":
            value = self.attributes[str(node.target)]
            return self.mode.from_tensor(value) if isinstance(value, Tensor) else value
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            with _fake_state(module, self.mode):
                return module.forward(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if isinstance(node.target, HookCall):
            return None  # hooks are given real tensors only
        assert callable(node.target)
        return node.target(*args, **kwargs)


@contextmanager
def _fake_state(module: nn.Module, mode: FakeTensorMode) -> Iterator[None]:
    """Let a module read and change fake copies of its parameters and buffers."""
    states: list[dict[str, Any]] = [state for m in module.modules() for state in (m._parameters, m._buffers)]
    saved = [dict(state) for state in states]
    try:
        for state in states:
            state.update({name: mode.from_tensor(t) for name, t in state.items() if t is not None})
        yield
    finally:
        for state, tensors in zip(states, saved, strict=True):
            state.clear()
            state.update(tensors)


def _filled(value: Any, found: Mapping[fx.Node, tuple[Any, ...]], batch: int) -> Any:
    """Arguments of a node with plain containers and the values of other nodes."""
    if isinstance(value, fx.Node):
        return found[value][batch]
    if isinstance(value, dict):
        return {key: _filled(item, found, batch) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return (tuple if isinstance(value, tuple) else list)(_filled(item, found, batch) for item in value)
    if isinstance(value, slice):
        return slice(*(_filled(item, found, batch) for item in (value.start, value.stop, value.step)))
    return value
