from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import jsonargparse
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger
from torch import Tensor

from tw_seg.data import DATASETS
from tw_seg.data.budget import LabelBudget
from tw_seg.errors import BudgetError, ContradictionError, DataError, InputError
from tw_seg.training.datamodule import BUDGET_FILE, SegmentationDataModule
from tw_seg.types import Batch

pytestmark = [
    # Resumed without the callbacks that wrote the checkpoint, on purpose.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval"),
]

LENGTHS = {"train": {"length": 30}, "val": {"length": 6}, "test": {"length": 5}, "predict": {"length": 7}}


def module(**kwargs) -> SegmentationDataModule:
    defaults = {
        "dataset_kwargs": {"size": 32},
        "split_kwargs": LENGTHS,
        "budget": 6,
        "batch_size": 6,
        "labelled_per_batch": 2,
        "eval_batch_size": 4,
        "size": 32,
    }
    return SegmentationDataModule(**(defaults | kwargs))


def trainer(root: Path, **kwargs) -> pl.Trainer:
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 3,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": root,
    }
    return pl.Trainer(**(defaults | kwargs))


class Recorder(pl.LightningModule):
    """Writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trace: list[tuple] = []
        self.seen: dict[str, list[str]] = {"val": [], "test": [], "predict": []}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert isinstance(batch, Batch)
        pixels = batch.images.double().flatten()
        checksum = float(pixels @ torch.arange(len(pixels)).remainder(97).double())
        self.trace.append((self.current_epoch, batch_idx, batch.names, checksum, int(batch.masks.sum())))
        return self.weight * float(pixels.mean())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen["val"].extend(batch.names)
        self.log("val/miou", 0.0, batch_size=1)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen["test"].extend(batch.names)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen["predict"].extend(batch.names)
        return batch.labels

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_training_batches():
    data = module()
    data.setup("fit")
    seen = set()
    for batch in data.train_dataloader():
        assert batch.images.shape == (6, 3, 32, 32) and batch.images.dtype == torch.float32
        assert batch.labels.shape == (6, 11) and (batch.labels[:, 0] == 1).all()
        assert batch.labelled.tolist() == [0, 1] and batch.masks.shape == (2, 32, 32)
        assert batch.masks.dtype == torch.int64 and batch.native_masks == ()
        assert set(batch.names[:2]) <= set(data.budget.names) and not set(batch.names[2:]) & set(data.budget.names)
        seen |= set(batch.names)
    assert len(data.budget.names) == 6 and len(seen) == 30


def test_evaluation_batches():
    data = module(size=[16, 24])
    data.setup()
    for loader, length in (
        (data.val_dataloader(), 6),
        (data.test_dataloader(), 5),
        (data.predict_dataloader(), 7),
        (data.labelled_dataloader(), 6),
    ):
        batches = list(loader)
        assert sum(len(batch.names) for batch in batches) == length
        for batch in batches:
            assert batch.images.shape[1:] == (3, 16, 24) and batch.masks.shape[1:] == (16, 24)
            masks = 0 if batch.windows else len(batch.names)  # none is read of pictures to predict
            assert len(batch.masks) == len(batch.native_masks) == masks
            assert all(mask.shape == (32, 32) for mask in batch.native_masks)
    names = [name for batch in data.labelled_dataloader() for name in batch.names]
    assert sorted(names) == sorted(data.budget.names)


def test_each_stage_sees_its_own_split(tmp_path):
    model, data = Recorder(), module()
    runner = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    runner.fit(model, data)
    assert "test" not in data._data and model.seen["test"] == []
    runner.test(model, data, verbose=False)
    runner.predict(model, data)
    trained = {name for row in model.trace for name in row[2]}
    assert trained == {f"train-{i:05d}" for i in range(30)}
    assert model.seen == {
        "val": [f"val-{i:05d}" for i in range(6)],
        "test": [f"test-{i:05d}" for i in range(5)],
        "predict": [f"val-{i:05d}" for i in range(7)],
    }


def test_classes_before_setup():
    assert module().num_classes == 11
    assert module().class_names == ("background", *"0123456789")


def test_workers_and_cache_do_not_change_the_run(tmp_path):
    traces = {}
    for workers, cache_gib in ((0, 0.0), (1, 0.0), (2, 0.0), (0, 0.1), (2, 0.1)):
        model = Recorder()
        data = module(num_workers=workers, cache_gib=cache_gib, augmentation={"recolor": 0.5, "flip": True})
        trainer(tmp_path, max_epochs=2).fit(model, data)
        assert set(data._caches) == ({"train", "val"} if cache_gib else set())
        traces[workers, cache_gib] = model.trace, model.seen
    first = traces[0, 0.0]
    assert all(other == first for other in traces.values())
    assert len({row[3] for row in first[0]}) == len(first[0]) == 12


SCHEDULES = {
    "epochs": {"max_epochs": 3},
    "steps": {"max_epochs": -1, "max_steps": 16},  # Lightning counts epochs differently when it resumes
    "mid-epoch validation": {"max_epochs": 2, "val_check_interval": 2},
    "accumulation": {"max_epochs": 3, "accumulate_grad_batches": 2},
    "limited epochs": {"max_epochs": 3, "limit_train_batches": 4},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resuming_from_any_checkpoint_continues_the_trace(tmp_path, schedule):
    options = SCHEDULES[schedule]
    # All positions once; with the other schedules some in mid-epoch, all ends and all after a validation.
    every = {"epochs": 1, "accumulation": 2}.get(schedule, 3)
    keep_all = {"save_top_k": -1, "filename": "{epoch}-{step}"}
    callbacks = [
        ModelCheckpoint(dirpath=tmp_path / "step", every_n_train_steps=every, **keep_all),
        ModelCheckpoint(dirpath=tmp_path / "val", monitor="val/miou", **keep_all),
        ModelCheckpoint(dirpath=tmp_path / "end", every_n_epochs=1, save_on_train_epoch_end=True, **keep_all),
    ]
    model = Recorder()
    data = module()
    trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True, **options).fit(model, data)
    checkpoints = sorted(tmp_path.glob("*/*.ckpt"))
    assert {path.parent.name for path in checkpoints} == {"step", "val", "end"}
    lengths = []
    for path in checkpoints:
        resumed, again = Recorder(), module()
        again._data = data._data  # scenes are drawn once; loaders and samplers are new
        trainer(tmp_path, **options).fit(resumed, again, ckpt_path=path)
        assert resumed.trace == model.trace[len(model.trace) - len(resumed.trace) :], path
        lengths.append(len(resumed.trace))
        state = torch.load(path, weights_only=True)["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
        first = resumed.trace[0][:2] if resumed.trace else None
        per_epoch = options.get("limit_train_batches", 6)
        expected = divmod(state["epoch"] * per_epoch + state["batches"], per_epoch)
        assert first == expected or not resumed.trace
    assert len(set(lengths)) >= (8 if every == 1 else 4)


def test_resuming_with_workers_drops_what_they_fetched_ahead(tmp_path):
    folder = tmp_path / "checkpoints"
    model, keep = Recorder(), ModelCheckpoint(dirpath=folder, every_n_train_steps=4, save_top_k=-1)
    runner = trainer(tmp_path, max_epochs=2, callbacks=[keep], enable_checkpointing=True)
    runner.fit(model, module(num_workers=2))
    for workers, cache_gib in ((2, 0.0), (1, 0.1), (0, 0.0)):  # whatever the first run had
        resumed, data = Recorder(), module(num_workers=workers, cache_gib=cache_gib)
        trainer(tmp_path, max_epochs=2).fit(resumed, data, ckpt_path=folder / "epoch=0-step=4.ckpt")
        assert resumed.trace == model.trace[4:]


def test_image_level_training_needs_no_budget_and_reads_no_mask(tmp_path):
    for kwargs in ({"budget": None}, {"budget": 0}, {"budget": 20}, {"budget": None, "budget_share": 0.5}):
        data = module(labelled_per_batch=0, **kwargs)
        data.setup("fit")
        assert data.budget is None
        batches = list(data.train_dataloader())
        assert len(batches) == 5  # one pass over all 30
        for batch in batches:
            assert batch.labelled.shape == (0,) and batch.masks.shape == (0, 32, 32)
            assert batch.masks.dtype == torch.int64 and batch.labels.shape == (6, 11)
        assert len({name for batch in batches for name in batch.names}) == 30


def test_all_images_labelled():
    data = module(budget=None, budget_share=1.0)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == 5 and all(batch.masks.shape == (6, 32, 32) for batch in batches)


class SharedFolderLogger(Logger):
    """As W&B's: all runs share ``save_dir``; the version is a string."""

    name, version, log_dir = "project", "run1", None

    def __init__(self, save_dir: Path) -> None:
        super().__init__()
        self._save_dir = str(save_dir)

    @property
    def save_dir(self) -> str:
        return self._save_dir

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def test_budget_file_is_written_into_the_run_directory(tmp_path):
    loggers = {
        "csv": (CSVLogger(tmp_path / "csv", name="exp", version=3), tmp_path / "csv" / "exp" / "version_3"),
        "wandb": (SharedFolderLogger(tmp_path / "shared"), tmp_path / "shared" / "project" / "run1"),
        "none": (False, tmp_path / "none"),
    }
    for name, (logger, folder) in loggers.items():
        data = module()
        trainer(tmp_path / name, logger=logger, max_epochs=1, limit_train_batches=1).fit(Recorder(), data)
        assert LabelBudget.load(folder / BUDGET_FILE) == data.budget
        assert len(list(tmp_path.rglob(BUDGET_FILE))) == 1
        (folder / BUDGET_FILE).unlink()


