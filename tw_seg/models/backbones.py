"""Image-level classifiers by name: torchvision, timm or a factory of the user's own.

One function, :func:`create_classifier`, turns a name (a string that survives YAML and JSON) into an
``nn.Module`` that maps images (N, C, H, W) to logits (N, K). Weights come from the library that owns the
name or from a local file; :func:`load_weights` holds the one rule for what a file must contain.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from tw_seg.errors import InputError

log = logging.getLogger(__name__)

TIMM_PREFIX = "timm/"
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")


def create_classifier(
    encoder_name: str,
    encoder_weights: str | None = None,
    *,
    in_channels: int = 3,
    classes: int,
    encoder_kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build an image-level classifier.

    Args:
        encoder_name: ``"resnet18"`` (torchvision), ``"timm/resnet10t"`` (timm) or
            ``"package.module:factory"``, called with ``in_channels=, num_classes=`` and ``encoder_kwargs``.
        encoder_weights: ``None`` (random), a local ``.safetensors``/``.pth``/``.pt`` state dict, or a name
            of the library: torchvision ``"IMAGENET1K_V1"``, timm tag ``"c3_in1k"``; ``"DEFAULT"`` in both.
        in_channels: Channels of the images. Weights made for RGB are summed (1 channel) or repeated and
            rescaled (any other number), as timm does.
        classes: Number of logits K, background included.
        encoder_kwargs: Passed to the constructor, for instance ``{"channels": [32, 64, 128, 256]}``.

    Returns:
        The classifier in training mode, images (N, C, H, W) to logits (N, K).

    Raises:
        InputError: Unknown name or weights, an argument the constructor refuses, or a file that does not fit.
    """
    check_encoder(in_channels, classes, encoder_kwargs)
    kwargs = dict(encoder_kwargs or {})
    file = weights_file(encoder_weights)
    weights_name = None if file else encoder_weights
    if encoder_name.startswith(TIMM_PREFIX):
        model = _timm_model(encoder_name.removeprefix(TIMM_PREFIX), weights_name, in_channels, classes, kwargs)
    elif ":" in encoder_name:
        if weights_name is not None:
            raise InputError(
                f"encoder_weights={weights_name!r}: a factory of your own ({encoder_name}) takes None or a "
                f"local file ({', '.join(WEIGHT_SUFFIXES)}), not a weights name."
            )
        model = _own_model(encoder_name, in_channels, classes, kwargs)
    else:
        model = _torchvision_model(encoder_name, weights_name, in_channels, classes, kwargs)
    if file:
        load_weights(model, read_weights(file), classes=classes, source=str(file))
    return model


def check_encoder(in_channels: int, classes: int, encoder_kwargs: Mapping[str, Any] | None) -> None:
    """Check the arguments of an encoder that do not depend on its name.

    Raises:
        InputError: A count below 1, or an entry of ``encoder_kwargs`` that is an argument already.
    """
    if in_channels < 1 or classes < 1:
        raise InputError(f"in_channels and classes must be at least 1, got {in_channels} and {classes}.")
    taken = {"num_classes", "in_chans", "in_channels", "pretrained", "weights"} & (encoder_kwargs or {}).keys()
    if taken:
        raise InputError(f"encoder_kwargs must not hold {sorted(taken)}: use encoder_weights, in_channels and classes.")


def weights_file(encoder_weights: str | None) -> Path | None:
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
    own = model.state_dict()
    head = head_name(model, classes)
    head_keys = [key for key in own if key.startswith(f"{head}.")]
    weight = f"{head}.weight"
    if weight in state and state[weight].shape[0] != classes and state[weight].shape[1:] == own[weight].shape[1:]:
        log.info("%s has %d classes, not %d: its head %r is not loaded.", source, len(state[weight]), classes, head)
        state.update({key: own[key] for key in head_keys})
    _adapt_stem(model, state)
    load_strict(model, state, source=source)


