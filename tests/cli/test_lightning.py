from __future__ import annotations

import csv
import json
import runpy
import sys
from pathlib import Path
from typing import Optional, Union

import pytest
import torch
import yaml
from PIL import Image

from tests.training.tiny import ENCODER
from tw_seg.cli import main
from tw_seg.cli.lightning import choose_run_dir, run_command
from tw_seg.data.loading.transforms import Augmentation
from tw_seg.errors import InputError
from tw_seg.locks import LOCK
from tw_seg.training.callbacks import StepSeed
from tw_seg.training.restore import load_run
from tw_seg.training.run_directory import WholeCheckpointIO

CONFIG = {
    "seed_everything": 3,
    "model": {**ENCODER, "model": "heatmap", "model_kwargs": {"decoder_kwargs": {"read_out": "layer3"}}},
    "data": {
        "dataset_kwargs": {"size": 32},
        "split_kwargs": {split: {"length": 4} for split in ("val", "test", "predict")} | {"train": {"length": 16}},
        "size": 32,
        "budget": 12,
        "batch_size": 4,
        "labelled_per_batch": 2,
    },
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 1,
        "limit_train_batches": 1,
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    },
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with config.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


FIT = ["fit", "--config", "config.yaml"]


def files(root: str) -> set[str]:
    """The files below a folder, without locks, which may stay or not."""
    found = [path for path in Path(root).rglob("*") if path.is_file() and path.name != LOCK]
    return {path.relative_to(root).as_posix() for path in found}


# --------------------------------------------------------------------------------------- one run, end to end


def test_fit_test_predict_and_resume_share_a_directory(capsys):
    assert main(FIT) == 0
    root = "runs/heatmap-seed3"
    assert capsys.readouterr().out.splitlines()[-1] == f"run directory: {root}"
    assert files(root) == {
        "config.yaml",
        "label_budget.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "classifier.safetensors",
        "metrics/fit/metrics.csv",
        "metrics/fit/hparams.yaml",
    }
    assert json.loads(Path(root, "label_budget.json").read_text())["budget"] == 12

    again = ["--config", f"{root}/config.yaml"]
    assert main(["test", *again, "--ckpt_path=best"]) == 0
    assert "test/miou" in Path(root, "metrics/test/metrics.csv").read_text()
    report = Path(root, "report/report.json").read_text()
    assert main(["test", root, "--report.show=1"]) == 0  # the same in short
    assert Path(root, "report/report.json").read_text() == report
    assert main(["test", f"{root}/checkpoints/last.ckpt"]) == 0
    assert Path(root, "report/report.json").read_text() != report
    assert main(["validate", *again, f"--ckpt_path={root}/checkpoints/last.ckpt"]) == 0
    assert main(["predict", *again, "--ckpt_path=best"]) == 0
    masks = sorted(Path(root, "predictions/masks").iterdir())
    assert [path.name for path in masks] == [f"val-{i:05d}.png" for i in range(4)]
    with Image.open(masks[0]) as picture:
        assert (picture.mode, picture.size) == ("P", (32, 32))

    cli = run_command(["fit", *again, "--ckpt_path=last", "--trainer.max_epochs=3", "--model.lr=9"])
    assert cli.trainer.global_step == 3
    assert cli.model.hparams["lr"] == 1e-3  # the checkpoint's model arguments win
    configs = {"config.yaml", "config-2.yaml", "test_config.yaml", "validate_config.yaml", "predict_config.yaml"}
    assert configs <= files(root)
    assert {"metrics/fit/metrics.csv", "metrics/fit-2/metrics.csv"} <= files(root)
    assert list(Path("runs").iterdir()) == [Path(root)]


def test_pre_training_is_a_config_and_its_classifier_starts_the_next_run():
    extra = ["--model.model=classifier", "--model.model_kwargs=null", "--data.labelled_per_batch=0"]
    first = run_command([*FIT, *extra, "--best.monitor=val/cls/map", "--run_dir=runs/pre"])
    assert "label_budget.json" not in files("runs/pre")
    path = "runs/pre/classifier.safetensors"
    second = run_command(
        [*FIT, f"--model.warm_start={path}", "--run_dir=runs/main", "--model.lr=0", "--model.weight_decay=0"]
    )
    one, other = first.model.model.classifier.state_dict(), second.model.model.classifier.state_dict()
    weights = [name for name in one if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(one[name], other[name]) for name in weights)
    # A checkpoint has the weights: the file may be gone.
    Path(path).unlink()
    assert main(["test", "--config=runs/main/config.yaml", "--ckpt_path=best"]) == 0


