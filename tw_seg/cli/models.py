"""A segmentation model that a command was given: of a checkpoint, or made by a function of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from tw_seg.data.layouts.pixels import PixelFormat
from tw_seg.data.loading.transforms import EvalTransform
from tw_seg.errors import InputError
from tw_seg.models.by_name import import_object
from tw_seg.pictures import draw_image
from tw_seg.training.restore import find_checkpoint, load_run

DEFAULT_SIZE = (224,)


class UsedModel(NamedTuple):
    """A model and how its images are made.

    Attributes:
        function: From images (N, 3, H, W) to what the model returns.
        transform: From what was read to images.
        pixels: What pictures are read as.
        class_names: The names of its classes; empty where it does not say.
    """

    function: Callable[..., Any]
    transform: EvalTransform
    pixels: PixelFormat
    class_names: tuple[str, ...]

    def find_module(self, path: str) -> nn.Module:
        """The module at a path inside the model.

        Raises:
            InputError: There is none.
        """
        if not isinstance(self.function, nn.Module):
            raise InputError(
                f"there is no module {path!r} in a plain function: let the factory return a torch.nn.Module"
            )
        try:
            return self.function.get_submodule(path)
        except AttributeError as error:
            names = ", ".join(name for name, _ in self.function.named_children())
            raise InputError(f"there is no module {path!r} in the model ({error}); its parts are {names}") from error

    def read_picture(self, file: Path) -> tuple[np.ndarray, Tensor]:
        """A picture as RGB to look at, uint8 (h, w, 3), and the image that the model gets, (1, C, H, W).

        Raises:
            DataError: The file cannot be read.
        """
        values = self.pixels.read(file, report=lambda text: None)
        image = self.transform(values, None)[0][None]
        return values if self.pixels == PixelFormat() else draw_image(image[0].numpy()), image

    def name_class(self, index: int) -> str:
        """The name of a class, or its number."""
        return self.class_names[index] if index < len(self.class_names) else str(index)


def open_model(
    place: str,
    *,
    size: Sequence[int] | None,
    model_kwargs: Mapping[str, Any] | None,
    part: str | None,
    trust_code: bool,
) -> UsedModel:
    """Open the model at a place.

    Args:
        place: A checkpoint, a run directory, or ``"package.module:factory"``.
        size: Height and width of a factory's images, or one number for both; a checkpoint knows them.
        model_kwargs: Arguments of the factory.
        part: Path of the module inside the model to use in its place.
        trust_code: Whether code that a checkpoint names may be imported.

    Raises:
        InputError: There is no such model, or an argument does not belong to it.
    """
    if ":" in place and not Path(place).exists():
        factory = import_object(place, "model", "a checkpoint, or 'package.module:factory' of a model")
        function, names = factory(**(model_kwargs or {})), ()
        if not callable(function):
            raise InputError(f"{place} must return a model, it returned {type(function).__name__}")
        size = tuple(size or DEFAULT_SIZE)
        used = UsedModel(function, EvalTransform(size[0] if len(size) == 1 else size), PixelFormat(), names)
    else:
        if size is not None or model_kwargs is not None:
            raise InputError("--size and --model_kwargs belong to a factory: a checkpoint knows both")
        task, data = load_run(find_checkpoint(Path(place)), trust_code=trust_code)
        if not task.makes_masks:
            raise InputError(f"{place} is an image-level classifier, which makes no masks: give a segmentation model")
        used = UsedModel(task.model, data.eval_transform, data.pixels, task.class_names)
    return used if part is None else used._replace(function=used.find_module(part))