def test_no_budget_file_where_no_run_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module().setup("fit")
    trainer(tmp_path, fast_dev_run=True).fit(Recorder(), module())
    trainer(tmp_path).validate(Recorder(), module(), verbose=False)
    trainer(tmp_path, max_epochs=1).fit(Recorder(), module(labelled_per_batch=0))
    assert list(tmp_path.rglob(BUDGET_FILE)) == []


def test_budget_file_is_used_again(tmp_path):
    first = module(split_seed=9)
    first.setup("fit")
    first.budget.save(tmp_path / "b.json")
    second = module(budget=None, budget_file=str(tmp_path / "b.json"))
    second.setup("fit")
    assert second.budget == first.budget
    default = module()
    default.setup("fit")
    assert default.budget.names != first.budget.names
    one, other = next(iter(first.train_dataloader())), next(iter(second.train_dataloader()))
    assert one.names == other.names and torch.equal(one.images, other.images)


def test_budget_file_of_other_data(tmp_path):
    first = module()
    first.setup("fit")
    first.budget.save(tmp_path / "b.json")
    other = {"budget": None, "budget_file": str(tmp_path / "b.json")}
    with pytest.raises(BudgetError, match=r"b.json: .*fingerprint"):
        module(dataset_kwargs={"size": 32, "seed": 1}, **other).setup("fit")
    with pytest.raises(BudgetError, match=r"b.json: .*no mask in this data set"):
        module(split_kwargs=LENGTHS | {"train": {"length": 8}}, **other).setup("fit")
    content = json.loads((tmp_path / "b.json").read_text())
    content["names"][0] = "train-00029"
    (tmp_path / "b.json").write_text(json.dumps(content))
    with pytest.raises(BudgetError, match=r"b.json: .*changed after it was written"):
        module(**other).setup("fit")
    with pytest.raises(BudgetError, match=r"none.json: cannot read"):
        module(budget=None, budget_file=str(tmp_path / "none.json")).setup("fit")


