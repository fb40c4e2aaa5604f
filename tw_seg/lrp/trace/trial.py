"""Runs of a classifier on random images that change nothing of it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_SIDES = {False: (16, 32, 64, 128), True: (40, 64, 128)}
"""In each mode the sides of the images on which a classifier is tried that takes images of every size: the first that
can be run. In training mode a BatchNorm that sees two values of a channel, or few, hides all differences before it."""

_COUNTS = {False: (2,), True: (1, 2)}
"""Likewise how many images. Two in evaluation mode show whether a classifier mixes images; BatchNorm may need two."""

PLAIN = frozenset({type(None), bool, int, float, str, tuple})
"""Attributes that a run cannot change, only replace."""


class Trial:
    """Runs of a classifier in one mode that leave its state, its flags and all random numbers as they are."""

    def __init__(self, classifier: nn.Module, training: bool | None) -> None:
        """Look at what it consists of; nothing is run. Without a mode every module keeps its own."""
        self.classifier = classifier
        self.training = classifier.training if training is None else training
        self._mode = training
        self._modules = list(classifier.modules())
        parameters = {id(t): t for m in self._modules for t in m._parameters.values() if t is not None}
        buffers = {id(t): t for m in self._modules for t in m._buffers.values() if t is not None}
        self._tensors = [*parameters.values(), *buffers.values()]
        devices = {t.device for t in parameters.values() if t.device.type == "cuda"}
        self._devices = sorted(devices, key=str)

    @property
    def is_possible(self) -> bool:
        """Whether it has values now, and runs without other processes."""
        if any(is_lazy(t) or t.is_meta or type(t).__name__ == "FakeTensor" for t in self._tensors):
            return False
        # Its statistics are exchanged with other processes, which may be somewhere else now.
        return not (self.training and any(isinstance(m, nn.SyncBatchNorm) for m in self._modules))

    def make_images(self, image_shape: tuple[int, ...], specialised: bool) -> Iterator[Tensor]:
        """Random images to try one after the other, small ones first.

        Args:
            image_shape: (C, H, W) at which the forward was traced.
            specialised: Whether the trace holds for that shape only.
        """
        sides = [side for side in _SIDES[self.training] if side < min(image_shape[1:]) and not specialised]
        device = self._tensors[0].device if self._tensors else torch.device("cpu")
        dtype = next((t.dtype for t in self._tensors if t.is_floating_point()), torch.get_default_dtype())
        generator = torch.Generator("cpu").manual_seed(0)
        axes = len(image_shape) - 1
        for size in (*((side,) * axes for side in sides), image_shape[1:]):
            for count in _COUNTS[self.training]:
                shape = (count, image_shape[0], *size)
                with torch.inference_mode(False):
                    images = torch.rand(shape, generator=generator, device="cpu").to(device, dtype)
                yield images

    def run(self, function: Callable[[], Any], *, gradients: bool = False) -> tuple[Any, bool]:
        """The result of a function that runs the classifier, and whether it drew random numbers.

        Args:
            function: The function.
            gradients: Whether autograd records the run.
        """
        with (
            torch.random.fork_rng([device.index or 0 for device in self._devices]),
            _keep_python_rng(),
            torch.inference_mode(False),
            torch.set_grad_enabled(gradients),
            training_mode(self._modules, self._mode),
            _keep_state(self._modules),
        ):
            torch.manual_seed(0)
            before = self._read_states()
            result = function()
            return result, not all(map(torch.equal, before, self._read_states()))

    def _read_states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._devices)]


@contextmanager
def training_mode(modules: Iterable[nn.Module], mode: bool | None) -> Iterator[None]:
    """Put modules into one mode, and each back into its own afterwards; ``None``: leave them in their own."""
    if mode is None:
        yield
        return
    flags = [(m, m.training) for m in modules]
    try:
        for m, flag in flags:
            if flag is not mode:  # setting an attribute of a module takes its time
                m.training = mode
        yield
    finally:
        for m, flag in flags:
            if m.training is not flag:
                m.training = flag


@contextmanager
def _keep_python_rng() -> Iterator[None]:
    numpy: Any = sys.modules.get("numpy")
    states = random.getstate(), None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        if numpy is not None:
            numpy.random.set_state(states[1])


@contextmanager
def _keep_state(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let the modules work on copies of their buffers and other tensors, and forget what they assign."""
    copies: dict[int, Tensor] = {}

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            return copies.setdefault(id(value), value.detach().clone() if value.grad_fn is None else value)
        return value

    saved = [(m, dict(m.__dict__)) for m in modules]
    containers: list[tuple[Any, Any]] = []
    try:
        for m, attributes in saved:
            for name, value in attributes.items():
                if type(value) in PLAIN:
                    continue
                if isinstance(value, Tensor):
                    m.__dict__[name] = copy(value)
                elif isinstance(value, (dict, list, set)) and "hook" not in name:
                    containers.append((value, value.copy() if value else None))
        for m in modules:
            m._buffers.update({name: copy(value) for name, value in m._buffers.items()})
        yield
    finally:
        for m, attributes in saved:
            for name in m.__dict__.keys() - attributes.keys():
                del m.__dict__[name]
            m.__dict__.update(attributes)
        for value, content in containers:
            if value:
                value.clear()
            if content is not None:
                value.extend(content) if isinstance(value, list) else value.update(content)
