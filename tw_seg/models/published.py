"""Weights as torchvision and timm publish them, loaded by their own constructors and loaders.

These do more than ``load_state_dict``: they rename keys, leave auxiliary heads out, scale the images anew and resize
what depends on the size of the images. All of it is done here by calling them.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import timm
import torch
import torchvision
from timm.models import clean_state_dict
from torch import Tensor, nn
from torchvision.models import VisionTransformer, WeightsEnum, densenet
from torchvision.models.vision_transformer import interpolate_embeddings

from tw_seg.errors import InputError
from tw_seg.models.weights import COUNTER, copy_state, find_stem, load_weights, remove_prefix

log = logging.getLogger(__name__)

CHOSEN_BY_WEIGHTS = ("aux_logits", "transform_input", "image_size")
"""Arguments of torchvision's constructors that they choose by the weights, kept as attributes of the model."""


def build_published(name: str, weights: WeightsEnum, kwargs: Mapping[str, Any]) -> nn.Module:
    """What torchvision's own constructor makes of the weights, with their number of classes and three channels."""
    # It refuses to leave these as wanted; `choose_arguments` and `load_torchvision` see to it afterwards.
    kwargs = {key: value for key, value in kwargs.items() if key != "image_size" and (key, value) != _NO_AUX}
    with torch.random.fork_rng(devices=[]):  # its random weights are overwritten: draw them unnoticed
        model: nn.Module = torchvision.models.get_model(name, weights=weights, **kwargs)
    return model


_NO_AUX = ("aux_logits", False)


def choose_arguments(published: nn.Module, kwargs: Mapping[str, Any], in_channels: int) -> dict[str, Any]:
    """``kwargs`` with what torchvision's constructor chose for published weights, where the user chose nothing."""
    chosen = {key: getattr(published, key) for key in CHOSEN_BY_WEIGHTS if hasattr(published, key)}
    if "transform_input" in chosen:
        chosen["init_weights"] = False  # slow, and of the loaded weights nothing would be left
        if in_channels != 3:
            chosen["transform_input"] = False
            log.warning(
                "%s of torchvision scales RGB images anew; with %d channels it does not: give images scaled to -1..1.",
                type(published).__name__,
                in_channels,
            )
    return {**chosen, **kwargs}


def depends_on_weights(encoder_name: str) -> bool:
    """Whether torchvision's constructor chooses arguments of this model by its weights, which a state dict lacks."""
    if encoder_name not in torchvision.models.list_models(module=torchvision.models):
        return False
    with (
        torch.device("meta"),
        warnings.catch_warnings(action="ignore", category=FutureWarning),
    ):  # of its random weights
        model = torchvision.models.get_model(encoder_name, weights=None)
    return any(hasattr(model, key) for key in CHOSEN_BY_WEIGHTS)


def build_from_published_file(
    name: str, file: Path, state: Mapping[str, Tensor], kwargs: Mapping[str, Any]
) -> nn.Module | None:
    """What torchvision's own constructor makes of a file that has the name under which torchvision publishes it.

    ``None`` if the name is another one, or the file no longer holds the published architecture.
    """
    for member in torchvision.models.get_model_weights(name):
        if PurePosixPath(member.url).name == file.name:
            local: WeightsEnum = object.__new__(type(member))  # an enumeration takes no further members
            local.__dict__.update(vars(member), get_state_dict=lambda *args, **kwargs: copy_state(state))
            try:
                model = build_published(name, local, kwargs)
            except RuntimeError:
                return None
            log.info("%s is a file of torchvision (%s): loaded by its constructor.", file, member)
            return model
    return None


def load_torchvision(model: nn.Module, state: Mapping[str, Tensor], *, classes: int, source: str) -> None:
    """Load a state dict of a torchvision model, also with the old names of DenseNet or positions of another size.

    Args:
        model: Changed in place, and only if everything fits.
        state: Of its published file, of torchvision's constructor or of ``state_dict()``.
        classes: See `tw_seg.models.weights.load_weights`.
        source: Where ``state`` comes from, for messages.

    Raises:
        InputError: Keys are missing, unexpected or of another shape.
    """
    state = remove_prefix(model, state, source=source)
    if isinstance(model, torchvision.models.DenseNet):
        state = copy_state(_rename_densenet(state))
    if isinstance(model, VisionTransformer):
        _resize_positions(model, state, source)
    for key in [key for key in state if getattr(model, key.partition(".")[0], key) is None]:
        del state[key]  # an auxiliary head that the model was made without
    load_weights(model, state, classes=classes, source=source)


def warn_of_scaling(model: nn.Module, kwargs: Mapping[str, Any], source: str) -> None:
    """Say that a file does not tell whether its GoogLeNet or Inception scales the images anew."""
    if "transform_input" not in kwargs and getattr(model, "transform_input", None) is False:
        log.warning(
            "%s: %s does not scale its images anew. If the weights come from torchvision's published ones, give "
            "encoder_kwargs={'transform_input': True}, as its constructor does for those.",
            source,
            type(model).__name__,
        )