def test_hyperparameters_are_names_and_numbers(tmp_path):
    data = module(size=(32, 32), split_seed=4)
    runner = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    runner.fit(Recorder(), data)
    runner.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    again = SegmentationDataModule.load_from_checkpoint(tmp_path / "a.ckpt")
    assert dict(again.hparams) == dict(data.hparams)
    again.setup("fit")
    one, other = next(iter(data.train_dataloader())), next(iter(again.train_dataloader()))
    assert one.names == other.names and torch.equal(one.images, other.images)


@pytest.mark.parametrize(
    ("text", "budget", "share"),
    [
        ("budget: 20", 20, None),
        ("budget: 1", 1, None),
        ("budget_share: 0.05", None, 0.05),
        ("budget_share: 1.0", None, 1.0),
        ("budget_share: 1", None, 1.0),
        ("budget: null", None, None),
    ],
)
def test_arguments_fit_into_yaml(text, budget, share):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SegmentationDataModule, "data")
    config = parser.parse_string(
        f"data:\n  dataset: voc\n  dataset_kwargs: {{root: some/where}}\n  {text}\n"
        "  split_kwargs: {test: {split: val}}\n  size: [213, 320]\n  mean: [0.5, 0.5, 0.5]\n"
        f"  labelled_per_batch: {0 if budget is share is None else 4}\n"
    )
    data = SegmentationDataModule(**config.data.as_dict())
    assert data.hparams["budget"] == budget and type(data.hparams["budget"]) is type(budget)
    assert data.hparams["budget_share"] == share
    assert data.hparams["split_kwargs"] == {"test": {"split": "val"}}
    assert tuple(data.hparams["size"]) == (213, 320)


