"""What one user of the app has: pictures, marks on them, and a copy of the model as soon as it learns."""

from __future__ import annotations

import copy
import inspect
import re
import threading
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tw_seg.app.learn import Learning, learn_corrections
from tw_seg.app.save import CorrectionFolder, SavedPicture
from tw_seg.app.strokes import Stroke, draw_strokes
from tw_seg.data.layouts.pixels import PixelFormat
from tw_seg.data.loading.transforms import resize_image
from tw_seg.errors import DataError, InputError
from tw_seg.explain.reliability.score import ReliabilityScore, rate_batch
from tw_seg.lrp.composite import COMPOSITES
from tw_seg.metrics import predict_masks
from tw_seg.pictures import draw_pixels
from tw_seg.resize import resize_maps
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.restore import find_checkpoint, load_run
from tw_seg.training.task import SegmentationTask
from tw_seg.types import IGNORE_INDEX

LONGEST_SIDE = 1024
"""Larger pictures are shown, marked and saved at this size."""

MOST_PICTURES = 50
"""So many pictures can be open in one session."""

RULES = tuple(
    name
    for name, preset in COMPOSITES.items()
    if all(one.default is not one.empty for one in inspect.signature(preset).parameters.values())
)
"""Relevance rules that need no further numbers."""


class View(NamedTuple):
    """What the model says of a picture.

    Attributes:
        probabilities: Image-level probability of each class, K numbers.
        mask: Class ids, uint8, of the picture's size.
        trust: How likely the mask is good enough; ``None`` without a score.
    """

    probabilities: list[float]
    mask: np.ndarray
    trust: float | None


class Learned(NamedTuple):
    """What learning did to the open picture.

    Attributes:
        before: The mask before, uint8, of the picture's size.
        after: The mask after.
        pictures: How many pictures it learned from.
        steps: How many steps were taken; 0 if all marks were right already.
    """

    before: np.ndarray
    after: np.ndarray
    pictures: int
    steps: int


@dataclass
class Picture:
    """A picture that was opened.

    Attributes:
        pixels: As the model's images are read, uint8, (h, w, C).
        strokes: What was drawn on it.
    """

    pixels: np.ndarray
    strokes: list[Stroke] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def shown(self) -> np.ndarray:
        """As people see it, RGB."""
        return draw_pixels(self.pixels)


class Service:
    """A checkpoint that all users begin with.

    Args:
        task: The trained task.
        data: How its images are prepared.
        out: Where corrections are saved, see :class:`tw_seg.app.save.CorrectionFolder`.
        score: Rates masks, if given.
        learning: How it learns; by default at a tenth of the run's learning rate.

    Attributes:
        class_names: The class names, the background first.
        lock: Held by whoever computes: tracing a network is not safe in several threads, and two users at once would
            only slow each other down.

    Raises:
        InputError: The model makes no masks, or its images are no photographs.
    """

    def __init__(
        self,
        task: SegmentationTask,
        data: SegmentationDataModule,
        *,
        out: Path,
        score: ReliabilityScore | None = None,
        learning: Learning | None = None,
    ) -> None:
        if not task.makes_masks:
            raise InputError("this checkpoint is an image-level classifier, which makes no masks: give another one")
        if task.model.needs_calibration:
            raise InputError(
                "this checkpoint is a training-free model, which chooses its threshold on labelled images: use "
                "tw-seg predict --config, or give a trained one"
            )
        if data.pixels not in (PixelFormat(), PixelFormat(1)):
            raise InputError(
                "the app shows photographs, grey or RGB of 8 bits; this checkpoint's images have "
                f"{data.pixels.channels} channels and the value range {data.pixels.value_range}: use tw-seg predict"
            )
        self.task, self.data, self.out, self.score = task, data, out, score
        self.learning = learning or Learning(lr=task.hparams["lr"] / 10)
        self.class_names = task.class_names
        self.lock = threading.Lock()

    @classmethod
    def load(cls, checkpoint: Path, *, out: Path, trust: Path | None = None, trust_code: bool = False) -> Service:
        """Load a checkpoint, or the best one of a run directory, and a score that ``tw-seg reliability fit`` wrote.

        Args:
            checkpoint: The file or the directory.
            out: Where corrections are saved.
            trust: The score.
            trust_code: Whether code that the checkpoint names may be imported.

        Raises:
            InputError: A file is missing or of another kind.
        """
        score = None if trust is None else ReliabilityScore.load(trust)
        task, data = load_run(find_checkpoint(checkpoint), trust_code=trust_code)
        task.model.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(task, data, out=out, score=score)

    @property
    def can_explain(self) -> bool:
        """Whether heatmaps can be read at other depths and by other rules: whether masks are heatmaps."""
        height, width = self.data.eval_transform.size
        images = torch.zeros((1, self.task.model.in_channels, height, width), device=self.device)
        with self.lock, torch.no_grad():
            return self.task.model.decode_anew(images, len(self.class_names) - 1, read_out=1.0) is not None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.task.model.parameters()).device


