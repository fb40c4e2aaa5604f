"""Forward hooks of a classifier, its blocks and its layers.

A hook that only looks is a call of the trace: each run calls it once, with its own tensors. One that changes what a
module gets or returns is part of the forward and traced like it: with stand-ins, when the trace is made.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from tw_seg.errors import TraceError
from tw_seg.lrp.trace.trial import Trial


@dataclass(frozen=True, eq=False)
class Hook:
    """A forward hook or pre-hook.

    Attributes:
        function: What was registered.
        key: Its number, which no other hook has.
        takes_kwargs: Whether it is given the keyword arguments of the module's call.
    """

    function: Callable[..., Any]
    key: int
    takes_kwargs: bool


class HookCall:
    """The call of a hook that only looks, as a run makes it."""

    def __init__(self, hook: Hook, module: nn.Module) -> None:
        """Keep a hook and the module whose call it is told."""
        self.hook = hook
        self.module = module
        self.__name__ = str(getattr(hook.function, "__name__", type(hook.function).__name__))

    def __call__(self, *given: Any) -> None:
        """Call the hook.

        Raises:
            TraceError: If it returns a value or changes one in place.
        """
        if _call(self.hook.function, self.module, given)[1]:
            raise TraceError(
                f"the hook {self.__name__} of a {type(self.module).__name__} changed what the module gets or returns, "
                "which it did not when the classifier was traced: make the decoder anew once the hook does what it is "
                "to do, or write that into a module"
            )


def list_hooks(module: nn.Module) -> tuple[list[Hook], list[Hook]]:
    """The pre-hooks and the hooks of a module's call, in the order in which torch calls them."""
    everywhere: Any = torch_module
    before = [
        *_list(everywhere._global_forward_pre_hooks, ()),
        *_list(module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
    ]
    after = [
        *_list(everywhere._global_forward_hooks, everywhere._global_forward_hooks_with_kwargs),
        *_list(module._forward_hooks, module._forward_hooks_with_kwargs),
    ]
    return before, after


def _list(holder: dict[int, Any], with_kwargs: Container[int]) -> list[Hook]:
    return [Hook(function, key, key in with_kwargs) for key, function in holder.items()]


def find_keys(modules: Iterable[nn.Module]) -> frozenset[int]:
    """The numbers of all hooks that calls of some modules call."""
    return frozenset(key for holder in _list_holders(modules) for key in holder)


def call_with_hooks(
    module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any, call: Callable[[Hook, nn.Module, Any], Any]
) -> Any:
    """Call a forward as torch does, with the hooks of the module.

    Args:
        module: The module.
        forward: Its forward.
        args: Positional arguments.
        kwargs: Keyword arguments.
        call: ``call(hook, module, given)`` calls a hook and returns what it returns.
    """
    before, after = list_hooks(module)
    for hook in before:
        result = call(hook, module, (args, kwargs) if hook.takes_kwargs else (args,))
        if result is not None and hook.takes_kwargs:
            args, kwargs = result
        elif result is not None:
            args = result if isinstance(result, tuple) else (result,)
    output = forward(*args, **kwargs)
    for hook in after:
        result = call(hook, module, (args, kwargs, output) if hook.takes_kwargs else (args, output))
        output = output if result is None else result
    return output


def find_changing(classifier: nn.Module, training: bool | None, image_shape: tuple[int, ...]) -> frozenset[int]:
    """The numbers of the hooks that change what a module gets or returns, found by a run on random images.

    Where the classifier cannot be run now there are none: a run finds them out later.
    """
    changing: set[int] = set()
    if find_keys(classifier.modules()):
        trial = Trial(classifier, training)
        for images in trial.make_images(image_shape, False) if trial.is_possible else ():
            try:
                with _watch(classifier, changing):
                    trial.run(lambda images=images: classifier(images))  # type: ignore[misc]
            except Exception:
                continue  # too small, or not of this size
            break
    return frozenset(changing)


def find_backward_hooks(classifier: nn.Module) -> list[str]:
    """The paths of the modules that have backward hooks."""
    return [
        path or "the classifier itself"
        for path, m in classifier.named_modules()
        if m._backward_hooks or m._backward_pre_hooks
    ]


def _list_holders(modules: Iterable[nn.Module]) -> Iterator[dict[int, Any]]:
    everywhere: Any = torch_module
    yield from (everywhere._global_forward_pre_hooks, everywhere._global_forward_hooks)
    for m in modules:
        if m._forward_hooks:
            yield m._forward_hooks
        if m._forward_pre_hooks:
            yield m._forward_pre_hooks


@contextmanager
def _watch(classifier: nn.Module, changing: set[int]) -> Iterator[None]:
    """Note which hooks change something while they are called."""
    holders = [(holder, dict(holder)) for holder in _list_holders(classifier.modules())]

    def watch(key: int, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(module: nn.Module, *given: Any) -> Any:
            result, changed = _call(function, module, given)
            if changed:
                changing.add(key)
            return result

        return watched

    try:
        for holder, own in holders:
            holder.update({key: watch(key, function) for key, function in own.items()})
        yield
    finally:
        for holder, own in holders:
            holder.update(own)


def _call(hook: Callable[..., Any], module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, bool]:
    """What a hook returns, and whether it changes what it is given, by returning something or in place."""
    if torch.compiler.is_compiling():
        result = hook(module, *given)
        return result, result is not None
    before = [(t, t._version) for t in _find_tensors(given)]
    result = hook(module, *given)
    return result, result is not None or any(t._version != version for t, version in before)


def _find_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if not value.is_inference():  # these count no changes
            yield value
    elif isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _find_tensors(item)
