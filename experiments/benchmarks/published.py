"""The published unrolled-LRP code, called from a clone of https://github.com/Kainmueller-Lab/TW-autoencoder.

Nothing of it is part of this project. Three things stand between it and a benchmark: its constructor asks torchvision
for pretrained weights, so while it runs torchvision's constructors are wrapped to drop that argument; its package
imports the encoders of its U-Net too, which need a library that is not kept up any more (``pretrainedmodels``), so
only the modules of the unrolled model are imported; and it prints a line for each layer, which is swallowed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn

from experiments.benchmarks.case import Case
from tw_seg.errors import InputError

URL = "https://github.com/Kainmueller-Lab/TW-autoencoder"
MARKER = Path("network", "decoders", "unrolled_lrp", "model.py")
ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "vgg16")


def check_clone(folder: Path | None) -> Path:
    """The folder, if it is a clone of the published code.

    Raises:
        InputError: If there is none.
    """
    if folder is None:
        raise InputError(f"this contender needs --published DIR, a clone of {URL}")
    if not (folder / MARKER).is_file():
        raise InputError(
            f"--published {folder} must be a clone of {URL}, it holds no {MARKER}. Run: git clone {URL} {folder}"
        )
    return folder.resolve()


def published_model(folder: Path | None, case: Case, state: Mapping[str, Tensor]) -> nn.Module:
    """Its model with LRP-epsilon, with the weights of the case.

    Args:
        folder: The clone. Its top-level package ``network`` is imported: one clone a process.
        case: The setting.
        state: State dict of the torchvision classifier.

    Raises:
        InputError: If the folder is not the clone, or for an encoder that it lacks.
    """
    root = check_clone(folder)
    if case.encoder not in ENCODERS:
        raise InputError(f"the published code has the encoders {', '.join(ENCODERS)}, not {case.encoder!r}")
    _bare_package("network", root / "network")
    with _without_pretrained_weights(), contextlib.redirect_stdout(io.StringIO()):
        package: Any = importlib.import_module("network.decoders.unrolled_lrp")
        model: Any = package.Unrolled_lrp(
            encoder_name=case.encoder, classes=case.classes, input_size=(case.size, case.size)
        )
    model.encoder.load_state_dict(state)
    # Its hooks keep the activations of the last run. Those of the constructor's test run give way to small ones:
    # they are no part of the model's memory.
    with torch.no_grad():
        model.eval()(torch.zeros(2, 3, 32, 32), only_classification=True)
    published: nn.Module = model
    return published


def _bare_package(name: str, folder: Path) -> None:
    """Make a package's modules importable without its ``__init__``."""
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package


@contextlib.contextmanager
def _without_pretrained_weights() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in ENCODERS:
            constructor = getattr(torchvision.models, name)
            stack.enter_context(mock.patch.object(torchvision.models, name, _untrained(constructor)))
        yield


def _untrained(constructor: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    @functools.wraps(constructor)
    def build(*args: Any, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return constructor(*args, **kwargs)

    return build
