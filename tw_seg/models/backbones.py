"""Image-level classifiers by name: torchvision, timm or a factory of the user's own.

One function, `create_classifier`, turns a name (a string that survives YAML and JSON) into an
``nn.Module`` that maps images (N, C, H, W) to logits (N, K). Weights come from the library that owns the
name, from a local file or from an installed package, see `tw_seg.models.published`,
`tw_seg.models.weights` and `tw_seg.models.bundled`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from tw_seg.errors import InputError
from tw_seg.models.bundled import BUNDLED, read_bundled_weights
from tw_seg.models.by_name import import_object
from tw_seg.models.published import (
    build_from_published_file,
    build_published,
    choose_arguments,
    load_timm,
    load_torchvision,
    warn_of_scaling,
)
from tw_seg.models.weights import WEIGHT_SUFFIXES, find_stem, find_weights_file, load_weights, read_weights

TIMM_PREFIX = "timm/"


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
        encoder_weights: ``None`` (random), a local state dict or checkpoint (``.safetensors``, ``.pth``, ...),
            ``"bundled"`` (of the extra ``weights``, for ``"timm/tf_efficientnet_lite0"``; images scaled to [-1, 1]), or
            a name of the library: torchvision ``"IMAGENET1K_V1"``, timm tag ``"c3_in1k"``; ``"DEFAULT"`` in both.
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
    if encoder_weights == BUNDLED:
        state = read_bundled_weights(encoder_name)
        model = create_classifier(encoder_name, in_channels=in_channels, classes=classes, encoder_kwargs=kwargs)
        load_weights(model, state, classes=classes, source=f"encoder_weights={BUNDLED!r}")
        return model
    file = find_weights_file(encoder_weights)
    weights_name = None if file else encoder_weights
    if encoder_name.startswith(TIMM_PREFIX):
        name = encoder_name.removeprefix(TIMM_PREFIX)
        return _create_timm_model(name, weights_name, file, in_channels, classes, kwargs)
    if ":" not in encoder_name:
        return _create_torchvision_model(encoder_name, weights_name, file, in_channels, classes, kwargs)
    if weights_name is not None:
        raise InputError(
            f"encoder_weights={weights_name!r}: a factory of your own ({encoder_name}) takes None or a "
            f"local file ({', '.join(WEIGHT_SUFFIXES)}), not a weights name."
        )
    model = _call_factory(encoder_name, in_channels, classes, kwargs)
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
    own = {"num_classes", "in_chans", "in_channels", "pretrained", "weights", "checkpoint_path"}
    taken = own & (encoder_kwargs or {}).keys()
    if taken:
        raise InputError(f"encoder_kwargs must not hold {sorted(taken)}: use encoder_weights, in_channels and classes.")


def _create_torchvision_model(
    name: str, weights: str | None, file: Path | None, in_channels: int, classes: int, kwargs: dict[str, Any]
) -> nn.Module:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        hint = f"Or did you mean '{TIMM_PREFIX}{name}'?" if timm.is_model(name) else _suggest_names(name, names)
        raise InputError(
            f"encoder_name={name!r} is no torchvision classifier. {hint} "
            f"timm's models are '{TIMM_PREFIX}NAME', your own 'package.module:factory'."
        )
    source, state = f"torchvision {name} {weights}", None if file is None else read_weights(file)
    loaded: nn.Module | None = None
    if weights is not None:
        loaded = _load_torchvision_weights(name, weights, kwargs)
    elif file and state is not None:
        source = str(file)
        with _torchvision_errors(name, kwargs):
            loaded = build_from_published_file(name, file, state, kwargs)
    if loaded is not None:
        state, kwargs = loaded.state_dict(), choose_arguments(loaded, kwargs, in_channels)
        del loaded
    with _torchvision_errors(name, kwargs):
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes, **kwargs)
    _set_in_channels(model, in_channels)
    if state is not None:
        load_torchvision(model, state, classes=classes, source=source)
        warn_of_scaling(model, kwargs, source)
    return model


def _load_torchvision_weights(name: str, weights: str, kwargs: Mapping[str, Any]) -> nn.Module:
    members = torchvision.models.get_model_weights(name).__members__  # with aliases such as DEFAULT
    if weights not in members:
        raise InputError(
            f"encoder_weights={weights!r} is unknown for {name}. Use one of {sorted(members)}, a local "
            f"file ({', '.join(WEIGHT_SUFFIXES)}) or None."
        )
    try:
        with _torchvision_errors(name, kwargs):
            return build_published(name, members[weights], kwargs)
    except OSError as error:
        raise InputError(
            f"The weights {weights} of {name} could not be fetched ({error}). Put the file "
            f"{members[weights].url} into {torch.hub.get_dir()}/checkpoints, or give a local file or "
            "None as encoder_weights."
        ) from error
    except RuntimeError as error:  # of load_state_dict, or a file that was fetched in part
        raise InputError(
            f"torchvision {name} {weights} does not fit encoder_kwargs={dict(kwargs)} "
            f"({' '.join(str(error).split())[:1000]}). Check that these are the arguments the weights were made with; "
            "partial weights are not loaded."
        ) from error


@contextmanager
def _torchvision_errors(name: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Name the arguments that torchvision's constructors refuse."""
    try:
        yield
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"torchvision cannot build {name} with encoder_kwargs={dict(kwargs)}: {error}.") from error


def _create_timm_model(
    name: str, weights: str | None, file: Path | None, in_channels: int, classes: int, kwargs: dict[str, Any]
) -> nn.Module:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise InputError(
            f"encoder_name='{TIMM_PREFIX}{name}' is no timm model. {_suggest_names(architecture, timm.list_models())}"
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
    kwargs = {**kwargs, "in_chans": in_channels}
    try:
        model: nn.Module = timm.create_model(name, pretrained=weights is not None, num_classes=classes, **kwargs)
    except (TypeError, ValueError, AssertionError, NotImplementedError, RuntimeError, OSError) as error:
        raise InputError(
            f"timm cannot build {name} with encoder_weights={weights!r}, encoder_kwargs={kwargs} "
            f"({type(error).__name__}: {error}). Without a network, give a local file or None as "
            "encoder_weights."
        ) from error
    if file:
        load_timm(
            model, name, read_weights(file, averages_first=True), classes=classes, source=str(file), kwargs=kwargs
        )
    return model


def _call_factory(name: str, in_channels: int, classes: int, kwargs: dict[str, Any]) -> nn.Module:
    factory = import_object(name, "encoder_name", "'package.module:factory'")
    model = factory(in_channels=in_channels, num_classes=classes, **kwargs)
    if not isinstance(model, nn.Module):
        raise InputError(f"The factory {name!r} must return an nn.Module, got {type(model).__name__}.")
    return model


def _set_in_channels(model: nn.Module, in_channels: int) -> None:
    """Give a torchvision model another number of input channels: its first convolution is made anew."""
    found = find_stem(model)
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


def _suggest_names(name: str, names: list[str]) -> str:
    close = get_close_matches(name, names, n=5, cutoff=0.5)
    return f"Close names: {', '.join(close)}." if close else f"There are {len(names)} names, e.g. {names[0]}."