# ------------------------------------------------------------------------------------------ configuration


def test_print_config(capsys):
    with pytest.raises(SystemExit) as stop:
        main([*FIT, "--model.lr=0.5", "--print_config"])
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["lr"] == 0.5
    assert config["model"]["encoder_name"] == ENCODER["encoder_name"]
    assert not Path("runs").exists()


def test_later_configs_win_and_the_saved_one_repeats_the_run():
    Path("other.yaml").write_text("model: {lr: 0.25}\ndata: {batch_size: 6}\n")
    first = run_command([*FIT, "--config", "other.yaml"])
    assert first.model.hparams["lr"] == 0.25
    assert first.datamodule.hparams["batch_size"] == 6
    second = run_command(["fit", "--config", f"{first.run_dir}/config.yaml", "--run_dir=runs/again"])
    logged = [cli.trainer.logged_metrics for cli in (first, second)]
    assert all(torch.equal(logged[0][name], logged[1][name]) for name in ("train/loss", "val/loss", "val/miou"))


def test_one_key_of_a_dictionary_can_be_set_alone():
    keys = ["--data.split_kwargs.train.length=14", "--model.model_kwargs.scale=2"]
    keys += ["--model.model_kwargs.decoder_kwargs.tie_weights", "false"]
    cli = run_command([*FIT, *keys, "--trainer.fast_dev_run=true"])
    assert len(cli.datamodule.train_dataloader().dataset) == 14
    assert len(cli.datamodule.val_dataloader().dataset) == 4
    assert cli.model.hparams["model_kwargs"] == {
        "decoder_kwargs": {"read_out": "layer3", "tie_weights": False},
        "scale": 2,
    }


def test_one_seed_for_everything_but_the_label_budget():
    cli = run_command([*FIT, "--seed_everything=11", "--trainer.fast_dev_run=true"])
    assert cli.datamodule.hparams["seed"] == 11
    assert cli.datamodule.hparams["split_seed"] == 0
    assert next(c.seed for c in cli.trainer.callbacks if isinstance(c, StepSeed)) == 11
    with pytest.raises((InputError, SystemExit)):
        run_command([*FIT, "--seed_everything=true"])


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (["--data.budget=1"], 1),
        (["--data.budget=12"], 12),
        (["--data.budget=all"], 16),
        (["--data.budget=null", "--data.budget_share=1"], 16),
        (["--data.budget=None", "--data.budget_share=1"], 16),  # as W&B's agent writes a null
        (["--data.budget=null", "--data.budget_share=0.5"], 8),
    ],
)
def test_a_budget_of_one_image_is_not_a_budget_of_all(given, count):
    cli = run_command([*FIT, *given, "--trainer.fast_dev_run=true"])
    assert len(cli.datamodule.budget.names) == count


@pytest.mark.parametrize("value", ["0.1", "1.0"])
def test_a_budget_is_a_whole_number(value, capsys):
    """In a file as in an option; the message names the option for shares."""
    Path("share.yaml").write_text(f"data: {{budget: {value}}}")
    for given in (["--data.budget", value], ["--config", "share.yaml"]):
        with pytest.raises(SystemExit):
            run_command([*FIT, *given])
        message = (
            f"data.budget must be a whole number of images or all, got {value}; a share of them is data.budget_share"
        )
        assert capsys.readouterr().err == f"tw-seg: error: {message}\n"


def test_one_batch_is_not_all_batches(capsys):
    """Whatever order of types another import left in the cache of ``typing``; in a file as in an option."""
    assert Optional[Union[float, int]]  # noqa: UP007, UP045
    parts = ("train", "val", "test", "predict")
    for given, kind in (("1", int), ("1.0", float)):
        lines = [f"  limit_{part}_batches: {given}" for part in parts[:2]]
        Path("limits.yaml").write_text("\n".join(["trainer:", *lines]))
        options = [f"--trainer.limit_{part}_batches={given}" for part in parts[2:]]
        with pytest.raises(SystemExit):
            main([*FIT, "--config=limits.yaml", *options, "--print_config"])
        trainer = yaml.safe_load(capsys.readouterr().out)["trainer"]
        found = [trainer[f"limit_{part}_batches"] for part in parts]
        assert [(type(number), number) for number in found] == [(kind, 1)] * 4