def test_the_parser_checks_augmentation():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SegmentationDataModule, "data")

    def parse(*arguments: str) -> dict[str, float]:
        return parser.parse_args(["--data.budget=6", *arguments]).data.augmentation

    assert parse() is None
    assert parse("--data.augmentation={scale: 0.3}") == {"scale": 0.3}
    assert parse("--data.augmentation.flip=true", "--data.augmentation.rotate=5") == {"flip": True, "rotate": 5.0}
    for argument, message in (
        ("--data.augmentation.zoom=3", "Unexpected keys: {'zoom'}"),
        ("--data.augmentation={flip: 3}", "Expected a <class 'bool'>. Got value: 3"),
        ("--data.augmentation.color=red", "Expected a <class 'float'>. Got value: red"),
        ("--data.flip=true", "flip"),
    ):
        with pytest.raises(jsonargparse.ArgumentError, match=re.escape(message)):
            parse(argument)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"dataset": "cocoa"}, InputError, "dataset: expected one of digits, triangles, voc, folder, .*got 'cocoa'"),
        ({"split_kwargs": {"training": {}}}, InputError, "expected the keys .*train.* got training"),
        ({"eval_batch_size": 0}, InputError, "eval_batch_size"),
        ({"num_workers": -1}, InputError, "num_workers"),
        ({"cache_gib": -1.0}, InputError, "cache_gib must be a finite number >= 0"),
        ({"size": 0}, InputError, "size must be a number of pixels"),
        ({"augmentation": {"zoom": 1.0}}, InputError, "augmentation: expected the keys scale, .* got 'zoom'"),
        ({"augmentation": {"scale": 2.0}}, InputError, "augmentation: scale must be a number, 0 <= scale < 1, got 2.0"),
        ({"budget": 0}, BudgetError, r"label budget is empty \(0 images\)"),
        ({"budget": None}, BudgetError, "label budget is empty, but batches have labelled rows"),
        (
            {"budget": 1.0},
            BudgetError,
            "budget must be a whole number of images or 'all', got 1.0; a share is a budget_share",
        ),
        ({"budget_share": 0.5}, BudgetError, r"a budget \(6\) or a budget_share \(0.5\), not both"),
        (
            {"budget": None, "budget_share": 20},
            BudgetError,
            "above 0 and up to 1, got 20; a number of images is a budget",
        ),
        (
            {"budget": None, "budget_share": 0.5, "budget_file": "b.json"},
            BudgetError,
            r"a budget_share \(0.5\) or a budget_file \(b.json\), not both",
        ),
        ({"budget_file": "b.json"}, BudgetError, r"a budget \(6\) or a budget_file \(b.json\), not both"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        module(**kwargs)


def test_bad_arguments_of_a_data_set():
    with pytest.raises(InputError, match=r"dataset_kwargs for 'digits': .*'sise'; got \['length', 'sise', 'split'"):
        module(dataset_kwargs={"sise": 3}).setup("fit")
    with pytest.raises(InputError, match=r"dataset_kwargs for 'voc': .*'root'"):
        module(dataset="voc", dataset_kwargs={}, split_kwargs=None).setup("fit")


def test_budget_larger_than_the_data():
    with pytest.raises(BudgetError, match="asks for 31 images, but only 30 have a mask"):
        module(budget=31).setup("fit")


def test_batch_sizes_that_do_not_fit():
    data = module(labelled_per_batch=7)
    data.setup("fit")
    with pytest.raises(InputError, match="labelled_per_batch: expected 0 to batch_size=6, got 7"):
        data.train_dataloader()


def test_every_data_set_has_the_interface(tmp_path):
    annotated = {"coco", "cvat", "cvat_masks", "label_studio", "labelme"}  # see tests/data/layouts
    assert set(DATASETS) == {"digits", "triangles", "voc", "folder"} | annotated
    write_folder(tmp_path, count=3)
    generated = [DATASETS[name](split="val", length=3) for name in ("digits", "triangles")]
    for data in (*generated, DATASETS["folder"](root=tmp_path, split="train")):
        assert data.classes[0] == "background" and len(data) == 3 == len(data.names)
        assert data.labels.shape == (3, len(data.classes)) and (data.labels[:, 0] == 1).all()
        sample = data[1]
        assert sample.name == data.names[1] and sample.mask.shape == sample.image.shape[:2]


def write_folder(root: Path, count: int) -> None:
    """Images that show a square of class 1 or 2; the last quarter has no mask."""
    rows = ["image,split,one,two"]
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for index in range(count):
        mask = np.zeros((20, 24), dtype=np.uint8)
        mask[4:12, 6:14] = 1 + index % 2
        Image.fromarray((mask * 100).astype(np.uint8)).save(root / "images" / f"{index:02d}.png")
        if index < count - count // 4:
            Image.fromarray(mask).save(root / "masks" / f"{index:02d}.png")
        rows.append(f"{index:02d},train,{1 - index % 2},{index % 2}")
    (root / "image_labels.csv").write_text("\n".join(rows))


def test_a_folder_with_few_masks(tmp_path):
    write_folder(tmp_path, count=16)
    data = module(dataset="folder", dataset_kwargs={"root": str(tmp_path)}, split_kwargs={"val": {"split": "train"}})
    data.setup("fit")
    assert data.budget.names == tuple(data.budget.names) and max(data.budget.names) < "12"
    # Only masks in the budget are ever opened in training: break all the others.
    for index in range(12):
        if f"{index:02d}" not in data.budget.names:
            (tmp_path / "masks" / f"{index:02d}.png").write_bytes(b"broken")
    names = {name for batch in data.train_dataloader() for name in batch.names}
    assert len(names) == 16
    with pytest.raises(DataError, match="cannot read the mask"):
        list(data.val_dataloader())
    os.remove(tmp_path / "masks" / f"{data.budget.names[0]}.png")
    with pytest.raises(DataError, match="the mask file is missing"):
        list(data.train_dataloader())
    with pytest.raises(BudgetError, match="asks for 13 images, but only 11 have a mask"):
        module(
            dataset="folder",
            budget=13,
            dataset_kwargs={"root": str(tmp_path)},
            split_kwargs={"val": {"split": "train"}},
        ).setup("fit")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cached_folder_is_read_once(tmp_path, workers):
    write_folder(tmp_path, count=16)
    kwargs = {"dataset": "folder", "dataset_kwargs": {"root": str(tmp_path)}, "num_workers": workers}
    kwargs["split_kwargs"] = {"val": {"split": "train"}}
    plain, cached = module(**kwargs), module(**kwargs, cache_gib=0.1)
    wanted = [list(plain.train_dataloader()), list(plain.val_dataloader()), list(plain.labelled_dataloader())]
    plain_names = cached._choose_budget().names
    # A cache may not open any other mask for training either: break all of them while train is filled.
    masks = {path: path.read_bytes() for path in (tmp_path / "masks").iterdir() if path.stem not in plain_names}
    for path in masks:
        path.write_bytes(b"broken")
    train = cached.train_dataloader()
    for path, content in masks.items():
        path.write_bytes(content)
    val = cached.val_dataloader()
    for path in [*(tmp_path / "images").iterdir(), *(tmp_path / "masks").iterdir()]:
        path.write_bytes(b"broken")
    found = [list(train), list(val), list(cached.labelled_dataloader())]
    for one, other in zip(wanted, found, strict=True):
        assert [batch.names for batch in one] == [batch.names for batch in other]
        for batch, again in zip(one, other, strict=True):
            assert torch.equal(batch.images, again.images) and torch.equal(batch.masks, again.masks)
            assert batch.sizes == again.sizes and len(batch.native_masks) == len(again.native_masks)
            assert all(torch.equal(a, b) for a, b in zip(batch.native_masks, again.native_masks, strict=True))
    # Not by workers: the error would keep them, and joining them later takes ten seconds.
    with pytest.raises(DataError, match="cannot read"):
        list(module(**(kwargs | {"num_workers": 0})).val_dataloader())


def test_the_cache_limit_is_for_train_and_val_together():
    train = 30 * 32 * 32 * 3 + 6 * 32 * 32  # 6 masks are in the budget
    val = 6 * 32 * 32 * 4
    data = module(cache_gib=(train + val) / 2**30)
    data.train_dataloader(), data.val_dataloader()
    assert {name: cache.nbytes for name, cache in data._caches.items()} == {"train": train, "val": val}
    data.train_dataloader()  # no second copy
    small = module(cache_gib=(train + val - 1) / 2**30)
    small.train_dataloader()
    with pytest.raises(InputError, match=r"cache_gib: .* are left for decoded images, but the 6 images .* need"):
        small.val_dataloader()


def test_no_file_stays_open(tmp_path):
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("needs /proc")
    write_folder(tmp_path, count=16)
    data = module(dataset="folder", dataset_kwargs={"root": str(tmp_path)}, split_kwargs={"val": {"split": "train"}})
    batches = [*data.train_dataloader(), *data.val_dataloader()]
    targets = [os.readlink(path) for path in folder.iterdir() if path.is_symlink() and path.exists()]
    assert batches and targets and not [target for target in targets if str(tmp_path) in target]


def test_memory_is_pinned_for_a_gpu_only():
    for device, pinned in (("cpu", False), ("cuda", True), ("mps", False)):
        data = module()
        strategy = SimpleNamespace(root_device=torch.device(device))
        data.trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=strategy)
        assert data.train_dataloader().pin_memory == data.val_dataloader().pin_memory == pinned
    assert not module().train_dataloader().pin_memory


