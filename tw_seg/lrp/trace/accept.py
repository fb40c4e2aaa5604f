"""Classifiers that cannot be traced as they are, with what to pass instead; and warnings of others."""

from __future__ import annotations

import warnings
from collections.abc import Container
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from tw_seg.errors import InputError, TraceError
from tw_seg.lrp.core.graph import Graph
from tw_seg.lrp.trace.hooks import find_backward_hooks


def check_classifier(classifier: Any, kept: Container[Any] = ()) -> None:
    """Refuse what is no module, and modules whose forward is not Python code that runs on float tensors.

    Args:
        classifier: What a user gave.
        kept: Classes of modules that have a rule of the user, whatever they are.

    Raises:
        InputError: For what is no module.
        TraceError: For a module that is lazy, compiled, scripted or quantised.
    """
    if isinstance(classifier, type):
        raise InputError(f"the classifier must be a module, got the class {classifier.__name__}: call it first")
    if isinstance(classifier, str):
        raise InputError(
            f"the classifier must be a torch.nn.Module, got {classifier!r}: make it first, for example with "
            f"getattr(torchvision.models, {classifier!r})()"
        )
    if not isinstance(classifier, nn.Module):
        raise InputError(
            f"the classifier must be a torch.nn.Module, got {classifier!r} ({type(classifier).__name__}): pass the "
            "module that it calls, or write it as the forward of one"
        )
    for path, module in classifier.named_modules():
        if type(module) in kept:
            continue
        name = f"classifier.{path}" if path else "the classifier"
        if any(is_lazy(p) for p in (*module._parameters.values(), *module._buffers.values())):
            raise TraceError(
                f"{name} ({type(module).__name__}) is lazy: it has no weights before its first run. Run the classifier "
                "once, classifier(images), before you make the decoder"
            )
        if (original := getattr(module, "_orig_mod", None)) is not None:
            raise TraceError(
                f"{name} is compiled ({type(original).__name__}): use what was compiled in its place, which is "
                f"{'classifier.' + path if path else 'classifier'}._orig_mod, and compile the decoder: "
                "torch.compile(HeatmapDecoder(...))"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"{name} ({type(module).__name__}) is TorchScript, which has no Python code to trace: pass the module "
                "that it was made from, with the same weights: original.load_state_dict(classifier.state_dict())"
            )
        if ".quantized" in type(module).__module__:
            raise TraceError(
                f"{name} ({type(module).__name__}) is quantised, and relevance needs its weights as floating-point "
                "numbers: pass the classifier as it was before it was quantised"
            )


def describe_output(result: Any) -> str | None:
    """What is wrong with the output of a forward, and what to do; ``None`` for a traced tensor."""
    names: list[str] = []
    if isinstance(result, dict):
        names, reading = list(result), "[{!r}]"
    elif isinstance(result, fx.Node) and isinstance(result.target, type) and is_dataclass(result.target):
        names, reading = [*result.target.__dataclass_fields__], ".{}"
    elif isinstance(result, fx.Node):
        return None
    if not names:
        return f"the classifier must return logits, or a tuple that begins with them, not {result}"
    name = "logits" if "logits" in names else names[0]
    return (
        f"the classifier must return logits, or a tuple that begins with them; it returns {', '.join(map(str, names))} "
        "by name. Pass a module around it:\n"
        "class Logits(torch.nn.Module):\n"
        "    def __init__(self, model):\n"
        "        super().__init__()\n"
        "        self.model = model\n"
        "    def forward(self, images):\n"
        f"        return self.model(images){reading.format(name)}\n"
        "HeatmapDecoder(Logits(classifier))"
    )


def warn_of_probabilities(graph: Graph, *, logarithms: bool) -> None:
    """Say that a classifier ends in a sigmoid or softmax: with probabilities for logits all goes on, and means less."""
    call = graph.find_probabilities()
    if call is not None:
        warnings.warn(
            f"the classifier ends in {call.kind} at {call.place} ({call.name!r}): its outputs are made of "
            "probabilities, but seeds and losses expect logits (losses apply a sigmoid themselves, and where a "
            "probability saturates a heatmap vanishes); leave that call out, for example replace the module with "
            "torch.nn.Identity()",
            stacklevel=3,
        )
    if logarithms:
        warnings.warn(
            "the classifier ends in a log_softmax: its outputs are logarithms of probabilities, but seeds and "
            "losses expect logits; leave that call out, for example replace the module with torch.nn.Identity()",
            stacklevel=3,
        )


def warn_of_backward_hooks(classifier: nn.Module) -> None:
    """Say that gradients of logits and heatmaps do not pass backward hooks."""
    if paths := find_backward_hooks(classifier):
        warnings.warn(
            f"the classifier has backward hooks, on {', '.join(paths)}: a decoder runs its layers one by one, and no "
            "gradient of its logits or heatmaps calls them. If they change gradients remove them; if they only watch, "
            "use them with the classifier itself",
            stacklevel=3,
        )