def load_timm(
    model: nn.Module, name: str, state: Mapping[str, Tensor], *, classes: int, source: str, kwargs: Mapping[str, Any]
) -> None:
    """Load a state dict of a timm model, in timm's own form or in another that timm's loader knows.

    Args:
        model: As ``timm.create_model`` made it; changed in place, and only if everything fits.
        name: Its name in timm.
        state: Under timm's names, or those of the model's first publication, or for images of another size.
        classes: See `tw_seg.models.weights.load_weights`.
        source: Where ``state`` comes from, for messages.
        kwargs: Arguments of ``timm.create_model``, ``in_chans`` among them.

    Raises:
        InputError: Neither this package nor timm's loader can load it; says what of it does not fit ``model``.
    """
    try:
        load_weights(model, state, classes=classes, source=source)
        return
    except InputError as error:
        misfit = error
    state = clean_state_dict(remove_prefix(model, state, source=source))
    try:
        loaded = _build_by_timm(model, name, state, kwargs)
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError, IndexError, AttributeError) as refusal:
        reason = " ".join(str(refusal).split())[:200]
        raise InputError(f"{misfit} timm's own loader cannot ({type(refusal).__name__}: {reason}).") from misfit
    log.info("%s is not in timm's present form: timm's own loader has converted it.", source)
    load_weights(model, loaded.state_dict(), classes=classes, source=source)


def _build_by_timm(model: nn.Module, name: str, state: Mapping[str, Tensor], kwargs: Mapping[str, Any]) -> nn.Module:
    """What timm's own loader makes of ``state``: a model with its number of classes."""
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    classes = _count_classes(model, state, config)
    stem = find_stem(model)
    weight = state.get(f"{stem[0]}.weight") if stem else None
    channels = config["input_size"][0]
    if weight is not None and weight.ndim == 4 and weight.shape[1] == kwargs["in_chans"]:
        channels = kwargs["in_chans"]
    overlay = {
        **kwargs.get("pretrained_cfg_overlay", {}),
        "state_dict": dict(state),
        "num_classes": classes,
        "input_size": (channels, *config["input_size"][1:]),
        "custom_load": False,
    }
    arguments = {**kwargs, "pretrained_cfg_overlay": overlay, "num_classes": classes, "pretrained": True}
    with torch.random.fork_rng(devices=[]):
        try:
            return _call_timm(name, {**arguments, "pretrained_strict": True})
        except TypeError as error:
            if "pretrained_strict" not in str(error):
                raise
        # A model that timm always loads in part: what the two do not share may only be too much in the file.
        loaded = _call_timm(name, arguments)
    missing = [key for key in loaded.state_dict() if key not in state and not key.endswith(COUNTER)]
    if missing:
        raise RuntimeError(f"it would leave {len(missing)} keys random")
    return loaded


def _call_timm(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    model: nn.Module = timm.create_model(name, **arguments)
    return model


def _count_classes(model: nn.Module, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> int:
    """The number of classes of ``state``, whose head may have an older name."""
    names = config.get("classifier") or ()
    own = model.state_dict()
    for name in [names] if isinstance(names, str) else names:
        expected = own.get(f"{name}.weight")
        for key, value in state.items():
            path, _, last = key.rpartition(".")
            is_head = path == name or not set(path.split(".")).isdisjoint(name.split("."))
            if expected is not None and last == "weight" and is_head and value.shape[1:] == expected.shape[1:]:
                return len(value)
    return int(config["num_classes"])


class _DenseNetFile:
    """In torchvision's loader of DenseNets both the weights and the model: it renames keys and loads nothing."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def get_state_dict(self, **kwargs: Any) -> dict[str, Tensor]:
        return copy_state(self.state)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.state = state


def _rename_densenet(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    file: Any = _DenseNetFile(state)
    densenet._load_state_dict(model=file, weights=file, progress=False)
    renamed: Mapping[str, Tensor] = file.state
    return renamed


def _resize_positions(model: VisionTransformer, state: dict[str, Tensor], source: str) -> None:
    key = "encoder.pos_embedding"
    found = state.get(key)
    if found is None or found.ndim != 3 or found.shape[1] == model.seq_length:
        return
    log.info("%s: positions of %d patches are interpolated to %d.", source, found.shape[1], model.seq_length)
    try:
        state[key] = interpolate_embeddings(model.image_size, model.patch_size, copy_state({key: found}))[key]
    except ValueError as error:
        raise InputError(
            f"{source}: torchvision cannot interpolate {key} {tuple(found.shape)} to images of size "
            f"{model.image_size} ({error}). Give the size the weights were made with as encoder_kwargs image_size."
        ) from error
