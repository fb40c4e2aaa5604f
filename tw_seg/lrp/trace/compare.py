"""Whether a trace computes what the classifier computes: both are run once on the same random images.

A trace runs the forward with stand-ins for tensors. What asks for their type, and a hook that the trace does not see,
takes another way there without a message; here the difference is seen.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.parameter import is_lazy

from tw_seg.errors import TraceError, TwSegError
from tw_seg.lrp.core.graph import Graph
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.trace.tracer import training_mode

_IMAGES = 2
_SIDES = (32, 64, 128)
"""Sides of the images on which a trace is tried that holds for images of every size: the first that can be run."""

_RTOL = {torch.float64: 1e-9, torch.float32: 1e-4}
_RTOL_HALF = 3e-2
"""Of the largest logit. Both run the same kernels: nearly always their logits are equal to the last bit."""


def compare(classifier: nn.Module, graph: Graph, training: bool, image_shape: tuple[int, ...]) -> Tensor | None:
    """Compare the logits of a trace with the classifier's own, on random images that change nothing of either.

    In training mode random numbers may be drawn in another order; then nothing can be said, and nothing is.

    Args:
        classifier: The classifier.
        graph: Its trace in that mode.
        training: Whether it is the trace of training mode.
        image_shape: (C, H, W) at which the forward was traced.

    Returns:
        The logits of two images; ``None`` where the classifier cannot be run on such images now.

    Raises:
        TraceError: Naming the first module whose output differs.
    """
    if not _can_run(classifier, training):
        return None
    sides = [] if graph.specialised else [side for side in _SIDES if side < min(image_shape[1:])]
    for shape in (*((image_shape[0], side, side) for side in sides), image_shape):
        images = _make_images(classifier, shape)
        try:
            with _watch_hooks(classifier, graph) as changing:
                expected, drawn = _run_alone(classifier, training, partial(classifier, images))
        except Exception:
            continue  # too small, or not of this size
        if changing:
            raise TraceError(
                "these hooks change what a layer gets or returns, which the rule of the layer cannot know: "
                f"{', '.join(changing)}. Write what they do into a module before or after it, or remove them"
            )
        return _compare_on(classifier, graph, training, images, expected, drawn)
    return None


def _compare_on(
    classifier: nn.Module, graph: Graph, training: bool, images: Tensor, expected: Any, drawn: bool
) -> Tensor | None:
    expected = find_logits(expected)
    if not isinstance(expected, Tensor):
        return None  # the trace has said so
    try:
        tape, _ = _run_alone(classifier, training, lambda: Tape(classifier, graph, images, frozenset()))
    except TwSegError:
        raise
    except Exception as error:
        raise TraceError(
            f"{type(classifier).__name__} runs on images of shape {tuple(images.shape)}, its trace does not "
            f"({type(error).__name__}: {error}). {_REMEDY}"
        ) from error
    found: Tensor = tape.values[graph.output]
    if drawn or _agree(found, expected) or _agree_in_double(classifier, graph, training, images):
        return expected
    place = _find_first(classifier, graph, training, images)
    largest = float((found.double() - expected.double()).abs().max()) if found.shape == expected.shape else float("nan")
    what = f"by up to {largest:.2g}" if found.shape == expected.shape else f"in shape, {tuple(found.shape)}"
    raise TraceError(
        f"the trace of {type(classifier).__name__} in {'training' if training else 'evaluation'} mode computes other "
        f"logits than the classifier itself: on two random images of shape {tuple(images.shape[1:])} they differ "
        f"{what}. The first module whose output differs is {place}. {_REMEDY}"
    )


_REMEDY = (
    "Tracing runs the forward with stand-ins for tensors: ask for no types there (isinstance, torch.is_tensor, "
    "type(x)), leave transforms of torchvision.transforms.v2 to the data set, and write what a hook "
    "does into a module; "
    "or keep the module whole: HeatmapDecoder(classifier, custom_rules={ModuleClass: rule}), see docs/custom_rule.md"
)


def find_logits(output: Any) -> Any:
    """The logits of what a classifier returns: the output itself, or the first of several."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


@contextmanager
def _watch_hooks(classifier: nn.Module, graph: Graph) -> Iterator[dict[str, None]]:
    """Find the hooks of single layers that return a value; those of blocks are traced with them."""
    changing: dict[str, None] = {}
    modules = dict(classifier.named_modules())
    hooks: list[tuple[Any, dict[int, Any], str, str]] = []
    for path in dict.fromkeys(str(call.target) for call in graph.calls if call.fx_op == "call_module"):
        for kind, hooked in (("hook", modules[path]._forward_hooks), ("pre-hook", modules[path]._forward_pre_hooks)):
            if hooked:
                hooks.append((hooked, dict(hooked), kind, path))

    def watch(hook: Any, what: str) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = hook(*args, **kwargs)
            if result is not None:
                changing[what] = None
            return result

        return watched

    try:
        for hooked, own, kind, path in hooks:
            for key, hook in own.items():
                hooked[key] = watch(hook, f"forward {kind} {getattr(hook, '__name__', hook)} of {path!r}")
        yield changing
    finally:
        for hooked, own, _, _ in hooks:
            hooked.update(own)