def test_msrc_objects(shared_data):
    data = module(
        dataset="voc",
        dataset_kwargs={"root": str(shared_data / "msrc_objects")},
        split_kwargs={},
        budget=20,
        size=(64, 96),
        steps_per_epoch=2,
    )
    data.setup("fit")
    assert data.num_classes == 16 and len(data.budget.names) == 20
    rows = [data._data["train"].names.index(name) for name in data.budget.names]
    assert data._data["train"].labels[rows].any(axis=0).all()  # 20 images cover all 15 classes
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (6, 3, 64, 96) and batch.masks.shape == (2, 64, 96)
    batch = next(iter(data.val_dataloader()))
    assert {mask.shape for mask in batch.native_masks} <= {(213, 320), (320, 213)} and len(batch.native_masks) == 4


def folder_module(root: Path, **kwargs) -> SegmentationDataModule:
    defaults = {"dataset": "folder", "dataset_kwargs": {"root": str(root)}, "split_kwargs": {"val": {"split": "train"}}}
    return module(**(defaults | kwargs))


def test_masks_are_compared_with_labels_once(tmp_path):
    write_folder(tmp_path, count=16)
    table = tmp_path / "image_labels.csv"
    text = table.read_text()
    table.write_text(text.replace("03,train,0,1", "03,train,0,0").replace("04,train,1,0", "04,train,1,1"))
    with pytest.raises(ContradictionError, match="1 of 12 masks have pixels .* two in 1; .*--data.contradictions warn"):
        folder_module(tmp_path, budget=12).setup("fit")
    data = folder_module(tmp_path, budget=12, contradictions="warn")
    with pytest.warns(UserWarning) as caught:
        data.setup("fit")
    said = [str(warning.message) for warning in caught]
    assert len(said) == 4
    for what, two in (("masks of the label budget", said[:2]), ("masks of val", said[2:])):
        assert two[0].startswith(f"{what}: 1 of 12 masks have pixels of a class") and "two in 1" in two[0]
        assert f"{tmp_path / 'masks' / '03.png'}; correct" in two[0]
        assert two[1].startswith(f"{what}: 1 of 12 masks have no pixel of a class") and "04.png" in two[1]
    data.setup("fit")  # and nothing is said again


