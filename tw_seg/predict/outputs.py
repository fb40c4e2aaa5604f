"""The files of one predicted picture: its mask, an overlay, heatmaps and probabilities of pixels; and its row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tw_seg.errors import InputError
from tw_seg.files import Draft, file_name
from tw_seg.pictures import draw_overlay, save_mask, save_picture
from tw_seg.predict.blend import Strip

OUTPUTS = {"masks": ".png", "overlays": ".png", "heatmaps": ".npy", "probabilities": ".npy"}
"""What may be written of each picture: folders, with the suffix of their files."""

PIXELS = "pixels/"
"""Beginning of the names of the columns that count a mask's pixels of a class."""

_LARGEST = float(np.finfo(np.float16).max)


def check_outputs(outputs: Sequence[str]) -> tuple[str, ...]:
    """The outputs in order, each once.

    Raises:
        InputError: For an unknown one, or none.
    """
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs:
        raise InputError(f"outputs must be some of {', '.join(OUTPUTS)}, got {', '.join(map(repr, unknown)) or 'none'}")
    return tuple(name for name in OUTPUTS if name in outputs)


class PictureFiles:
    """Takes the strips of one picture, and writes its files.

    ``masks/<name>.png`` is a palette PNG of class ids, ``overlays/<name>.png`` the mask over the picture, in small;
    ``heatmaps/<name>.npy`` are mask logits and ``probabilities/<name>.npy`` their softmax, float16, (K, h, w), written
    strip by strip.

    Args:
        folder: The folder of all predictions.
        name: Of the picture.
        size: Its height and width.
        outputs: What is written, of `OUTPUTS`.
        classes: The class names.
    """

    def __init__(
        self, folder: Path, name: str, *, size: tuple[int, int], outputs: Sequence[str], classes: Sequence[str]
    ) -> None:
        self._paths = {output: find_output(folder, output, name) for output in outputs}
        self._name, self._size, self._classes = name, size, tuple(classes)
        self._mask = np.zeros(size, dtype=np.uint8)
        self._pixels = np.zeros(len(classes), dtype=np.int64)
        self._maps: dict[str, tuple[Draft, np.ndarray]] = {}
        self._has_strips = False

    def add(self, strip: Strip) -> None:
        """Take some rows."""
        self._has_strips = True
        rows = slice(strip.top, strip.top + strip.logits.shape[1])
        part = strip.logits.argmax(0).to(torch.uint8).cpu().numpy()
        self._mask[rows] = part
        self._pixels += np.bincount(part.ravel(), minlength=len(self._classes))
        if "heatmaps" in self._paths:
            values = strip.logits.clamp(-_LARGEST, _LARGEST)
            self._open_map("heatmaps")[:, rows] = values.half().cpu().numpy()
        if "probabilities" in self._paths:
            self._open_map("probabilities")[:, rows] = strip.logits.softmax(0).half().cpu().numpy()

    def write(
        self, probabilities: Sequence[float], thumbnail: np.ndarray | None, *, trust: float | None = None
    ) -> dict[str, Any]:
        """Write the files, each whole.

        Args:
            probabilities: Image-level probability of each class.
            thumbnail: Every n-th pixel of the picture, for the overlay.
            trust: How far the mask can be trusted, if it was rated.

        Returns:
            The picture's row of the table: see `describe_picture`.
        """
        if self._has_strips:
            if "masks" in self._paths:
                save_mask(self._paths["masks"], self._mask)
            if "overlays" in self._paths and thumbnail is not None:
                step = -(-self._size[0] // thumbnail.shape[0])
                save_picture(self._paths["overlays"], draw_overlay(thumbnail, self._mask[::step, ::step]))
            for draft, map_ in self._maps.values():
                map_.flush()  # type: ignore[attr-defined]
                draft.keep()
        self.discard()
        pixels = self._pixels.tolist() if self._has_strips else None
        return describe_picture(
            self._name, self._size, self._classes, probabilities=probabilities, pixels=pixels, trust=trust
        )

    def discard(self) -> None:
        """Remove what was begun and not written."""
        for draft, _ in self._maps.values():
            draft.discard()
        self._maps = {}

    def _open_map(self, output: str) -> np.ndarray:
        if output not in self._maps:
            draft = Draft(self._paths[output])
            shape = (len(self._classes), *self._size)
            self._maps[output] = draft, np.lib.format.open_memmap(draft.path, "w+", np.float16, shape)
        return self._maps[output][1]


def find_output(folder: Path, output: str, name: str) -> Path:
    """The file of an output of a picture."""
    return folder / output / file_name(name, OUTPUTS[output])


def describe_picture(
    name: str,
    size: tuple[int, int],
    classes: Sequence[str],
    *,
    probabilities: Sequence[float],
    pixels: Sequence[int] | None,
    trust: float | None = None,
) -> dict[str, Any]:
    """A picture's row of the table: what stands in which column.

    Args:
        name: Of the picture.
        size: Height and width.
        classes: The class names.
        probabilities: Image-level probability of each class.
        pixels: Pixels of each class in the mask; ``None`` of a model without masks.
        trust: How far the mask can be trusted; ``None`` if it was not rated.

    Returns:
        ``image``, ``height``, ``width``, perhaps ``trust``, ``probability/<class>`` and ``pixels/<class>``. Further
        scores of a picture get their columns here.
    """
    row: dict[str, Any] = {"image": name, "height": size[0], "width": size[1]}
    if trust is not None:
        row["trust"] = round(trust, 6)
    row |= {f"probability/{k}": round(float(p), 6) for k, p in zip(classes, probabilities, strict=True)}
    if pixels is not None:
        row |= {f"{PIXELS}{k}": count for k, count in zip(classes, pixels, strict=True)}
    return row
