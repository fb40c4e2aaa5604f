"""Data for Lightning: data sets by name, the label budget, and loaders for every stage."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader

from tw_seg.arguments import check_counts, check_normalization, check_numbers
from tw_seg.data import DATASETS
from tw_seg.data.budget import LabelBudget, check_budget, select_budget
from tw_seg.data.consistency import Contradictions, MaskFiles, check_masks
from tw_seg.data.dataset import SegmentationData
from tw_seg.data.layouts.pixels import PixelFormat, set_pixels
from tw_seg.data.loading.cache import GIB, DecodedCache
from tw_seg.data.loading.collate import collate, collate_windows
from tw_seg.data.loading.items import EvalItems, TrainItems
from tw_seg.data.loading.loader import ResumableLoader
from tw_seg.data.loading.sampler import SemiSupervisedBatchSampler
from tw_seg.data.loading.transforms import (
    Augmentation,
    EvalTransform,
    TrainTransform,
    init_worker,
)
from tw_seg.data.loading.windows import Stretched, View, WindowItems, make_view
from tw_seg.errors import BudgetError, InputError
from tw_seg.hyper_parameters import make_plain
from tw_seg.training.monitor import check_monitors
from tw_seg.training.run_directory import find_run_directory
from tw_seg.training.several_devices import check_processes
from tw_seg.types import BACKGROUND, IMAGENET, Normalization

BUDGET_FILE = "label_budget.json"

PREPARATION = ("channels", "value_range", "mean", "std")
"""The arguments that say how images are prepared."""
_STAGES = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
_SPLITS = {"train": "train", "val": "val", "test": "test", "predict": "val"}


class SegmentationDataModule(pl.LightningDataModule):
    """Labelled and unlabelled images for training; val for model selection; test for `test_dataloader` alone.

    All arguments are names and numbers, so a YAML file can hold them and a checkpoint keeps them. On ``fit``
    the label budget is selected, or read, and written to ``label_budget.json`` in the run directory.

    A fit that resumes from a checkpoint, also one from the middle of an epoch, sees the very batches and
    augmentations that an uninterrupted one sees, with any number of workers; see `ResumableLoader`.

    Args:
        dataset: A name in `tw_seg.data.DATASETS`: ``"digits"``, ``"folder"``, ``"voc"``, ``"coco"`` ...
        dataset_kwargs: Arguments of the data set, such as ``root``.
        split_kwargs: For ``"train"``, ``"val"``, ``"test"`` or ``"predict"``: arguments that add to, or
            replace, ``dataset_kwargs``; ``split`` too (predict uses the split ``"val"`` unless told
            otherwise).
        budget: How many of the training images with a mask have their mask used, or ``"all"``. One of this and the
            next two is needed, unless ``labelled_per_batch`` is 0.
        budget_share: The same as a share of them, above 0 and up to 1 (all).
        budget_file: A label budget to use again.
        split_seed: Seed of the budget's choice, apart from ``seed``.
        mask_classes: Object classes that the training masks show; pixels of other classes are background in them, and
            no loss takes them for it where the image's labels name another class. ``None``: what the data set says
            (its ``annotated``), or all.
        contradictions: What is done where a mask shows a class that the labels of its image say is not there:
            ``"refuse"`` or ``"warn"``. ``tw-seg data check`` lists such images.
        batch_size: Images in a training batch.
        labelled_per_batch: How many of them come with their mask; 0 for image-level pre-training: no mask is
            read.
        steps_per_epoch: Batches in an epoch; by default every image is in one of them at least.
        eval_batch_size: Images in a batch of val, test and predict.
        num_workers: Worker processes of each loader; 0 loads in the main process. The batches are the same.
        cache_gib: Memory in GiB for the decoded images of train and val together, filled before the first batch so
            that no file is read twice, and shared by all workers; 0 reads the files in every epoch. What does not
            fit is an error; see `DecodedCache`. The batches are the same.
        size: Height and width of the images the model sees, or one number for both.
        channels: Channels of the images: 1 is grey, 3 RGB, 4 RGB with a further one, any number in a TIFF. The model's
            ``in_channels`` is the same.
        value_range: The two values that become 0 and 1 in all images, such as 0 and 65535; ``None``: images of 8 bits.
        mean: Per channel, of values in [0, 1]; ``None``, of three channels only: ImageNet's. The commands take what the
            weights were trained with, and refuse others.
        std: Likewise.
        augmentation: Strengths of the augmentation in training, by name; those left out have their defaults. See
            `tw_seg.data.loading.transforms.Augmentation`.
        seed: Seed of batches and augmentations.
        classes: Class names of pictures without labels, the background first, for ``predict``; default: those of the
            model. ``tw-seg predict`` takes the checkpoint's.

    Raises:
        InputError: For an unknown data set or arguments that do not fit.
        BudgetError: For both a budget and a file, or an empty budget while batches have labelled rows.
    """

    def __init__(
        self,
        dataset: str = "digits",
        dataset_kwargs: dict[str, Any] | None = None,
        *,
        split_kwargs: dict[str, dict[str, Any]] | None = None,
        budget: int | Literal["all"] | None = None,
        budget_share: float | None = None,
        budget_file: str | None = None,
        split_seed: int = 0,
        mask_classes: list[str] | None = None,
        contradictions: Contradictions = "refuse",
        batch_size: int = 32,
        labelled_per_batch: int = 8,
        steps_per_epoch: int | None = None,
        eval_batch_size: int = 64,
        num_workers: int = 0,
        cache_gib: float = 0.0,
        size: int | tuple[int, int] = 64,
        channels: int = 3,
        value_range: tuple[float, float] | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        classes: list[str] | None = None,
    ) -> None:
        super().__init__()
        if dataset not in DATASETS:
            raise InputError(f"dataset: expected one of {', '.join(DATASETS)}, got {dataset!r}")
        unknown = sorted(set(split_kwargs or {}) - set(_SPLITS))
        if unknown:
            raise InputError(f"split_kwargs: expected the keys {', '.join(_SPLITS)}, got {', '.join(unknown)}")
        check_counts(1, eval_batch_size=eval_batch_size)
        check_counts(0, num_workers=num_workers)
        check_numbers(cache_gib=cache_gib)
        if labelled_per_batch > 0:
            _check_budget(budget, budget_share, budget_file)
        self.save_hyperparameters()
        self._pixels = PixelFormat(channels, None if value_range is None else (value_range[0], value_range[1]))
        normalization = _choose_normalization(channels, mean, std)
        self.hparams.update(normalization._asdict())  # so that a checkpoint holds it
        self.budget: LabelBudget | None = None
        self._data: dict[str, SegmentationData] = {}
        self._checked: set[str] = set()
        self._caches: dict[str, DecodedCache] = {}
        self._view: View | None = None
        self._thumbnails = False
        self._eval_transform = EvalTransform(size, **normalization._asdict(), floating=value_range is not None)
        self._train_transform = TrainTransform(self._eval_transform, augmentation, seed=seed)

    @property
    def normalization(self) -> Normalization:
        """How images are normalised."""
        return Normalization(tuple(self.hparams["mean"]), tuple(self.hparams["std"]))

    @property
    def pixels(self) -> PixelFormat:
        """What images are read as."""
        return self._pixels

    @property
    def eval_transform(self) -> EvalTransform:
        """From what was read to the images that the model sees, not augmented."""
        return self._eval_transform

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names, the background first."""
        classes = self.hparams["classes"]
        return self._open_dataset("train").classes if classes is None else tuple(classes)

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.class_names)

    def setup(self, stage: str | None = None) -> None:
        """Open the data sets of a stage; on ``fit`` also fix the label budget and write it down.

        The masks of the budget, of val and of test are compared with the image-level labels, once.

        Raises:
            DataError: If files are missing or inconsistent, or masks contradict labels.
            InputError: If the model has other classes than the data, or expects images of another mean, or a callback
                monitors scores of masks that val does not have.
            BudgetError: If the label budget does not fit the data.
        """
        self._compare_channels()
        roles = _STAGES[stage] if stage is not None else tuple(_SPLITS)
        for role in roles:
            self._open_dataset(role)
            if role != "predict":
                self._compare_classes(role)
        task = getattr(self.trainer, "lightning_module", None)
        check_normalization(self.normalization, getattr(task, "normalization", None), "the model")
        if stage in ("fit", None) and self.hparams["labelled_per_batch"] > 0:
            self.budget = self._choose_budget()
        for role in roles:
            self._check_masks(role)
        if stage == "fit" and self.trainer is not None:
            check_monitors(self.trainer, self.count_masks("val"))
        trainer = self.trainer if stage in ("fit", None) else None
        if self.budget is not None and trainer is not None and trainer.is_global_zero:
            if not getattr(trainer, "fast_dev_run", False):
                self.budget.save(find_run_directory(trainer) / BUDGET_FILE)

    def state_dict(self) -> dict[str, Any]:
        """How images are prepared, which a checkpoint keeps: a model is right for images that are prepared so."""
        return {name: make_plain(self.hparams.get(name), name) for name in PREPARATION}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare how images are prepared with how the model of a checkpoint learned them.

        Raises:
            InputError: Names what differs.
        """
        check_preparation(self.state_dict(), state_dict)

    def count_masks(self, role: str) -> int:
        """How many images of ``"train"``, ``"val"`` or ``"test"`` have a mask."""
        return len(self._find_masked(role))

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of labelled rows first, unlabelled rows after them, without native masks.

        Raises:
            InputError: Several processes are to train in a way that does not give the gradients of one.
        """
        if self.trainer is not None:
            check_processes(self.trainer)
        data = self._open_dataset("train")
        labelled = self._find_labelled()
        if not len(labelled) and np.isnan(data.labels[:, BACKGROUND + 1 :]).all():
            raise InputError(
                "there is nothing to train on: no mask is used (labelled_per_batch=0), and no image-level label is "
                "known; give masks, or labels of 0 and 1"
            )
        sampler = SemiSupervisedBatchSampler(
            labelled,
            np.setdiff1d(np.arange(len(data)), labelled),
            **self._pick("batch_size", "labelled_per_batch", "steps_per_epoch", "seed"),
            process=self._process,
        )
        cache = self._fill_cache("train", labelled)
        items = TrainItems(
            data, self._train_transform, cache, annotated=self._find_annotated(data, self.hparams["mask_classes"])
        )
        return ResumableLoader(items, batch_sampler=sampler, **self._loader_kwargs())

    def val_dataloader(self) -> DataLoader[Any]:
        """The split for model selection."""
        data = self._open_dataset("val")
        return self._make_eval_loader(data, self._fill_cache("val", np.arange(len(data))))

    def test_dataloader(self) -> DataLoader[Any]:
        """The split for final numbers, used nowhere else."""
        return self._make_eval_loader(self._open_dataset("test"))

    def predict_dataloader(self) -> DataLoader[Any]:
        """The pictures to write masks for; by default those of val, whole and resized. Their masks are not read."""
        if self.trainer is not None and self.trainer.world_size > 1:
            raise InputError(
                f"trainer.devices: expected one process to predict with, got {self.trainer.world_size}; the "
                "windows of a picture are not divided among processes"
            )
        size = self.hparams["eval_batch_size"]
        view = self._view or Stretched(self._eval_transform.size)
        items = WindowItems(
            self._open_dataset("predict"),
            self._eval_transform,
            view,
            batch_size=size,
            thumbnails=self._thumbnails,
        )
        return DataLoader(items, batch_size=size, **{**self._loader_kwargs(), "collate_fn": collate_windows})

    def list_images(self, role: str, count: int) -> list[np.ndarray]:
        """The first images of ``"train"``, ``"val"`` or ``"test"`` as they are in their files, each (H, W, C)."""
        data = self._open_dataset(role)
        return [data[row].image for row in range(min(count, len(data)))]

    def show_pictures(self, pictures: SegmentationData, view: View, *, thumbnails: bool = False) -> None:
        """Predict pictures of your own instead of the data set's.

        Args:
            pictures: Such as `tw_seg.data.layouts.pictures.Pictures`.
            view: What the model sees of them, see `make_view`.
            thumbnails: Whether batches bring them in small, too.
        """
        self._data["predict"] = set_pixels(pictures, self._pixels, "pictures")
        self._view, self._thumbnails = view, thumbnails

    def make_view(self, name: str, **kwargs: Any) -> View:
        """A view of `tw_seg.data.loading.windows.make_view` for images of the size that the model sees."""
        return make_view(name, self._eval_transform.size, **kwargs)

    def load_pictures(self, pictures: SegmentationData) -> DataLoader[Any]:
        """Batches of pictures of your own, whole and resized, for other uses than to predict them."""
        return self._make_eval_loader(set_pixels(pictures, self._pixels, "pictures"))

    def divide_by_budget(self) -> tuple[SegmentationData, np.ndarray, np.ndarray]:
        """The training images, and the rows of those inside the label budget and of those outside.

        Raises:
            BudgetError: If the budget does not fit the data.
        """
        data, inside = self._open_dataset("train"), self._find_labelled()
        return data, inside, np.setdiff1d(np.arange(len(data)), inside)

    def labelled_dataloader(self) -> DataLoader[Any]:
        """The images of the label budget, not augmented: what a training-free method may calibrate on."""
        data = self._open_dataset("train")
        items = EvalItems(data, self._eval_transform, self._caches.get("train"), annotated=self._find_annotated(data))
        rows = self._find_labelled().tolist()
        return DataLoader(items, sampler=rows, batch_size=self.hparams["eval_batch_size"], **self._loader_kwargs())

    @property
    def _process(self) -> tuple[int, int]:
        """Number of this process, and how many there are."""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _pick(self, *names: str) -> dict[str, Any]:
        """Some of the arguments, by name."""
        return {name: self.hparams[name] for name in names}

    def _open_dataset(self, role: str) -> SegmentationData:
        if role not in self._data:
            name = self.hparams["dataset"]
            kwargs = {"split": _SPLITS[role], **(self.hparams["dataset_kwargs"] or {})}
            kwargs |= (self.hparams["split_kwargs"] or {}).get(role) or {}
            signature = inspect.signature(DATASETS[name])
            if role == "predict" and "need_labels" in signature.parameters:
                kwargs = {"need_labels": False, **self._find_classes(), **kwargs}
            try:
                signature.bind(**kwargs)
            except TypeError as error:
                raise InputError(f"dataset_kwargs for {name!r}: {error}; got {sorted(kwargs)}") from error
            self._data[role] = set_pixels(DATASETS[name](**kwargs), self._pixels, name)
        return self._data[role]

    def _find_classes(self) -> dict[str, list[str]]:
        """The classes of pictures without labels, as an argument of their data set."""
        classes = self.hparams["classes"] or self._find_model_classes()
        return {} if classes is None else {"classes": list(classes)}

    def _find_model_classes(self) -> tuple[str, ...] | None:
        return getattr(getattr(self.trainer, "lightning_module", None), "class_names", None)

    def _compare_channels(self) -> None:
        model = getattr(getattr(self.trainer, "lightning_module", None), "model", None)
        expected = getattr(model, "in_channels", self._pixels.channels)
        if expected != self._pixels.channels:
            raise InputError(
                f"the model takes images of {expected} channels, data.channels is {self._pixels.channels}: they must "
                "be the same; the model's argument is in_channels"
            )

    def _compare_classes(self, role: str) -> None:
        """Refuse a model of other classes: with as many of them it would be scored as if they were the same."""
        known, found = self._find_model_classes(), self._open_dataset(role).classes
        if known is not None and tuple(known) != found:
            raise InputError(
                f"the model has the classes {', '.join(known)}, the data set ({role}) {', '.join(found)}: they must be "
                "the same in the same order; correct the class list (classes.txt), or train a model on these"
            )

    def _check_masks(self, role: str) -> None:
        """Compare the masks that are used with the image-level labels, if they are in files."""
        data = self._open_dataset(role)
        if role in self._checked or role == "predict" or not isinstance(data, MaskFiles):
            return
        budgeted = role == "train"
        rows = self._find_labelled() if budgeted else self._find_masked(role)
        what = "masks of the label budget" if budgeted else f"masks of {role}"
        check_masks(data, rows, what, **self._pick("contradictions"))
        self._checked.add(role)

    def _find_masked(self, role: str) -> np.ndarray:
        """Indices of the images that have a mask."""
        data = self._open_dataset(role)
        return np.flatnonzero(getattr(data, "has_mask", np.ones(len(data), dtype=bool)))

    def _choose_budget(self) -> LabelBudget:
        names, labels, _ = self._list_masked()
        search = getattr(self._open_dataset("train"), "mask_search", None)
        if not names and search is not None:
            raise BudgetError(
                f"no image has a mask, and a label budget needs at least one: {search}; set labelled_per_batch=0 to "
                "train without masks"
            )
        if self.hparams["budget_file"] is None:
            return select_budget(labels, names, **self._pick("budget", "budget_share", "split_seed"))
        budget = LabelBudget.load(self.hparams["budget_file"])
        try:
            budget.indices(labels, names)
        except BudgetError as error:
            raise BudgetError(f"{self.hparams['budget_file']}: {error}") from error
        return budget

    def _list_masked(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Names, labels and indices of the training images that have a mask."""
        data, rows = self._open_dataset("train"), self._find_masked("train")
        return [data.names[row] for row in rows], data.labels[rows], rows

    def _find_labelled(self) -> np.ndarray:
        if self.hparams["labelled_per_batch"] == 0:
            return np.empty(0, dtype=np.int64)
        if self.budget is None:
            self.budget = self._choose_budget()
        names, labels, rows = self._list_masked()
        return rows[self.budget.indices(labels, names)]

    def _find_annotated(self, data: SegmentationData, chosen: Sequence[str] | None = None) -> np.ndarray | None:
        """Which classes, of those ``chosen``, were annotated in each mask, (N, K), background too; ``None``: all."""
        found: np.ndarray | None = getattr(data, "annotated", None)
        if chosen is not None:
            objects = data.classes[BACKGROUND + 1 :]
            if not chosen or (unknown := sorted(set(chosen) - set(objects))):
                wrong = "none" if not chosen else f"the unknown {', '.join(unknown)}"
                raise InputError(f"mask_classes must name some of the classes {', '.join(objects)}, got {wrong}")
            row = np.isin(data.classes, chosen)
            found = np.tile(row, (len(data), 1)) if found is None else found & row
        if found is None or found[:, BACKGROUND + 1 :].all():
            return None
        found = found.copy()
        found[:, BACKGROUND] = True
        return found

    def _fill_cache(self, role: str, masks: np.ndarray) -> DecodedCache | None:
        """The cache of a data set that is read again in every epoch; only ``masks`` are read into it."""
        if self.hparams["cache_gib"] > 0 and role not in self._caches:
            left = self.hparams["cache_gib"] * GIB - sum(cache.nbytes for cache in self._caches.values())
            self._caches[role] = DecodedCache(self._open_dataset(role), self._eval_transform, masks=masks, limit=left)
        return self._caches.get(role)

    def _make_eval_loader(self, data: SegmentationData, cache: DecodedCache | None = None) -> DataLoader[Any]:
        items = EvalItems(data, self._eval_transform, cache, annotated=self._find_annotated(data))
        process, processes = self._process
        if len(items) < processes:
            raise InputError(f"trainer.devices: {processes} processes are too many to share {len(items)} images")
        rows = range(process, len(items), processes)  # each image once: Lightning's own sampler would fill up
        return DataLoader(items, sampler=rows, batch_size=self.hparams["eval_batch_size"], **self._loader_kwargs())

    def _loader_kwargs(self) -> dict[str, Any]:
        workers = self.hparams["num_workers"]
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "worker_init_fn": init_worker,
            "collate_fn": collate,
            # Pinned memory is locked: only worth it for a copy to a GPU that overlaps with computing.
            "pin_memory": self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        }


def check_preparation(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare how images are prepared with how the model of a checkpoint learned them.

    Args:
        found: Arguments of the data module.
        expected: Those of the run that wrote the checkpoint; what it does not name is not compared.

    Raises:
        InputError: Names the first that differs.
    """
    for name in PREPARATION:
        own, known = (None if one.get(name) is None else np.array(one[name]).tolist() for one in (found, expected))
        if name in expected and own != known:
            raise InputError(
                f"data.{name}: the checkpoint was trained with {known}, this run has {own}: images must be prepared as "
                "the model learned them; give the same (it is in the config.yaml of its run)"
            )


def _choose_normalization(channels: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> Normalization:
    if channels == len(IMAGENET.mean):
        mean, std = mean or IMAGENET.mean, std or IMAGENET.std
    if mean is None or std is None or {len(mean), len(std)} != {channels}:
        raise InputError(
            f"mean, std: expected a number for each of {channels} channels, got {mean} and {std}; give data.mean and "
            "data.std, such as `tw-seg data check` prints them"
        )
    return Normalization(tuple(mean), tuple(std))


def _check_budget(budget: int | Literal["all"] | None, share: float | None, file: str | None) -> None:
    check_budget(budget, share)
    if file is not None and not budget is share is None:
        given = f"budget ({budget})" if share is None else f"budget_share ({share})"
        raise BudgetError(f"give a {given} or a budget_file ({file}), not both")
    if budget is share is file is None:
        raise BudgetError(
            "the label budget is empty, but batches have labelled rows; give a budget (a number of masks, or "
            "'all'), a budget_share or a budget_file, or set labelled_per_batch=0 for no masks"
        )
