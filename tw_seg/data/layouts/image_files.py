"""The base of the data sets on disk: images and masks in files, which are opened when they are asked for."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from tw_seg.data.layouts.colors import ColorTable, read_color_mask
from tw_seg.data.layouts.pixels import RGB, PixelFormat
from tw_seg.data.layouts.readers import read_mask
from tw_seg.types import Sample


class ImageFiles:
    """Images and masks in files. A layout's constructor finds the files and fills the attributes.

    Attributes:
        classes: The class names; index 0 is the background.
        names: The N sample names.
        labels: Image-level multi-hot labels, float32, shape (N, K).
        has_mask: Which images have a mask, bool, shape (N,).
        annotated: Which classes were annotated in each mask, bool, shape (N, K); ``None``: all.
        mask_search: Where masks were looked for, for messages.
        pixels: How image files are read; may be set.
        colors: What the colours of mask files mean; ``None``: they hold class ids.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray
    has_mask: np.ndarray
    annotated: np.ndarray | None = None
    mask_search: str = "no mask was looked for"
    colors: ColorTable | None = None
    pixels: PixelFormat = RGB
    _images: list[Path]
    _masks: list[Path | None]
    _reported = False

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """The image at ``index`` with its mask, if it has one."""
        return self.load(index, mask=True)

    def load(self, index: int, *, mask: bool) -> Sample:
        """The image at ``index``; its mask file is opened only if ``mask`` is true.

        Raises:
            DataError: If a file is unreadable, or the mask does not fit the image or the class list.
        """
        image = self.pixels.read(self._images[index], report=self._report)
        height, width, _ = image.shape
        ids, regions = self._read_annotation(index, (height, width)) if mask and self.has_mask[index] else (None, None)
        return Sample(image, ids, self.labels[index], self.names[index], regions)

    def _report(self, text: str) -> None:
        """Warn of what an image leaves out; of the first image only."""
        if not self._reported:
            self._reported = True
            warnings.warn(f"{text} (other such images of the data set are not named)", stacklevel=2)

    def image_file(self, index: int) -> Path:
        """The file of an image."""
        return self._images[index]

    def is_turned(self, index: int) -> bool:
        """Whether an EXIF tag turns an image at the same size."""
        return self.pixels.read_size(self._images[index])[1]

    def load_mask(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The mask and the regions of an image that has one, see `Sample`; of the image the size is read only.

        Raises:
            DataError: As `load`.
        """
        size, _ = self.pixels.read_size(self._images[index])
        return self._read_annotation(index, size)

    def mask_file(self, index: int) -> Path:
        """The mask file of an image that has one."""
        path = self._masks[index]
        assert path is not None
        return path

    def read_mask_ids(self, index: int) -> tuple[np.ndarray, bool]:
        """The values that the mask at ``index`` holds, also those of regions.

        Returns:
            Whether each of 256 values is there, bool, shape (256,), and whether an EXIF tag turns the image at the same
            size.

        Raises:
            DataError: As `load`; of the image the size is read only.
        """
        size, turned = self.pixels.read_size(self._images[index])
        ids, _ = self._read_annotation(index, size)
        return np.bincount(ids.ravel(), minlength=256) > 0, turned

    def _read_annotation(self, index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Mask and regions of an image that has one, see `Sample`; a layout with boxes and the like makes its own."""
        return self._read_mask(index, size), None

    def _read_mask(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """The mask of an image that has one, uint8, shape ``size``, with class ids and 255."""
        return self._read_ids(self.mask_file(index), size)

    def _read_ids(self, path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
        """The class ids in a mask file, whose ``size`` is checked if it is given."""
        if self.colors is not None:
            return read_color_mask(path, self.colors, shape=size)
        return read_mask(path, num_classes=len(self.classes), shape=size)