def test_one_batch_is_trained():
    cli = run_command([*FIT, "--trainer.limit_val_batches=1.0"])
    assert (cli.trainer.limit_train_batches, cli.trainer.limit_val_batches) == (1, 1.0)
    assert cli.trainer.global_step == 1


def test_the_trainer_of_a_run():
    cli = run_command([*FIT, "--trainer.fast_dev_run=true"])
    assert isinstance(cli.trainer.strategy.checkpoint_io, WholeCheckpointIO)
    assert cli.model.class_names == cli.datamodule.class_names
    assert run_command([*FIT, "--trainer.logger=false"]).trainer.loggers == []


# ---------------------------------------------------------------------------------------- run directories


def test_choose_run_dir(folder):
    def choose(command="fit", *, run_dir=None, ckpt_path=None):
        return choose_run_dir(command, run_dir=run_dir, ckpt_path=ckpt_path, default_name="unet-seed0").as_posix()

    assert choose() == "runs/unet-seed0"  # which is made, so that no other run chooses it
    assert choose() == "runs/unet-seed0-2"
    assert choose(run_dir="mine") == "mine"
    assert choose(ckpt_path="a/b/checkpoints/last.ckpt") == "a/b"
    assert choose(ckpt_path="a/b/last.ckpt") == "runs/unet-seed0-3"
    assert choose("test", run_dir="mine", ckpt_path="best") == "mine"
    Path("mine").mkdir()
    assert choose(run_dir="mine") == "mine"
    Path("mine/config.yaml").touch()
    assert choose(run_dir="mine", ckpt_path="last") == "mine"
    with pytest.raises(InputError, match="stopped before its first checkpoint: delete it"):
        choose(run_dir="mine")
    Path("mine/checkpoints").mkdir()
    Path("mine/checkpoints/last.ckpt").touch()
    with pytest.raises(InputError, match="already holds a run.*--ckpt_path last"):
        choose(run_dir="mine")
    for which in ("best", "last"):
        with pytest.raises(InputError, match=f"--ckpt_path {which} needs --run_dir"):
            choose("test", ckpt_path=which)


def test_processes_of_one_run_share_its_directory(monkeypatch):
    first = choose_run_dir("fit", run_dir=None, ckpt_path=None, default_name="a")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_run_dir("fit", run_dir=None, ckpt_path=None, default_name="a") == first


@pytest.mark.slow
def test_two_offline_wandb_runs_leave_two_configs_and_their_images():
    Path("wandb.yaml").write_text(
        "trainer:\n  logger:\n    class_path: pytorch_lightning.loggers.WandbLogger\n"
        "    init_args: {project: p, offline: true}\nexamples: {every_n_epochs: 1, count: 1}\n"
    )
    for _ in range(2):
        assert main([*FIT, "--config", "wandb.yaml"]) == 0
    for root in ("runs/heatmap-seed3", "runs/heatmap-seed3-2"):
        found = files(root)
        assert {"config.yaml", "checkpoints/best.ckpt", "metrics/fit/metrics.csv"} <= found
        offline = {path for path in found if path.startswith("wandb/offline-run-")}
        assert any(path.endswith(".wandb") for path in offline)
        assert any("media/images/val/masks/" in path for path in offline)
        assert any("media/images/val/heatmaps/" in path for path in offline)
        assert yaml.safe_load(Path(root, "config.yaml").read_text())["run_dir"] == root


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.budget=99"], "only 16"),
        (["--data.budget=null"], "label budget is empty"),
        (["--data.dataset=imagenet"], "expected one of digits"),
        (["--data.dataset=folder", "--data.dataset_kwargs={root: x}", "--data.split_kwargs=null"], "x/image_labels"),
        (["--model.model=transformer"], "transformer"),
        (["--model.encoder_name=resnet999"], "resnet999"),
        (["--model.warm_start=gone.safetensors"], "gone.safetensors"),
        (["--model.warmup_steps=500"], "warmup_steps=500"),
        (["--model.model=cam", "--model.model_kwargs=null"], "tw-seg test"),
        (["--extend=gone"], "there is no file or folder gone; give the run directory of `tw-seg fit`"),
        (["--extend=a.ckpt", "--model.warm_start=b.safetensors"], "not both"),
        (["--ckpt_path=last"], "needs --run_dir"),
        (["--ckpt_path=last", "--run_dir=nothing_here"], "there is no nothing_here/checkpoints/last.ckpt"),
    ],
)
def test_bad_input_is_a_message_and_status_2(arguments, message, capsys):
    assert main([*FIT, *arguments]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tw-seg: error: ")]
    assert len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize("arguments", [["--data.budget=99"], ["--data.dataset=imagenet"], ["--model.model=x"]])
def test_a_run_that_fails_at_the_start_leaves_nothing(arguments):
    assert main([*FIT, *arguments]) == 2
    assert not Path("runs/heatmap-seed3").exists()


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("--model.warmup_stpes=1", "--model.warmup_steps"),
        ("--lr=1", "--model.lr"),
        ("--data.max_epochs=1", "--trainer.max_epochs"),
        ("--data.flip true", "--data.augmentation.flip"),
        ("--data.recolor 0.1", "--data.augmentation.recolor"),
        ("--model.gate_tolerance=0.1", "--gate.tolerance"),
        ("--nothing.like.it=1", None),
    ],
)
def test_a_mistyped_option_is_one_line_with_the_closest_one(mistyped, meant, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*FIT, *mistyped.split()])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    hint = f"; did you mean {meant}?" if meant else ""
    assert error == (
        f"tw-seg: error: unrecognized arguments: {mistyped}{hint} (tw-seg fit --help-all lists every option)\n"
    )