def load_strict(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """``module.load_state_dict(state)`` with one error that names every kind of key that does not fit.

    Raises:
        InputError: The keys or shapes differ; ``module`` is unchanged then.
    """
    own = module.state_dict()
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {kind}: {_shorten(keys)}" for kind, keys in problems.items() if keys)
        raise InputError(
            f"{source} does not fit {type(module).__name__}: of {len(own)} keys, {found}. Check that the "
            "encoder name and its arguments are those the weights were made with; partial weights are not "
            "loaded."
        )
    module.load_state_dict(dict(state))


def head_name(model: nn.Module, classes: int) -> str:
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


def _torchvision_model(
    name: str, weights: str | None, in_channels: int, classes: int, kwargs: dict[str, Any]
) -> nn.Module:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        hint = f"Or did you mean '{TIMM_PREFIX}{name}'?" if timm.is_model(name) else _suggest(name, names)
        raise InputError(
            f"encoder_name={name!r} is no torchvision classifier. {hint} "
            f"timm's models are '{TIMM_PREFIX}NAME', your own 'package.module:factory'."
        )
    state: Mapping[str, Tensor] = {}
    if weights is not None:
        members = torchvision.models.get_model_weights(name).__members__  # with aliases such as DEFAULT
        if weights not in members:
            raise InputError(
                f"encoder_weights={weights!r} is unknown for {name}. Use one of {sorted(members)}, a local "
                f"file ({', '.join(WEIGHT_SUFFIXES)}) or None."
            )
        try:
            state = members[weights].get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise InputError(
                f"The weights {weights} of {name} could not be fetched ({error}). Put the file "
                f"{members[weights].url} into {torch.hub.get_dir()}/checkpoints, or give a local file or "
                "None as encoder_weights."
            ) from error
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **kwargs)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"torchvision cannot build {name} with encoder_kwargs={kwargs}: {error}.") from error
    _set_in_channels(model, in_channels)
    if state:
        load_weights(model, state, classes=classes, source=f"torchvision {name} {weights}")
    return model


def _timm_model(name: str, weights: str | None, in_channels: int, classes: int, kwargs: dict[str, Any]) -> nn.Module:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise InputError(
            f"encoder_name='{TIMM_PREFIX}{name}' is no timm model. {_suggest(architecture, timm.list_models())}"
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise InputError(f"encoder_name='{TIMM_PREFIX}{name}': {architecture} has the tags {tags}, not {tag!r}.")
    if weights not in (None, "DEFAULT", tag):
        if weights not in tags or tag:
            raise InputError(
                f"encoder_weights={weights!r} is unknown for '{TIMM_PREFIX}{name}'. Use 'DEFAULT', one of "
                f"{[tag] if tag else tags}, a local file ({', '.join(WEIGHT_SUFFIXES)}) or None."
            )
        name = f"{architecture}.{weights}"
    try:
        return timm.create_model(
            name, pretrained=weights is not None, in_chans=in_channels, num_classes=classes, **kwargs
        )
    except (TypeError, ValueError, AssertionError, NotImplementedError, RuntimeError, OSError) as error:
        raise InputError(
            f"timm cannot build {name} with encoder_weights={weights!r}, encoder_kwargs={kwargs} "
            f"({type(error).__name__}: {error}). Without a network, give a local file or None as "
            "encoder_weights."
        ) from error


def import_place(place: str, argument: str, form: str) -> Any:
    """What stands at ``"package.module:NAME"``.

    Args:
        place: Where it is.
        argument: Name of the argument that gave the place, for the message.
        form: What the place must be, likewise.

    Raises:
        InputError: If it cannot be imported.
    """
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{argument}={place!r} must be {form} and importable: {error}. Install your package or put its folder on "
            "PYTHONPATH."
        ) from error


def _own_model(name: str, in_channels: int, classes: int, kwargs: dict[str, Any]) -> nn.Module:
    factory = import_place(name, "encoder_name", "'package.module:factory'")
    model = factory(in_channels=in_channels, num_classes=classes, **kwargs)
    if not isinstance(model, nn.Module):
        raise InputError(f"The factory {name!r} must return an nn.Module, got {type(model).__name__}.")
    return model


def _stem(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """The first convolution in definition order: the layer that reads the images."""
    convs = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return next(convs, None)


def _set_in_channels(model: nn.Module, in_channels: int) -> None:
    """Give a torchvision model another number of input channels: its first convolution is made anew."""
    found = _stem(model)
    if in_channels == 3 or found is None:
        return
    name, old = found
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        kernel_size=old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        dilation=old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def _adapt_stem(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Turn RGB stem weights in ``state`` into weights for the model's number of input channels."""
    found = _stem(model)
    if found is None:
        return
    key, channels = f"{found[0]}.weight", found[1].in_channels
    if key in state and channels != 3 and state[key].ndim == 4 and state[key].shape[1] == 3:
        state[key] = adapt_input_conv(channels, state[key])


def _suggest(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=5, cutoff=0.5)
    return f"Close names: {', '.join(close)}." if close else f"There are {len(names)} names, e.g. {names[0]}."


def _shorten(keys: list[str], limit: int = 6) -> str:
    return ", ".join(keys[:limit]) + (f", ... ({len(keys) - limit} more)" if len(keys) > limit else "")
