"""Weights of a classifier: where they are, how they are read, and what of them must fit.

The head of another class count and an RGB stem on another number of channels are the only differences that
:func:`load_weights` accepts.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from tw_seg.errors import InputError

log = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")


def find_weights_file(encoder_weights: str | None) -> Path | None:
    """The path if ``encoder_weights`` means a local file; ``None`` for a library's weights name."""
    if encoder_weights is None:
        return None
    path = Path(encoder_weights).expanduser()
    if path.suffix in WEIGHT_SUFFIXES:
        return path
    if len(path.parts) > 1:
        raise InputError(
            f"encoder_weights={encoder_weights!r} looks like a file, but must end with "
            f"{', '.join(WEIGHT_SUFFIXES)}. Save the classifier's state dict with "
            "safetensors.torch.save_file."
        )
    return None


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict onto the CPU, from ``.safetensors`` or (``weights_only=True``) ``.pth``/``.pt``.

    Raises:
        InputError: The file is missing, unreadable or no flat dict of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"Weights file {path} does not exist. Give the path of a saved state dict.")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle, zip and OS errors share no base class
        raise InputError(f"Weights file {path} cannot be read ({type(error).__name__}: {error}).") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"Weights file {path} must hold a flat dict of tensors (a classifier's state_dict()), found "
            f"{type(state).__name__} with {list(state)[:5] if isinstance(state, Mapping) else 'no keys'}. "
            "Save classifier.state_dict() alone, best as .safetensors."
        )
    return dict(state)


def load_weights(model: nn.Module, state: Mapping[str, Tensor], *, classes: int, source: str) -> None:
    """Load a classifier's state dict: a head of another class count is left as it is, all else is strict.

    Args:
        model: Classifier with ``classes`` logits; changed in place, and only if everything fits.
        state: Its state dict. An RGB stem is adapted to the model's input channels.
        classes: Number of logits K of ``model``; tells which layer is the head.
        source: Where ``state`` comes from, for messages.

    Raises:
        InputError: Keys are missing, unexpected or of another shape.
    """
    state = dict(state)
    expected = model.state_dict()
    head = find_head(model, classes)
    head_keys = [key for key in expected if key.startswith(f"{head}.")]
    weight = f"{head}.weight"
    if weight in state and state[weight].shape[0] != classes and state[weight].shape[1:] == expected[weight].shape[1:]:
        log.info("%s has %d classes, not %d: its head %r is not loaded.", source, len(state[weight]), classes, head)
        state.update({key: expected[key] for key in head_keys})
    _adapt_stem(model, state)
    load_strict(model, state, source=source)


def load_strict(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """``module.load_state_dict(state)`` with one error that names every kind of key that does not fit.

    Raises:
        InputError: The keys or shapes differ; ``module`` is unchanged then.
    """
    expected = module.state_dict()
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in expected
            if key in state and state[key].shape != expected[key].shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {kind}: {_list_keys(keys)}" for kind, keys in problems.items() if keys)
        raise InputError(
            f"{source} does not fit {type(module).__name__}: of {len(expected)} keys, {found}. Check that the "
            "encoder name and its arguments are those the weights were made with; partial weights are not "
            "loaded."
        )
    module.load_state_dict(dict(state))


def find_head(model: nn.Module, classes: int) -> str:
    """Qualified name of the layer that makes the logits: the last linear or conv layer with K outputs.

    Raises:
        InputError: There is none.
    """
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.Linear) and module.out_features == classes:
            return name
        if isinstance(module, nn.Conv2d) and module.out_channels == classes:
            return name
    raise InputError(
        f"{type(model).__name__} has no nn.Linear or nn.Conv2d with {classes} outputs, so its head is "
        "not known. A classifier must end in one layer that makes a logit per class."
    )


def find_stem(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """The first convolution in definition order: the layer that reads the images."""
    convs = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return next(convs, None)


def _adapt_stem(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Turn RGB stem weights in ``state`` into weights for the model's number of input channels."""
    found = find_stem(model)
    if found is None:
        return
    key, channels = f"{found[0]}.weight", found[1].in_channels
    if key in state and channels != 3 and state[key].ndim == 4 and state[key].shape[1] == 3:
        state[key] = adapt_input_conv(channels, state[key])


def _list_keys(keys: list[str], limit: int = 6) -> str:
    return ", ".join(keys[:limit]) + (f", ... ({len(keys) - limit} more)" if len(keys) > limit else "")