class Session:
    """One user's work. Nothing of it is seen by another, and the checkpoint itself never changes.

    Args:
        service: The checkpoint.

    Attributes:
        pictures: All that were opened, by name.
        steps_learned: Steps since the checkpoint.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.pictures: dict[str, Picture] = {}
        self.steps_learned = 0
        self._model = service.task.model
        self._folder = CorrectionFolder(service.out, service.class_names)
        self._open: str | None = None

    @property
    def name(self) -> str:
        """Name of the open picture.

        Raises:
            InputError: None is open.
        """
        if self._open is None:
            raise InputError("there is no picture yet: drop a photograph first")
        return self._open

    @property
    def picture(self) -> Picture:
        """The open picture."""
        return self.pictures[self.name]

    def open_picture(self, path: Path) -> list[str]:
        """Open a file; a picture that was opened before has its marks still.

        Returns:
            What its reader left out, such as transparency.

        Raises:
            DataError: It is no picture that can be read; the message names the file without its folder.
        """
        notes: list[str] = []
        try:
            pixels = self.service.data.pixels.read(path, report=notes.append)
        except DataError as error:
            raise DataError(str(error).replace(str(path), path.name)) from error
        scale = LONGEST_SIDE / max(pixels.shape[:2])
        if scale < 1:
            height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
            pixels = resize_image(pixels, (height, width))
        stem = re.sub(r"[^\w -]+", "_", unicodedata.normalize("NFC", path.stem)).strip("_ ") or "picture"
        name = self._find_name(stem, pixels)
        if name not in self.pictures:
            if len(self.pictures) == MOST_PICTURES:
                raise InputError(f"{MOST_PICTURES} pictures are open: save them, and load the page again for more")
            self.pictures[name] = Picture(pixels)
        self._open = name
        return [note.replace(str(path), path.name) for note in notes]

    def look(self, name: str | None = None) -> View:
        """What the model, as it is now, says of a picture; by default the open one."""
        picture, score = self.pictures[name or self.name], self.service.score
        with self.service.lock, torch.inference_mode():
            images = self._make_images([picture])
            output = self._model(images)
            mask = predict_masks(output.mask_logits, [picture.size])[0]
            trust = None if score is None else float(rate_batch(score, self._model, images, output))
        return View(output.logits[0].float().sigmoid().tolist(), mask.to(torch.uint8).cpu().numpy(), trust)

    @torch.no_grad()
    def explain(self, class_id: int, *, rule: str | None = None, read_out: str | float | None = None) -> np.ndarray:
        """The heatmap of a class in the open picture.

        Args:
            class_id: The class.
            rule: Relevance rules, of :data:`RULES`; ``None``: the model's own.
            read_out: Where it is read: a module's path, or a share of the depth, 0 for the pixels and 1 for the last
                layer; ``None``: where the model does it.

        Returns:
            Signed, float32, of the picture's size.

        Raises:
            TwSegError: There is no such class, rule or place, or this network cannot be read so.
        """
        if class_id not in range(len(self.service.class_names)):
            raise InputError(f"there is no class {class_id!r}")
        if rule is not None and rule not in RULES:
            raise InputError(f"there is no rule {rule!r}: use one of {', '.join(RULES)}")
        picture = self.picture
        with self.service.lock:
            images = self._make_images([picture])
            if rule is None and read_out is None:
                rows = torch.zeros(1, dtype=torch.int64, device=images.device)
                maps = self._model.find_heatmaps(self._model(images), rows)[:, class_id]
            else:
                found = self._model.decode_anew(images, class_id, composite=rule, read_out=read_out)
                if found is None:
                    raise InputError("this model's masks are no heatmaps: it has no other depth and no rule")
                maps = found
            heatmap: np.ndarray = resize_maps(maps[None].float(), picture.size)[0, 0].cpu().numpy()
        return heatmap

    def mark(self, strokes: Sequence[Stroke]) -> None:
        """Replace the marks on the open picture."""
        self.picture.strokes = list(strokes)

    def learn(self, steps: int, report: Callable[[int], object] = lambda step: None) -> Learned:
        """Train this user's copy of the model on all marks so far.

        Args:
            steps: How many steps at most; it ends when all marks are right.
            report: Is told the number of each step that is done.

        Raises:
            InputError: Nothing is marked, the number is out of range, or the loss is no longer finite; the model is
                then as it was.
        """
        marked = [one for one in self.pictures.values() if one.strokes]
        before = self.look().mask
        with self.service.lock:
            images = self._make_images(marked) if marked else torch.empty(0)
            size = self.service.data.eval_transform.size
            masks = [draw_strokes(one.strokes, size) for one in marked]
            marks = torch.from_numpy(np.array(masks, dtype=np.int64)).to(images.device)
            model = copy.deepcopy(self._model)
            taken = 0
            lesson = learn_corrections(
                model, self.service.task.loss, images, marks, steps=steps, learning=self.service.learning
            )
            for taken, _ in enumerate(lesson, start=1):  # noqa: B007
                report(taken)
        self._model, self.steps_learned = model, self.steps_learned + taken
        return Learned(before, self.look().mask, len(marked), taken)

    def forget(self) -> None:
        """Go back to the checkpoint; marks stay."""
        self._model, self.steps_learned = self.service.task.model, 0

    def save(self, *, whole: bool) -> tuple[Path, int]:
        """Save the open picture, and all others that were marked, as a data set.

        Args:
            whole: Whether masks are those of the model with the marks drawn over them; otherwise they are the marks
                alone, and of every other pixel nothing is known.

        Returns:
            The folder, and how many pictures were written.

        Raises:
            InputError: No picture is open, or nothing is marked and marks alone are asked for.
            DataError: The folder cannot be written.
        """
        opened = self.name
        names = [name for name, one in self.pictures.items() if one.strokes or (whole and name == opened)]
        if not names:
            raise InputError("nothing is marked yet: mark something, or save whole masks")
        saved = {}
        for name in names:
            picture = self.pictures[name]
            marks = draw_strokes(picture.strokes, picture.size)
            mask = np.where(marks == IGNORE_INDEX, self.look(name).mask, marks) if whole else marks
            saved[name] = SavedPicture(picture.shown, mask)
        return self._folder.add(saved), len(saved)

    def _make_images(self, pictures: Sequence[Picture]) -> Tensor:
        """What the model gets of pictures."""
        transform = self.service.data.eval_transform
        return torch.stack([transform(one.pixels, None)[0] for one in pictures]).to(self.service.device)

    def _find_name(self, stem: str, pixels: np.ndarray) -> str:
        """The name of a picture: its file's, with a number if another picture has that one."""
        number, name = 1, stem
        while name in self.pictures and not np.array_equal(self.pictures[name].pixels, pixels):
            number += 1
            name = f"{stem}-{number}"
        return name
