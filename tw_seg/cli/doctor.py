"""``tw-seg doctor``: can this classifier be decoded, and does relevance arrive where it should?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from tw_seg.cli import COMMANDS
from tw_seg.data.layouts.readers import read_image
from tw_seg.data.loading.transforms import EvalTransform
from tw_seg.errors import InputError
from tw_seg.files import write_text
from tw_seg.lrp import HeatmapDecoder
from tw_seg.lrp.composite import COMPOSITES
from tw_seg.lrp.conservation.diagnose import report
from tw_seg.models.backbones import create_classifier
from tw_seg.models.bundled import find_normalization
from tw_seg.models.segmenter import import_custom_rules
from tw_seg.types import IMAGENET, Normalization

_DESCRIPTION = f"""tw-seg doctor: {COMMANDS["doctor"].summary}. It decodes a few images in evaluation
mode and prints a line for each call from the logits to the read-out: its rule, the relevance at its output and its
inputs, what biases absorb, what is missing, the share of coefficients that are 0 (zero) and how the absolute relevance
grows. The exit status is 0 if all is well, 1 after a violation (relevance that a call loses or makes, that is not
finite, vanishes or explodes), and 2 for a wrong argument or an operation without a rule. Example: tw-seg doctor
timm/resnet10t --composite epsilon_plus --image_size 64 --json doctor.json"""


def run_doctor(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: The arguments, ``doctor`` first.

    Returns:
        Exit status: 0, or 1 after a violation.

    Raises:
        TwSegError: For a wrong argument, or a classifier that cannot be decoded.
        SystemExit: After ``--help``, and for arguments that do not parse.
    """
    given = create_parser().parse_args(args[1:])
    size = _check_size(given.image_size)
    with torch.random.fork_rng(devices=[]):  # weights that are random are the same each time
        torch.manual_seed(0)
        classifier = create_classifier(
            given.model,
            given.weights,
            in_channels=given.in_channels,
            classes=given.num_classes,
            encoder_kwargs=given.encoder_kwargs,
        ).eval()
    normalization = find_normalization(given.weights) or IMAGENET
    if given.images:
        images = _read_images(given.images, given.in_channels, size, normalization)
    else:
        images = _make_noise(given.batch, given.in_channels, size, normalization)
    if given.double:
        classifier, images = classifier.double(), images.double()
    decoder = HeatmapDecoder(
        classifier,
        given.composite,
        composite_kwargs=given.composite_kwargs,
        read_out=given.read_out,
        image_size=size,
        custom_rules=import_custom_rules(given.custom_rules) if given.custom_rules else None,
    ).eval()
    found = report(decoder, images, _choose_classes(given.classes, classifier, images))
    print(found.table())
    if given.json is not None:
        _write(Path(given.json), found.to_json() + "\n")
    return 1 if found.violations else 0


def create_parser() -> ArgumentParser:
    """The parser of the command's arguments."""
    result = ArgumentParser("tw-seg doctor", description=_DESCRIPTION)
    add, mapping = result.add_argument, dict[str, Any] | None
    add("model", help="torchvision's 'resnet18', timm's 'timm/resnet10t' or your own 'package.module:factory'")
    add(
        "--weights",
        metavar="FILE_OR_NAME",
        help="a state dict, bundled or a name such as DEFAULT; none: random",
    )
    add("--encoder_kwargs", type=mapping, metavar="YAML", help="further arguments of the model: '{width_mult: 0.5}'")
    add("--in_channels", type=int, default=3, help="channels of the images")
    add("--num_classes", type=int, default=1000, help="logits of the model")
    add("--composite", default="epsilon", help=f"which rule where, one of {', '.join(COMPOSITES)}")
    add("--composite_kwargs", type=mapping, metavar="YAML", help="its numbers, such as '{epsilon: 0.1}'")
    add("--custom_rules", metavar="PLACE", help="'package.module:NAME' of custom rules, see docs/custom_rule.md")
    add("--read_out", type=float | str, nargs="+", default=["input"], help="modules, or depths from 0 to 1")
    add("--image_size", type=int, nargs="+", default=[224], metavar="PIXELS", help="height and width")
    add(
        "--images",
        nargs="+",
        metavar="FILE",
        help="pictures, resized and normalised as the weights expect, else as for ImageNet; without them noise",
    )
    add("--batch", type=int, default=2, help="number of noise images, always the same")
    add("--classes", metavar="0,3", help="classes to decode; without it those that the model predicts")
    add("--double", action="store_true", help="compute in float64, which leaves next to no rounding")
    add("--json", metavar="FILE", help="write the whole report there, too")
    return result


def _check_size(numbers: Sequence[int]) -> tuple[int, int]:
    if len(numbers) > 2 or min(numbers) < 1:
        raise InputError(f"--image_size must be one or two positive numbers, height first, got {list(numbers)}")
    return numbers[0], numbers[-1]


def _choose_classes(text: str | None, classifier: nn.Module, images: Tensor) -> list[int]:
    """The classes that were asked for, or those that the classifier finds likeliest."""
    try:
        with torch.no_grad():
            logits = classifier(images)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise InputError(
            f"{type(classifier).__name__} cannot classify images of shape {tuple(images.shape)} ({error}); change "
            "--image_size or --in_channels"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"the classifier must return logits of shape (N, K), it returned {found}")
    if text is None:
        return sorted(set(logits.argmax(1).tolist()))
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"--classes must be numbers such as 0,3, got {text!r}") from None


def _make_noise(number: int, channels: int, size: tuple[int, int], normalization: Normalization) -> Tensor:
    """Noise in the range of normalised images, which rules with bounds may count on."""
    if number < 1 or channels < 1:
        raise InputError(f"--batch and --in_channels must be at least 1, got {number} and {channels}")
    pixels = torch.rand(number, channels, *size, generator=torch.Generator().manual_seed(0))
    if channels != len(normalization.mean):
        return 4 * pixels - 2
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in normalization)
    return (pixels - mean) / std


def _read_images(files: Sequence[str], channels: int, size: tuple[int, int], normalization: Normalization) -> Tensor:
    if channels != len(normalization.mean):
        raise InputError(f"--images are read in {len(normalization.mean)} colours, the model takes {channels} channels")
    transform = EvalTransform(size, mean=normalization.mean, std=normalization.std)
    return torch.stack([transform(read_image(Path(file)), None)[0] for file in files])


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError(f"--json {path} cannot be written: {error}") from error