def test_masks_of_0_and_255_are_refused(tmp_path):
    write_folder(tmp_path, count=16)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255).save(path)
    with pytest.raises(
        DataError, match=r"masks of the label budget: the labels of 6 images .*masks/.*255 means 'ignore'"
    ):
        folder_module(tmp_path).setup("fit")
    with pytest.raises(DataError, match=r"masks of val: the labels of 12 images"):
        folder_module(tmp_path).setup("validate")
    with pytest.raises(DataError, match=r"masks of val: the labels of 12 images"):
        folder_module(tmp_path, labelled_per_batch=0).setup("fit")


def test_a_budget_without_any_mask_says_where_it_looked(tmp_path):
    write_folder(tmp_path, count=4)
    for path in (tmp_path / "masks").iterdir():
        path.rename(path.with_stem(f"{path.stem}_mask"))
    with (
        pytest.warns(UserWarning, match="3 of 3 mask files belong to no image by name"),
        pytest.raises(
            BudgetError, match=rf"no image has a mask.*{tmp_path / 'masks' / '00'}.png.*labelled_per_batch=0"
        ),
    ):
        folder_module(tmp_path).setup("fit")


def test_pictures_alone_are_predicted_with_the_classes_of_the_model(tmp_path):
    for name in "ab":
        Image.new("RGB", (8, 9)).save(tmp_path / f"{name}.png")
    for options, classes in (({}, 1), ({"classes": ["background", "x", "y"]}, 3)):
        data = module(dataset="folder", dataset_kwargs={"root": str(tmp_path)}, split_kwargs={}, **options)
        data.setup("predict")
        (batch,) = data.predict_dataloader()
        assert batch.names == ("a", "b") and batch.labels.shape == (2, classes) and batch.sizes == ((9, 8), (9, 8))
        assert len(batch.masks) == 0
    assert data.class_names == ("background", "x", "y")
    data = module(dataset="folder", dataset_kwargs={"root": str(tmp_path)}, split_kwargs={})
    model = Recorder()
    model.class_names = ("background", "cat")
    found = trainer(tmp_path).predict(model, data)
    assert model.seen["predict"] == ["a", "b"] and torch.equal(found[0].nan_to_num(7), torch.tensor([[1.0, 7]] * 2))