@pytest.mark.parametrize(
    ("part", "name", "meant"),
    [*(("data", name, f"--data.augmentation.{name}") for name in Augmentation.__annotations__)]
    + [("model", "gate_tolerance", "--gate.tolerance"), ("data", "max_epochs", "--trainer.max_epochs")],
)
def test_a_mistyped_key_of_a_config_is_one_line_with_the_closest_option(part, name, meant, capsys):
    Path("mistyped.yaml").write_text(yaml.safe_dump({part: {name: 1}}))
    with pytest.raises(SystemExit):
        main([*FIT, "--config", "mistyped.yaml"])
    error = capsys.readouterr().err
    assert f"'{part}.{name}'; did you mean {meant}? (tw-seg fit --help-all" in error and error.count("\n") == 1


def test_a_config_may_come_before_the_command():
    Path("all.yaml").write_text(yaml.safe_dump({"fit": CONFIG}))
    with pytest.raises(SystemExit) as stop:
        main(["--config", "all.yaml", "fit", "--print_config"])
    assert not stop.value.code


def test_an_unreadable_file_is_named_also_from_a_worker(folder, capsys):
    for part in ("images", "masks"):
        (folder / "own" / part).mkdir(parents=True)
    rows = []
    for name in "abcdefgh":
        path = folder / "own" / "images" / f"{name}.png"
        Image.effect_noise((32, 32), 60).save(path)
        path.write_bytes(path.read_bytes()[:500])  # its size is still there
        Image.new("L", (32, 32)).save(folder / "own" / "masks" / f"{name}.png")
        rows.append(f"{name},0,0")
    (folder / "own" / "image_labels.csv").write_text("\n".join(["image,cat,dog", *rows]))
    arguments = ["--data.dataset=folder", f"--data.dataset_kwargs={{root: {folder}/own, split: null}}"]
    arguments += ["--data.split_kwargs=null", "--data.budget=4", "--data.num_workers=1"]
    assert main([*FIT, *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("tw-seg: error: ")
    assert "/images/" in last
    assert "Traceback" not in last


def test_a_run_without_its_configuration_cannot_be_tested_in_short(folder, capsys):
    Path("run/checkpoints").mkdir(parents=True)
    for given, message in (("run", "there is no checkpoint in run/checkpoints"), ("no", "no file or folder no")):
        assert main(["test", given]) == 2
        assert message in capsys.readouterr().err
    Path("run/checkpoints/last.ckpt").touch()
    assert main(["test", "run"]) == 2
    assert "there is no run/config.yaml, which says what the run was tested on" in capsys.readouterr().err


def test_the_command_line_itself(folder, monkeypatch, capsys):
    """``python -m tw_seg``; in a process of its own: tests/cli/test_doctor.py."""
    monkeypatch.setattr(sys, "argv", ["tw-seg", *FIT, "--data.budget=99"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("tw_seg", run_name="__main__")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("tw-seg: error: the label budget asks for 99 images")


def write_pictures(root: Path, *, masks: int = 4) -> None:
    """Four images of two splits, of which the first ``masks`` have one."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for index in range(4):
        Image.effect_noise((32, 32), 60).convert("RGB").save(root / "images" / f"{index}.png")
        mask = Image.new("L", (32, 32))
        mask.paste(1, (4, 4, 12, 12))
        if index < masks:
            mask.save(root / "masks" / f"{index}.png")
    rows = [f"{index},{'train' if index < 2 else 'val'},1" for index in range(4)]
    (root / "image_labels.csv").write_text("\n".join(["image,split,thing", *rows]))


OWN = ["--data.dataset=folder", "--data.split_kwargs=null", "--data.budget=2", "--data.dataset_kwargs={root: own}"]


def test_validation_without_masks_needs_another_monitor(folder, capsys):
    write_pictures(folder / "own", masks=2)
    assert main([*FIT, *OWN, "--run_dir=runs/a"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("tw-seg: error: BestCheckpoint monitors 'val/miou', which is NaN in every epoch")
    assert "--best.monitor val/cls/map" in last
    assert not Path("runs/a").exists()
    assert main([*FIT, *OWN, "--run_dir=runs/a", "--best.monitor=val/cls/map"]) == 0
    assert "checkpoints/best.ckpt" in files("runs/a")


def test_a_folder_of_pictures_is_predicted(folder):
    write_pictures(folder / "own")
    assert main([*FIT, *OWN, "--run_dir=runs/a"]) == 0
    (folder / "new").mkdir()
    for name in ("x.png", "y.jpg"):
        Image.new("RGB", (20, 30)).save(folder / "new" / name)
    again = ["--config=runs/a/config.yaml", "--run_dir=runs/a", "--ckpt_path=best"]
    assert main(["predict", *again, "--data.dataset_kwargs={root: new}"]) == 0
    assert {path for path in files("runs/a") if "predictions" in path} == {
        "predictions/masks/x.png",
        "predictions/masks/y.png",
        "predictions/images.csv",
        "predictions/images.jsonl",
        "predictions/prediction.json",
    }
    with Image.open("runs/a/predictions/masks/x.png") as mask:
        assert mask.size == (20, 30)
    header = "image,height,width,probability/background,probability/thing,pixels/background,pixels/thing"
    assert Path("runs/a/predictions/images.csv").read_text().splitlines()[0] == header


def test_a_checkpoint_of_other_classes_is_refused(folder, capsys):
    write_pictures(folder / "own")
    assert main([*FIT, *OWN, "--run_dir=runs/a"]) == 0
    table = folder / "own" / "image_labels.csv"
    table.write_text(table.read_text().replace("thing", "other"))
    assert main(["validate", "--config=runs/a/config.yaml", "--run_dir=runs/a", "--ckpt_path=best"]) == 2
    assert (
        "the checkpoint has the classes background, thing, the data set background, other: they"
        in capsys.readouterr().err
    )


def test_a_fit_may_end_with_the_test_of_its_best_checkpoint(capsys):
    assert main([*FIT, "--test_after_fit=true", "--run_dir=one"]) == 0
    last = list(csv.DictReader(Path("one/metrics/test/metrics.csv").read_text().splitlines()))[-1]
    assert main(["test", "--config=one/config.yaml", "--ckpt_path=best"]) == 0
    again = list(csv.DictReader(Path("one/metrics/test-2/metrics.csv").read_text().splitlines()))[-1]
    assert last == again and 0 <= float(last["test/miou"]) <= 1


def test_a_run_begins_as_one_with_fewer_classes_and_is_resumed_without_it(folder, caplog):
    assert main([*FIT, "--data.dataset_kwargs.digits=7", "--run_dir=old"]) == 0
    caplog.set_level("INFO")
    still = ["--model.lr=1e-12", "--model.freeze_batchnorm=true"]
    assert main([*FIT, *still, "--extend=old", "--run_dir=new", "--test_after_fit=true"]) == 0
    assert "classes that are new: 7, 8, 9; left out: none" in caplog.text
    (old, _), (new, _) = (load_run(folder / run / "checkpoints" / "last.ckpt") for run in ("old", "new"))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected, found = old(images), new(images)
    torch.testing.assert_close(found.logits[:, :8], expected.logits)
    torch.testing.assert_close(found.mask_logits[:, :8], expected.mask_logits)
    (folder / "old").rename("moved")
    resume = ["--config=new/config.yaml", "--run_dir=new", "--ckpt_path=last", "--trainer.max_epochs=2"]
    assert main(["fit", *resume]) == 0


def test_a_run_begins_as_one_of_the_same_model_only(capsys):
    assert main([*FIT, "--run_dir=old"]) == 0
    assert main([*FIT, "--extend=old", "--model.model=multitask_unet", "--model.model_kwargs=null"]) == 2
    assert "the trained run has model='heatmap', this one 'multitask_unet'" in capsys.readouterr().err
