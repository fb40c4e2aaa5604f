"""``tw-seg fit``, ``validate``, ``test`` and ``predict`` on Lightning's command line.

Everything a run writes goes into its run directory, ``--run_dir``; without it that is the first of
``runs/<model>-seed<seed>``, ``runs/<model>-seed<seed>-2`` ... that does not exist, and with a checkpoint the
directory of the run that wrote it. There are::

    config.yaml              what was run; `--config` takes it back
    label_budget.json        the images whose masks were used
    checkpoints/best.ckpt    best by `--best.monitor`;  last.ckpt: to resume from
    metrics/fit/metrics.csv  every logged number
    classifier.safetensors   the image-level classifier, for the next run's `--model.warm_start`
    report/                  scores with intervals and pictures from `test`
    images/, predictions/    pictures of validation images; masks and a table from `predict`

With ``--ckpt_path``, a file or ``best`` or ``last`` of the run directory, the model's arguments are those in the
checkpoint, whatever else is given (Lightning's rule); data and trainer arguments are those of the command.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ActionYesNo, Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import (
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    TQDMProgressBar,
    WeightAveraging,
)
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger, WandbLogger

from tw_seg.cli import suggest_name
from tw_seg.cli.config_code import TRUST_CODE, list_config_code
from tw_seg.cli.deep_keys import merge_deep_keys
from tw_seg.cli.encoder_defaults import AUTO, choose_encoder, choose_normalization
from tw_seg.cli.faults import name_faults
from tw_seg.data.loading.transforms import Augmentation
from tw_seg.errors import InputError
from tw_seg.files import make_next_free, next_free, remove_drafts
from tw_seg.locks import LOCK, lock_folder
from tw_seg.models.by_name import check_code, list_code, refuse_code
from tw_seg.printable import make_printable
from tw_seg.training.callbacks import (
    PREDICTIONS,
    BestCheckpoint,
    ExampleImages,
    ExportClassifier,
    GatedInference,
    PredictionWriter,
    RunConfig,
    StepSeed,
    TestReport,
)
from tw_seg.training.datamodule import SegmentationDataModule
from tw_seg.training.extend import extend_task
from tw_seg.training.restore import (
    CHECKPOINTS,
    TASK,
    find_checkpoint,
    find_last_checkpoint,
    leave_out_weights,
    load_run,
    read_checkpoint,
)
from tw_seg.training.run_directory import BEST, LAST, RunLogger, WholeCheckpointIO
from tw_seg.training.task import SegmentationTask
from tw_seg.types import Failure

RUNS = Path("runs")
_EXPECTED_WARNINGS = (
    # A run writes into its own directory again and again: resumed, tested, predicted with.
    r"Checkpoint directory .* exists and is not empty",
    # `num_workers` is a choice; 0 is right for small images on few cores.
    r"The '.*_dataloader' does not have many workers",
    # Short epochs: the loss of a step is logged every few steps, the rest by epoch.
    r"The number of training batches .* is smaller than the logging interval",
    # Averaging, checkpoints and the like belong to training; `test` and `predict` need none of them.
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    # The test after a fit belongs to the same W&B run.
    r"There is a wandb run already in progress",
    # Lightning 2.6 with torch 2.11 and newer.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


_LIGHTNING_INFO = logging.getLogger("pytorch_lightning.utilities.rank_zero")


class CommandParser(LightningArgumentParser):
    """A parser whose errors are one line that names the closest option, not the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", self)  # of the command, where a config holds what it does not know
        mistyped = re.search(r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'", message)
        if mistyped:
            message += _suggest_option("--" + (mistyped[1] or mistyped[2]), parser.format_help())
            message += f" ({parser.prog.replace(' [options]', '')} --help-all lists every option)"
        elif 'key "data.budget"' in message:
            given = message.rpartition("Given value: ")[2]
            message = "data.budget must be a whole number of images or all, "
            message += f"got {given}; a share of them is data.budget_share"
        self.exit(2, f"tw-seg: error: {message}\n")


def _suggest_option(mistyped: str, text: str) -> str:
    """The option of a help text that ends as a mistyped one does, or else the closest, as a question."""
    known = re.findall(r"--[\w.]+", text)
    if mistyped.startswith("--data."):
        known += [f"--data.augmentation.{name}" for name in Augmentation.__annotations__]
    end = re.split(r"[-.]", mistyped)[-1]
    same_end = [option for option in known if option.endswith(f".{end}") or option[2:].replace(".", "_") == end]
    return suggest_name(mistyped, same_end, 0.0) or suggest_name(mistyped, known, 0.8)


class CommandTrainer(Trainer):
    """Lightning's trainer, whose limits a parser reads as numbers of batches first and as shares second.

    Lightning writes ``Optional[Union[int, float]]``, for which ``typing`` may hand out ``Union[float, int, None]`` from
    its cache, depending on what was imported before: ``limit_train_batches: 1``, one batch, became 1.0, all of them.

    Args:
        limit_train_batches: Number (int) or share (float) of the batches of an epoch of training.
        limit_val_batches: The same of validation.
        limit_test_batches: The same of testing.
        limit_predict_batches: The same of prediction.
        **kwargs: All other arguments are Lightning's.
    """

    def __init__(
        self,
        *,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            **kwargs,
        )


class SegmentationCLI(LightningCLI):
    """Lightning's command line, with one directory for all that a run writes.

    Attributes:
        run_dir: The run directory, once the arguments are parsed.
    """

    run_dir: Path | None = None
    _trained_classes: list[str] | None = None  # those of the checkpoint

    def __init__(self, args: ArgsType = None) -> None:
        given = sys.argv[1:] if args is None else args
        self._command = given[0] if isinstance(given, list) and given else None
        with name_faults(self._describe_rest), ExitStack() as self._held:
            super().__init__(
                SegmentationTask,
                SegmentationDataModule,
                save_config_callback=RunConfig,
                trainer_class=CommandTrainer,
                # The data module divides images among processes.
                trainer_defaults={"log_every_n_steps": 10, "devices": 1, "use_distributed_sampler": False},
                seed_everything_default=0,
                auto_configure_optimizers=False,  # the task has its own
                parser_class=CommandParser,
                parser_kwargs={"prog": "tw-seg"},
                args=args,
            )

    def _lock_folder(self, command: str) -> None:
        """Let no other process write to where this command does, until it ends."""
        assert self.run_dir is not None
        folder = {"fit": self.run_dir, "predict": self.run_dir / PREDICTIONS}.get(command)
        if folder is not None and os.environ.get("LOCAL_RANK", "0") == "0":
            self._held.enter_context(lock_folder(folder))
            for place in (self.run_dir, self.run_dir / CHECKPOINTS):
                if command == "fit":
                    remove_drafts(place)  # of a run that was killed
        self._held.push(self._remove_empty_run)

    def _remove_empty_run(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave nothing of a command that failed before it wrote a file."""
        if kind is not None and self.run_dir is not None:
            _remove_empty_folders(self.run_dir)

    def _describe_rest(self) -> str:
        """How to go on after a fault."""
        if self._command != "fit" or self.run_dir is None:
            return ""
        if (self.run_dir / CHECKPOINTS / LAST).is_file():
            return f"the same command with --run_dir {self.run_dir} --ckpt_path last goes on"
        return f"no checkpoint was written yet: delete {self.run_dir} before you begin anew"

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The command that is asked for, or all: a parser costs 0.15 s of CPU time, three a third of a tiny run."""
        known = LightningCLI.subcommands()
        return {self._command: known[self._command]} if self._command in known else known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Directory for all that the run writes; by default a new one under runs/.",
        )
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=False,
            help="After fit: test the best checkpoint, as `tw-seg test --ckpt_path best` does.",
        )
        parser.add_argument(
            "--extend",
            type=str | None,
            default=None,
            help="Begin fit as a trained run or checkpoint of the same model, with the classes of the same name.",
        )
        parser.add_argument(
            "--trust_code",
            action=ActionYesNo,
            nargs="?",
            default=False,
            help="Import code that the checkpoint names, as package.module:factory: if it is yours or you know it.",
        )
        # Two checkpoints: with a metric to monitor, Lightning writes `save_last` only when the metric got
        # better, which would send a resumed run back to its best epoch.
        parser.add_lightning_class_args(BestCheckpoint, "best")
        parser.add_lightning_class_args(ModelCheckpoint, "last")
        parser.set_defaults(
            {
                "model.encoder_name": AUTO,
                "model.encoder_weights": AUTO,
                "best.monitor": "val/miou",
                "best.mode": "max",
                "best.filename": "best",
                "best.enable_version_counter": False,
                "last.filename": "last",
                "last.enable_version_counter": False,
            }
        )
        parser.add_lightning_class_args(ExampleImages, "examples")
        parser.add_lightning_class_args(GatedInference, "gate")
        parser.add_lightning_class_args(TestReport, "report")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_check_seed)
        parser.link_arguments("data.channels", "model.in_channels")
        parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        # Not super's: it warns if arguments are given in code while sys.argv has some, as under pytest.
        if isinstance(args, dict | Namespace):
            self.config = parser.parse_object(args)
        else:
            given = sys.argv[1:] if args is None else args
            # W&B's agent writes a null of a sweep file as Python does.
            given = [re.sub(r"^(--[\w.]+)=None$", r"\1=null", word) for word in given]
            self.config = parser.parse_args(merge_deep_keys(parser, given))
        command = self.config["subcommand"]
        config = self.config[command]
        self.run_dir = choose_run_dir(
            command,
            run_dir=config.run_dir,
            ckpt_path=config.ckpt_path,
            default_name=f"{config.model.model}-seed{config.seed_everything}",
        )
        config.run_dir = str(self.run_dir)
        self._lock_folder(command)
        if command == "fit" and config.ckpt_path is None:
            check_new_run(self.run_dir)
        if config.ckpt_path == "last":
            config.ckpt_path = str(find_last_checkpoint(self.run_dir))
        elif config.ckpt_path == "best":
            config.ckpt_path = str(_find_best_checkpoint(self.run_dir))
        if config.ckpt_path is not None:
            config.model.warm_start = config.extend = None  # the checkpoint has all weights
            checkpoint = Path(config.ckpt_path)
            content = _read_trusted(checkpoint, config) if checkpoint.is_file() else {}
            self._trained_classes = _find_class_names(content)
            if command == "predict" and config.data.classes is None:
                config.data.classes = self._trained_classes
        if config.extend is not None:
            config.extend = str(_check_extend(config))
        if config.ckpt_path is None:  # a checkpoint has its own
            choose_encoder(config.model, config.data.dataset)
        choose_normalization(
            config.data,
            encoder_weights=config.model.encoder_weights,
            warm_start=config.model.warm_start,
            ckpt=config.ckpt_path or config.extend,
        )
        config.trainer.default_root_dir = str(self.run_dir)
        for checkpoint in (config.best, config.last):
            checkpoint.dirpath = checkpoint.dirpath or str(self.run_dir / CHECKPOINTS)
        loggers = config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            _fill_in_wandb(logger, self.run_dir)

    def before_instantiate_classes(self) -> None:
        """Do not read pretrained weights that a checkpoint replaces; those of a resumed run stay on record."""
        config = self._get(self.config, "model") if self.subcommand != "fit" else None
        if config is not None and self._get(self.config, "ckpt_path") is not None:
            for name, value in leave_out_weights(config.as_dict()).items():
                config[name] = value

    def after_instantiate_classes(self) -> None:
        """Extend a trained run, or refuse a checkpoint of other classes: the task takes their names from the data."""
        config = self.config[str(self.subcommand)]
        if config.extend is not None:
            trained, _ = load_run(Path(config.extend), trust_code=True)  # checked before
            extend_task(self.model, trained)
        found = list(self.model.class_names)
        if self._trained_classes is not None and self._trained_classes != found:
            raise InputError(
                f"the checkpoint has the classes {', '.join(self._trained_classes)}, the data set {', '.join(found)}: "
                "they must be the same in the same order; correct the class list (classes.txt), or train on these data"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        command = str(self.subcommand)
        config = self._get(self.config_init, "trainer")
        callbacks = _as_list(config.get("callbacks"))
        if command != "fit":  # checkpoints already hold the averaged weights
            callbacks = [callback for callback in callbacks if not isinstance(callback, WeightAveraging)]
        assert self.run_dir is not None
        loggers = _make_loggers(config.get("logger"), self.run_dir, command)
        callbacks += self._make_callbacks(command, has_logger=bool(loggers))
        if config.get("enable_progress_bar") is not False and not _has(callbacks, ProgressBar):
            callbacks.append(TQDMProgressBar())
        plugins = [*_as_list(config.get("plugins")), WholeCheckpointIO()]
        kwargs = {"callbacks": callbacks, "logger": loggers or False, "plugins": plugins, **kwargs}
        return super().instantiate_trainer(**kwargs)

    def _make_callbacks(self, command: str, *, has_logger: bool) -> list[Callback]:
        if command == "predict":
            return [PredictionWriter()]
        if command != "fit":
            return []
        seed = _check_seed(self._get(self.config, "seed_everything"))
        callbacks: list[Callback] = [StepSeed(seed), ExportClassifier()]
        return [*callbacks, LearningRateMonitor("step")] if has_logger else callbacks

    def before_predict(self) -> None:
        """Masks go to files; returning them as well would keep them all in memory."""
        self.config_init["predict"]["return_predictions"] = False


def _read_trusted(checkpoint: Path, config: Namespace) -> dict[str, Any]:
    """What a checkpoint holds, if it names no code but what the user trusts or has named as well."""
    content = read_checkpoint(checkpoint)
    own = list_code(config.model.as_dict())
    check_code(content.get(TASK), source=str(checkpoint), trust_code=config.trust_code, known=own)
    return content


def _check_extend(config: Namespace) -> Path:
    """The checkpoint that ``--extend`` means."""
    if config.model.warm_start is not None:
        raise InputError("give --extend, which has all weights, or --model.warm_start, not both")
    checkpoint = find_checkpoint(Path(config.extend))
    _read_trusted(checkpoint, config)
    return checkpoint


def choose_run_dir(command: str, *, run_dir: str | None, ckpt_path: str | None, default_name: str) -> Path:
    """The run directory of a command.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        run_dir: What was asked for, or ``None``.
        ckpt_path: A checkpoint file, ``"best"``, ``"last"`` or ``None``.
        default_name: Name of a new run.

    Raises:
        InputError: A new run would write into the directory of an old one; or ``"best"`` or ``"last"`` of an
            unknown run is asked for.
    """
    if run_dir is not None:
        path = Path(run_dir)
        if command == "fit" and ckpt_path is None:
            check_new_run(path)
        return path
    if ckpt_path in ("best", "last"):
        raise InputError(
            f"--ckpt_path {ckpt_path} needs --run_dir, the directory of the run that it is the checkpoint of"
        )
    if ckpt_path is not None and Path(ckpt_path).parent.name == CHECKPOINTS:
        return Path(ckpt_path).parent.parent
    if os.environ.get("LOCAL_RANK", "0") != "0":  # a process that Lightning started: as its parent chose
        return Path(os.environ["TW_SEG_RUN_DIR"])
    path = (make_next_free if command == "fit" else next_free)(RUNS / default_name)
    os.environ["TW_SEG_RUN_DIR"] = str(path)
    return path


def check_new_run(run_dir: Path) -> None:
    """Refuse a directory that holds a run already.

    Raises:
        InputError: It does.
    """
    if (run_dir / "config.yaml").exists():
        if not any((run_dir / CHECKPOINTS).glob("*.ckpt")):
            raise InputError(
                f"run_dir {run_dir} holds a run that was stopped before its first checkpoint: delete it, or choose "
                "another --run_dir"
            )
        raise InputError(
            f"run_dir {run_dir} already holds a run: choose another --run_dir, resume the run with "
            "--ckpt_path last, or delete it"
        )


def run_command(args: ArgsType = None) -> SegmentationCLI:
    """Run a command, after ``fit`` with ``--test_after_fit`` the test, too.

    Args:
        args: The arguments as a list of strings; ``None``: those of the process.

    Returns:
        The command line object, with its trainer, model and datamodule.

    Raises:
        TwSegError: Bad input, with a message that says what to do.
    """
    with quiet_lightning():
        try:
            cli = SegmentationCLI(args)
            if cli.subcommand == "fit" and cli.config.fit.test_after_fit:
                run_dir = cli.run_dir
                SegmentationCLI(["test", f"--config={run_dir}/config.yaml", f"--run_dir={run_dir}", "--ckpt_path=best"])
            return cli
        finally:
            _finish_wandb()


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Leave out warnings and messages of Lightning's that say nothing of this run."""
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        # Lightning 2.6 uses parts of jsonargparse that 4.49 deprecated.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"pytorch_lightning\.")
        _LIGHTNING_INFO.addFilter(_is_about_run)
        try:
            yield
        finally:
            _LIGHTNING_INFO.removeFilter(_is_about_run)


def run_and_report(args: list[str]) -> int:
    """Run a command and print its run directory; returns the exit status, 1 if a picture could not be read."""
    cli = run_command(args)
    print(f"run directory: {cli.run_dir}")
    writers = [one for one in cli.trainer.callbacks if isinstance(one, PredictionWriter)]  # type: ignore[attr-defined]
    return list_failures([failure for writer in writers for failure in writer.failures])


def run_test(args: list[str]) -> int:
    """Run ``tw-seg test RUN``, which stands for the options of that run, or ``tw-seg test`` with options alone.

    Args:
        args: The arguments, ``test`` first, then a run directory or a checkpoint in it, or an option.

    Returns:
        Exit status: 0.

    Raises:
        InputError: There is no such checkpoint, or no configuration of its run.
    """
    if len(args) < 2 or args[1].startswith("-"):
        return run_and_report(args)
    checkpoint = find_checkpoint(Path(args[1]))
    run_dir = checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else checkpoint.parent
    config = run_dir / "config.yaml"
    if not config.is_file():
        raise InputError(f"there is no {config}, which says what the run was tested on; give its options, --config ...")
    trusted = TRUST_CODE in args
    refuse_code(list_config_code(config), str(config), trusted)
    rest = [arg for arg in args[2:] if arg != TRUST_CODE]
    own = [f"--run_dir={run_dir}", f"--ckpt_path={checkpoint}", f"{TRUST_CODE}={str(trusted).lower()}"]
    return run_and_report(["test", f"--config={config}", *own, *rest])


def list_failures(failures: Sequence[Failure]) -> int:
    """Print the pictures that could not be read; returns the exit status, 1 if there are any."""
    for failure in failures:
        print(f"tw-seg: not predicted: {make_printable(failure.message)}", file=sys.stderr)
    return int(bool(failures))


def _remove_empty_folders(root: Path) -> None:
    """Remove folders without files, and a folder of locks alone."""
    if root.is_dir() and not [path for path in root.rglob("*") if path.is_file() and path.name != LOCK]:
        for lock in root.rglob(LOCK):
            lock.unlink()
    for folder in (*sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True), root):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _find_best_checkpoint(run_dir: Path) -> Path:
    path = run_dir / CHECKPOINTS / BEST
    if not path.is_file():
        raise InputError(f"--ckpt_path best: there is no {path}; give the run's directory as --run_dir")
    return path


