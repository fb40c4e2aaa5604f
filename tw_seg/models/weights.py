"""Weights of a classifier: where they are, how they are read, and what of them must fit.

Beyond what ``load_state_dict`` does, `load_weights` accepts a head of another class count, an RGB stem on another
number of channels, a prefix before all keys and missing counters of BatchNorm. What a library's own loader does is in
`tw_seg.models.published`.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from tw_seg.errors import InputError
from tw_seg.plain_files import parse_json
from tw_seg.torch_files import read_torch_file
from tw_seg.types import Normalization

log = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
COUNTER = "num_batches_tracked"
AVERAGES_FIRST = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Entries of a checkpoint in the order in which timm's loader takes one of them."""


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


def read_weights(path: str | Path, *, averages_first: bool = False) -> dict[str, Tensor]:
    """Read a state dict onto the CPU, from ``.safetensors`` or (``weights_only=True``) what ``torch.save`` wrote.

    Args:
        path: The file: a state dict, or a checkpoint that holds one beside other entries.
        averages_first: Of a checkpoint with several state dicts take the averaged weights, as timm does; otherwise
            such a file is an error.

    Raises:
        InputError: The file is missing, unreadable or holds no or several state dicts.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"Weights file {path} does not exist. Give the path of a saved state dict.")
    if path.suffix == ".safetensors":
        try:
            found = load_file(path)
        except Exception as error:  # of safetensors and torch, which share no base class
            raise InputError(f"Weights file {path}: cannot be read ({type(error).__name__}: {error}).") from error
    else:
        try:
            found = read_torch_file(path)
        except InputError as error:
            raise InputError(f"Weights file {error}") from error
    if not found:
        raise InputError(
            f"Weights file {path} holds no tensor. Save a state dict: torch.save(model.state_dict(), path)."
        )
    state = found if path.suffix == ".safetensors" else copy_state(_take_state(found, path, averages_first))
    bad = [key for key, value in state.items() if _is_spoiled(value)]
    if bad:
        raise InputError(
            f"Weights file {path} holds NaN or infinity in {len(bad)} tensors, {bad[0]} first: its training diverged; "
            "take an earlier checkpoint."
        )
    return state


NORMALIZATION = "normalization"
"""Key of a safetensors file's metadata: how the images were normalised, as JSON."""


def format_normalization(normalization: Normalization | None) -> dict[str, str]:
    """The metadata of a safetensors file; empty where nothing is known."""
    return {} if normalization is None else {NORMALIZATION: json.dumps(normalization._asdict())}


def read_normalization(path: str | Path) -> Normalization | None:
    """How images were normalised for the weights of a file; ``None`` where it does not say."""
    if Path(path).suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(NORMALIZATION)
    except (OSError, SafetensorError):  # `read_weights` says what is wrong with it
        return None
    if text is None:
        return None
    try:
        numbers = parse_json(text)
        mean, std = (tuple(float(number) for number in numbers[name]) for name in Normalization._fields)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: its metadata {NORMALIZATION!r} is no mean and std ({error}); write it anew"
        ) from error
    return Normalization(mean, std)


def _is_spoiled(value: Tensor) -> bool:
    return value.is_floating_point() and not value.is_meta and not bool(value.isfinite().all())


