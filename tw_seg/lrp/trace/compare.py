"""Whether a trace computes what the classifier computes: both are run once on the same random images.

A trace runs the forward with stand-ins for tensors. What asks for their type, and a hook that the trace does not see,
takes another way there without a message; here the difference is seen.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from tw_seg.errors import TraceError, TwSegError
from tw_seg.lrp.core.graph import Graph
from tw_seg.lrp.core.tape import Tape
from tw_seg.lrp.trace.layer_runs import LayerRuns
from tw_seg.lrp.trace.trial import Trial

_RTOL = {torch.float64: 1e-9, torch.float32: 1e-4}
_RTOL_HALF = 3e-2
"""Of the largest logit. Both run the same kernels: nearly always their logits are equal to the last bit."""


def compare(
    classifier: nn.Module,
    graph: Graph,
    training: bool | None,
    image_shape: tuple[int, ...],
    wanted: frozenset[str] = frozenset(),
) -> Tensor | None:
    """Compare the logits of a trace with the classifier's own, on random images that change nothing of either.

    In training mode random numbers may be drawn in another order; then nothing can be said, and nothing is.

    Args:
        classifier: The classifier.
        graph: Its trace in that mode.
        training: Whether it is the trace of training mode; ``None``: of the modules' own modes.
        image_shape: (C, H, W) at which the forward was traced.
        wanted: The calls whose coefficients a decode needs: those that mix the images of a batch are refused.

    Returns:
        The logits of some images; ``None`` where the classifier cannot be run on such images now.

    Raises:
        TraceError: Naming the first module whose output differs.
        UnsupportedOpError: If a call mixes the images of a batch.
    """
    trial = Trial(classifier, training)
    if not trial.is_possible:
        return None
    for images in trial.make_images(image_shape, graph.specialised):
        layers = LayerRuns(classifier, graph)
        try:
            expected, drawn = trial.run(partial(layers.record, images))
        except Exception:
            continue  # too small, or not of this size
        logits = find_logits(expected)
        if len(images) == 1 and isinstance(logits, Tensor) and logits.shape[:1] != (1,):
            continue  # a `squeeze()` takes the batch axis of a single image away
        found = _compare_on(trial, graph, images, expected, drawn, layers, wanted)
        if graph.asks_for_gradients and found is not None and not drawn:
            _compare_with_gradients(trial, images, found)
        return found
    return None


def _compare_with_gradients(trial: Trial, images: Tensor, expected: Tensor) -> None:
    """Refuse a forward that asks for ``requires_grad`` and computes something else where the answer is yes."""
    try:
        output = trial.run(lambda: trial.classifier(images.clone().requires_grad_().clone()), gradients=True)[0]
    except Exception:
        return  # no gradient passes it: so it does for whoever uses it
    found = find_logits(output).detach()
    if not _agree(found, expected):
        raise TraceError(
            f"{type(trial.classifier).__name__} computes other logits where its images or weights require a gradient: "
            "its forward asks for requires_grad, which a trace answers with False. Compute the same with and without, "
            "or choose by an argument or the training mode"
        )


def _compare_on(
    trial: Trial, graph: Graph, images: Tensor, expected: Any, drawn: bool, layers: LayerRuns, wanted: frozenset[str]
) -> Tensor | None:
    classifier = trial.classifier
    expected = find_logits(expected)
    if not isinstance(expected, Tensor):
        return None  # the trace has said so
    try:
        tape = trial.run(lambda: _run_tape(classifier, graph, images, layers, wanted))[0]
    except TwSegError:
        raise
    except Exception as error:
        raise TraceError(
            f"{type(classifier).__name__} runs on images of shape {tuple(images.shape)}, its trace does not "
            f"({type(error).__name__}: {error}). {_REMEDY}"
        ) from error
    found: Tensor = tape.values[graph.output]
    if drawn or _agree(found, expected):
        return expected
    if found.dtype == expected.dtype and _agree_in_double(trial, graph, images):
        return expected
    place = _find_first(trial, graph, images)
    mode = "training" if trial.training else "evaluation"
    if found.shape != expected.shape:
        what = f"in shape, {tuple(found.shape)}"
    elif found.dtype != expected.dtype:
        what = f"in type, {found.dtype} instead of {expected.dtype}; put autocast around the decoder"
    else:
        what = f"by up to {float((found.double() - expected.double()).abs().max()):.2g}"
    raise TraceError(
        f"the trace of {type(classifier).__name__} in {mode} mode computes other logits "
        f"than the classifier itself: on random images of shape {tuple(images.shape[1:])} they differ "
        f"{what}. The first module whose output differs is {place}. {_REMEDY}"
    )


_REMEDY = (
    "Tracing runs the forward with stand-ins for tensors: ask for no types there (isinstance, torch.is_tensor, "
    "type(x)), leave transforms of torchvision.transforms.v2 to the data set, and write what a hook "
    "does into a module; "
    "or keep the module whole: HeatmapDecoder(classifier, custom_rules={ModuleClass: rule}), see docs/custom_rule.md"
)


def _run_tape(classifier: nn.Module, graph: Graph, images: Tensor, layers: LayerRuns, wanted: frozenset[str]) -> Tape:
    layers.replay()
    return Tape(classifier, graph, images, wanted)


def find_logits(output: Any) -> Any:
    """The logits of what a classifier returns: the output itself, or the first of several."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def _agree(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if torch.equal(found, expected):
        return True
    scale = expected.abs().nan_to_num().max() if expected.numel() else 0.0
    rtol = _RTOL.get(expected.dtype, _RTOL_HALF)
    return torch.allclose(found, expected, rtol=0, atol=rtol * float(scale), equal_nan=True)


def _agree_in_double(trial: Trial, graph: Graph, images: Tensor) -> bool:
    """Whether it is rounding: a BatchNorm of the few values of small images can raise that to any size."""
    if images.dtype == torch.float64:
        return False
    try:
        precise, images = Trial(deepcopy(trial.classifier).double(), trial.training), images.double()
        expected = find_logits(precise.run(lambda: precise.classifier(images))[0])
        tape: Tape = precise.run(lambda: Tape(precise.classifier, graph, images, frozenset()))[0]
        return expected.dtype == torch.float64 and _agree(tape.values[graph.output], expected)
    except Exception:
        return False  # it cannot be copied, or computes in its own precision


def _find_first(trial: Trial, graph: Graph, images: Tensor) -> str:
    """The first module whose last output differs from that in the trace, in words."""
    classifier = trial.classifier
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

    trial.run(run)
    tape: Tape = trial.run(lambda: Tape(classifier, graph, images, frozenset()))[0]
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