def _make_loggers(setting: Any, run_dir: Path, command: str) -> list[Logger]:
    """The loggers of a run: CSV always, unless logging is off; then what was asked for."""
    if setting is False:
        return []
    asked = [logger for logger in _as_list(setting) if isinstance(logger, Logger)]
    return [RunLogger(run_dir, command), *asked]


def _find_class_names(content: Mapping[str, Any]) -> list[str] | None:
    """The classes of the run that wrote a checkpoint; ``None`` where it names none."""
    names = content.get(TASK, {}).get("class_names")
    return None if names is None else list(names)


def _fill_in_wandb(logger: Any, run_dir: Path) -> None:
    """Let a W&B logger write into the run directory, under the run's name."""
    if isinstance(logger, Namespace) and str(logger.get("class_path")).endswith(WandbLogger.__name__):
        if logger.init_args.save_dir in (None, "."):
            run_dir.mkdir(parents=True, exist_ok=True)
            logger.init_args.save_dir = str(run_dir)
        logger.init_args.name = logger.init_args.name or run_dir.name


def _finish_wandb() -> None:
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


def _is_about_run(record: logging.LogRecord) -> bool:
    """Whether a message is about this run, not about a product or a device that is not there."""
    return not re.search(r"Tip: For seamless|available: False|Detected KeyboardInterrupt", record.getMessage())


def _check_seed(seed: bool | int) -> int:
    if isinstance(seed, bool):
        raise InputError(f"seed_everything must be a number, which a run can be repeated with, got {seed}")
    return seed


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _has(callbacks: Sequence[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