def test_a_model_of_other_classes_is_refused(tmp_path):
    write_folder(tmp_path, count=4)
    data = folder_module(tmp_path, budget=2)
    model = Recorder()
    model.class_names = ("background", "two", "one")
    with pytest.raises(
        InputError, match=r"the model has the classes background, two, one, the data set \(val\) backgr"
    ):
        trainer(tmp_path).validate(model, data, verbose=False)


def test_an_image_that_opencv_cannot_resize_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path, count=4)

    def fail(*args: object, **kwargs: object) -> None:
        raise cv2.error("too large")

    monkeypatch.setattr(cv2, "resize", fail)
    with pytest.raises(DataError, match=r"00: OpenCV cannot resize 20x24 pixels .* to 32x32 \(too large\); cut"):
        next(iter(folder_module(tmp_path, budget=2).val_dataloader()))


def test_masks_show_the_chosen_classes_only():
    """Pixels of other classes are background in training, and only there; the loss is told what they may be."""
    whole, part = (module(mask_classes=given, split_seed=1) for given in (None, ["1", "3", "7"]))
    for data in (whole, part):
        data.setup("fit")
    everything = whole.train_dataloader().dataset
    shown = part.train_dataloader().dataset
    assert whole.budget == part.budget
    kept = {1 + 1, 3 + 1, 7 + 1}
    batches = zip(whole.train_dataloader(), part.train_dataloader(), strict=True)
    hidden = 0
    for before, after in batches:
        assert before.names == after.names and before.annotated is None
        expected = before.masks.clone()
        for id in before.masks.unique().tolist():
            if id not in (0, 255, *kept):
                expected[before.masks == id] = 0
                hidden += 1
        assert torch.equal(after.masks, expected) and torch.equal(after.labels, before.labels)
        assert after.annotated.shape == (len(after.labelled), 11)
        assert {k for k in range(11) if after.annotated[:, k].all()} == {0, *kept}
    assert hidden and len(everything) == len(shown)
    for before, after in zip(whole.val_dataloader(), part.val_dataloader(), strict=True):
        assert torch.equal(before.masks, after.masks) and after.annotated is None