def _can_run(classifier: nn.Module, training: bool) -> bool:
    tensors = [*classifier.parameters(), *classifier.buffers()]
    if any(is_lazy(t) or t.is_meta or type(t).__name__ == "FakeTensor" for t in tensors):
        return False
    # Its statistics are exchanged with other processes, which may be somewhere else now.
    return not (training and any(isinstance(m, nn.SyncBatchNorm) for m in classifier.modules()))


def _make_images(classifier: nn.Module, shape: tuple[int, ...]) -> Tensor:
    tensors = [*classifier.parameters(), *classifier.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.rand((_IMAGES, *shape), generator=generator, device="cpu").to(device, dtype)


def _agree(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    if torch.equal(found, expected):
        return True
    scale = expected.abs().nan_to_num().max() if expected.numel() else 0.0
    rtol = _RTOL.get(expected.dtype, _RTOL_HALF)
    return torch.allclose(found, expected, rtol=0, atol=rtol * float(scale), equal_nan=True)


def _agree_in_double(classifier: nn.Module, graph: Graph, training: bool, images: Tensor) -> bool:
    """Whether it is rounding: a BatchNorm of the few values of small images can raise that to any size."""
    if images.dtype == torch.float64:
        return False
    try:
        precise = deepcopy(classifier).double()
        images = images.double()
        expected = find_logits(_run_alone(precise, training, lambda: precise(images))[0])
        tape: Tape = _run_alone(precise, training, lambda: Tape(precise, graph, images, frozenset()))[0]
        return expected.dtype == torch.float64 and _agree(tape.values[graph.output], expected)
    except Exception:
        return False  # it cannot be copied, or computes in its own precision


def _run_alone(classifier: nn.Module, training: bool, run: Any) -> tuple[Any, bool]:
    """The result of a run in a mode that leaves no trace, and whether it drew random numbers."""
    devices = sorted({t.device for t in classifier.parameters() if t.device.type == "cuda"}, key=str)
    with (
        torch.random.fork_rng([device.index or 0 for device in devices]),
        _keep_python_rng(),
        torch.no_grad(),
        training_mode(classifier, training),
        _keep_state(classifier),
    ):
        torch.manual_seed(0)
        before = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
        result = run()
        after = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
        return result, not all(map(torch.equal, before, after))


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
def _keep_state(classifier: nn.Module) -> Iterator[None]:
    """Let the modules work on copies of their buffers and other tensors, and forget what they assign."""
    copies: dict[int, Tensor] = {}

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            return copies.setdefault(id(value), value.detach().clone() if value.grad_fn is None else value)
        return value

    saved = [(m, dict(m.__dict__)) for m in classifier.modules()]
    containers = [
        (value, value.copy())
        for _, attributes in saved
        for name, value in attributes.items()
        if isinstance(value, (dict, list, set)) and "hook" not in name
    ]
    try:
        for m, attributes in saved:
            for name, value in attributes.items():
                if isinstance(value, Tensor):
                    m.__dict__[name] = copy(value)
            m._buffers.update({name: copy(value) for name, value in m._buffers.items()})
        yield
    finally:
        for m, attributes in saved:
            for name in set(m.__dict__) - set(attributes):
                del m.__dict__[name]
            m.__dict__.update(attributes)
        for value, content in containers:
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)


def _find_first(classifier: nn.Module, graph: Graph, training: bool, images: Tensor) -> str:
    """The first module whose last output differs from that in the trace, in words."""
    paths = {id(m): path for path, m in classifier.named_modules()}
    outputs: dict[str, tuple[Any, Any]] = {}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if (path := paths.get(id(module))) is not None:
            outputs.pop(path, None)  # in the order of the last calls
            first = next((i for i in inputs if isinstance(i, Tensor)), None)
            outputs[path] = (first if first is None else first.clone(), _copy(output))

    def run() -> None:
        handle = register_module_forward_hook(note)
        try:
            classifier(images)
        finally:
            handle.remove()

    _run_alone(classifier, training, run)
    tape: Tape = _run_alone(classifier, training, lambda: Tape(classifier, graph, images, frozenset()))[0]
    for path, (given, output) in outputs.items():
        if not path or not isinstance(output, Tensor):
            continue
        name = f"{path!r} ({type(classifier.get_submodule(path)).__name__})"
        inside = [c.name for c in graph.calls if c.path == path or c.path.startswith(path + ".")]
        if not inside:
            if given is None or not _agree(given, output):
                return f"{name}, which left no call in the trace"
        elif isinstance(value := tape.values[inside[-1]], Tensor) and not _agree(value, output):
            return name
    return f"the classifier itself, {type(classifier).__name__}"


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