def copy_state(state: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """A dict of the same tensors that keeps the versions of layers which ``state_dict()`` notes in an attribute."""
    copied = OrderedDict(state)
    _set_metadata(copied, getattr(state, "_metadata", None))
    return copied


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
    state = remove_prefix(model, state, source=source)
    _keep_own_heads(model, state, classes, source)
    _adapt_stem(model, state)
    load_strict(model, state, source=source)


def load_strict(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """``module.load_state_dict(state)`` with one error that names every kind of key that does not fit.

    Whatever the layers do when they are loaded (old names, old versions) holds. A prefix before all keys is removed,
    and counters of BatchNorm that old files lack stay as they are.

    Raises:
        InputError: The keys or shapes differ; ``module`` is unchanged then.
    """
    expected = module.state_dict()
    state = remove_prefix(module, state, source=source)
    for key in expected:
        if key.rpartition(".")[2] == COUNTER:
            state.setdefault(key, expected[key])
    problems = _find_problems(expected, state)
    if not problems and not hasattr(state, "_metadata"):
        # A file without versions whose every tensor fits is of the present version; MNASNet would refuse it.
        _set_metadata(state, getattr(expected, "_metadata", None))
    before = copy_state(expected)
    if problems:  # it may load all the same, after the layers' own renaming
        before.update({key: value.clone() for key, value in expected.items()})
    try:
        module.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        module.load_state_dict(before)
        found = "; ".join(f"{len(keys)} {kind}: {_list_keys(keys)}" for kind, keys in problems.items())
        raise InputError(
            f"{source} does not fit {type(module).__name__}: of {len(expected)} keys, {found or error}. "
            f"{_advise(problems)}"
        ) from error


def remove_prefix(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> OrderedDict[str, Tensor]:
    """A copy of ``state`` without what stands before every key of the module.

    Such prefixes are ``module.`` (DataParallel), ``_orig_mod.`` (torch.compile), ``model.`` (Lightning) or
    ``model.classifier.`` (a checkpoint of tw_seg). The log tells which was removed, and what was left aside.

    Raises:
        InputError: Several prefixes are possible.
    """
    expected = module.state_dict()
    counts: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in expected:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    most = max(counts.values(), default=0)
    prefixes = [prefix for prefix, count in counts.items() if count == most]
    if "" in prefixes or not prefixes or most < len(expected) / 2:
        return copy_state(state)
    if len(prefixes) > 1:
        raise InputError(
            f"{source} holds the weights of {type(module).__name__} more than once, under the prefixes "
            f"{', '.join(map(repr, prefixes))}. Save those with one of these prefixes, without it: "
            "{k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)}."
        )
    prefix = prefixes[0]
    inside = OrderedDict((key.removeprefix(prefix), value) for key, value in state.items() if key.startswith(prefix))
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        path = prefix.removesuffix(".")
        own = {key: value for key, value in versions.items() if f"{key}.".startswith(prefix)}
        _set_metadata(inside, {key.removeprefix(path).removeprefix("."): value for key, value in own.items()})
    others = [key for key in state if not key.startswith(prefix)]
    if others:
        log.warning(
            "%s: the keys with the prefix %r are loaded without it, %d others are not: %s.",
            source,
            prefix,
            len(others),
            _list_keys(others),
        )
    else:
        log.info("%s: all keys begin with the prefix %r, which is left out.", source, prefix)
    return inside


def find_head(model: nn.Module, classes: int) -> str:
    """Qualified name of the layer that makes the logits: the last linear or conv layer with K outputs.

    Raises:
        InputError: There is none.
    """
    heads = _find_layers(model, classes)
    if not heads:
        raise InputError(
            f"{type(model).__name__} has no nn.Linear or nn.Conv2d with {classes} outputs, so its head is "
            "not known. A classifier must end in one layer that makes a logit per class."
        )
    return heads[-1]


def find_stem(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """The first convolution in definition order: the layer that reads the images."""
    convs = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    return next(convs, None)


def _take_state(found: Any, path: Path, averages_first: bool) -> Mapping[str, Tensor]:
    """The state dict that a file is or holds."""
    if _is_state(found):
        state: Mapping[str, Tensor] = found
        return state
    entries = [key for key, value in found.items() if value and _is_state(value)] if isinstance(found, Mapping) else []
    if averages_first:
        entries = [key for key in AVERAGES_FIRST if key in entries][:1] or entries
    if len(entries) > 1:
        raise InputError(
            f"Weights file {path} holds several state dicts: {', '.join(map(repr, entries))}. Save one of them alone, "
            f"torch.load(file, weights_only=True)[{entries[0]!r}], best as .safetensors."
        )
    if not entries:
        raise InputError(
            f"Weights file {path} must hold a flat dict of tensors (a classifier's state_dict()), alone or as an entry "
            f"of a checkpoint, found {type(found).__name__} with "
            f"{list(found)[:5] if isinstance(found, Mapping) else 'no keys'}. "
            "Save classifier.state_dict() alone, best as .safetensors."
        )
    log.info("Weights file %s is a checkpoint: its entry %r is loaded.", path, entries[0])
    return _take_state(found[entries[0]], path, averages_first)


def _is_state(found: Any) -> bool:
    return isinstance(found, Mapping) and all(isinstance(value, Tensor) for value in found.values())


def _find_layers(model: nn.Module, outputs: int) -> list[str]:
    """Linear and convolutional layers with so many outputs."""
    return [
        name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == outputs)
        or (isinstance(module, nn.Conv2d) and module.out_channels == outputs)
    ]


def _keep_own_heads(model: nn.Module, state: dict[str, Tensor], classes: int, source: str) -> None:
    """Put the model's own head into ``state`` where that one counts other classes; auxiliary heads likewise."""
    expected = model.state_dict()
    found = state.get(f"{find_head(model, classes)}.weight")
    if found is None or found.ndim == 0 or len(found) == classes:
        return
    for head in _find_layers(model, classes):
        weight, own = state.get(f"{head}.weight"), expected[f"{head}.weight"]
        if weight is not None and weight.shape == (len(found), *own.shape[1:]):
            log.info("%s: of %d classes, not %d, so the layer %r begins anew", source, len(found), classes, head)
            state.update({key: expected[key] for key in expected if key.startswith(f"{head}.")})


def _adapt_stem(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Turn RGB stem weights in ``state`` into weights for the model's number of input channels."""
    found = find_stem(model)
    if found is None:
        return
    key, channels = f"{found[0]}.weight", found[1].in_channels
    if key in state and channels != 3 and state[key].ndim == 4 and state[key].shape[1] == 3:
        state[key] = adapt_input_conv(channels, state[key])


def _find_problems(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The keys that do not fit, by kind; kinds without any are left out."""
    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in expected
            if key in state and state[key].shape != expected[key].shape
        ],
    }
    return {kind: keys for kind, keys in problems.items() if keys}


def _advise(problems: Mapping[str, list[str]]) -> str:
    """What to do about keys that do not fit."""
    keys = [key for group in problems.values() for key in group]
    if keys and all(key.lower().startswith("aux") for key in keys):
        return (
            "These are auxiliary heads: with torchvision's published weights its constructor leaves those of GoogLeNet "
            "out. Give encoder_kwargs={'aux_logits': False} or True, as the weights were made with."
        )
    if keys and all("pos" in key for key in keys):
        return (
            "These are positions of patches, which depend on the size of the images: give the size the weights were "
            "made with in encoder_kwargs, as 'image_size' (torchvision) or 'img_size' (timm)."
        )
    return (
        "Check that the encoder name and its arguments are those the weights were made with; partial weights are not "
        "loaded."
    )


def _set_metadata(state: OrderedDict[str, Tensor], versions: Any) -> None:
    if versions is not None:
        state._metadata = versions  # type: ignore[attr-defined]


def _list_keys(keys: list[str], limit: int = 6) -> str:
    return ", ".join(keys[:limit]) + (f", ... ({len(keys) - limit} more)" if len(keys) > limit else "")