@pytest.mark.parametrize(
    ("given", "message"),
    [(["1", "cow"], "mask_classes must name some of the classes 0, 1, .*, got the unknown cow"), ([], "got none")],
)
def test_wrong_mask_classes_are_refused(given, message):
    data = module(mask_classes=given)
    data.setup("fit")
    with pytest.raises(InputError, match=message):
        data.train_dataloader()


def test_channels_that_do_not_fit():
    with pytest.raises(
        InputError, match=r"mean, std: expected a number for each of 4 channels, got None and None; give"
    ):
        module(channels=4)
    with pytest.raises(InputError, match=r"expected a number for each of 1 channels, got \(0.5,\) and None"):
        module(channels=1, mean=(0.5,))
    with pytest.raises(InputError, match=r"expected a number for each of 3 channels, got \(0.5, 0.5\) and"):
        module(mean=(0.5, 0.5))
    with pytest.raises(InputError, match=r"value_range must be two numbers, the smaller first, .*got \(3, 1\)"):
        module(value_range=(3, 1))
    with pytest.raises(InputError, match=r"'digits' makes its images itself, in RGB of 8 bits; leave them out, got 1"):
        module(channels=1, mean=(0.5,), std=(0.2,)).setup("fit")


def test_a_model_of_other_channels():
    data = module()
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(model=SimpleNamespace(in_channels=4)))
    with pytest.raises(InputError, match=r"the model takes images of 4 channels, data.channels is 3"):
        data.setup("fit")


def test_a_checkpoint_keeps_how_images_are_prepared():
    kept = module(value_range=(0, 1000), mean=(0.1, 0.2, 0.3)).state_dict()
    module(value_range=(0, 1000), mean=[0.1, 0.2, 0.3]).load_state_dict(json.loads(json.dumps(kept)))
    module().load_state_dict({})  # of an earlier version
    with pytest.raises(
        InputError, match=r"data.value_range: the checkpoint was trained with \[0, 1000\], this run has None"
    ):
        module(mean=(0.1, 0.2, 0.3)).load_state_dict(kept)
    with pytest.raises(InputError, match=r"data.mean: the checkpoint was trained with \[0.1, 0.2, 0.3\], this run has"):
        module(value_range=(0, 1000)).load_state_dict(kept)
