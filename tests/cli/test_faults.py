"""What a machine does to a run, each fault for real: full, read-only and vanished disks, killed workers, damaged files.

The fault comes in the second of three epochs; what must hold is one line that says how to go on, whole files, and the
losses of an undisturbed run after that.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from pytorch_lightning.callbacks import Callback

from tests.cli.test_lightning import CONFIG
from tw_seg.cli import main
from tw_seg.cli.faults import name_faults
from tw_seg.errors import FaultError, InputError
from tw_seg.files import make_next_free
from tw_seg.locks import LOCK, lock_folder
from tw_seg.torch_files import find_damage
from tw_seg.training.restore import find_last_checkpoint, load_run

GOES_ON = "the same command with --run_dir {} --ckpt_path last goes on"


class Fault(Callback):
    """Does ``act`` when an epoch begins."""

    act: Any = staticmethod(lambda: None)
    epoch = 1

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == Fault.epoch:
            Fault.act()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with a config of three epochs of two steps."""
    monkeypatch.chdir(tmp_path)
    trainer = {**CONFIG["trainer"], "max_epochs": 3, "limit_train_batches": 2, "enable_progress_bar": False}
    Path("config.yaml").write_text(yaml.safe_dump({**CONFIG, "trainer": trainer}))
    return tmp_path


def fit(run: Path | str, *extra: str, trace: str | None = None) -> int:
    callbacks = ["tests.cli.test_faults.Fault"]
    written = [f"--trainer.callbacks.path={trace}"] if trace else []
    callbacks += ["tests.training.tiny.LossTrace"] if trace else []
    added = [f"--trainer.callbacks+={name}" for name in callbacks]
    return main(["fit", "--config", "config.yaml", *added, *written, f"--run_dir={run}", *extra])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[str]:
    """The losses of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = {**CONFIG["trainer"], "max_epochs": 3, "limit_train_batches": 2, "enable_progress_bar": False}
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "trainer": trainer}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert fit("run", trace="trace.txt") == 0
    lines = (folder / "trace.txt").read_text().splitlines()
    assert len(set(lines)) == len(lines) == 6
    return lines


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ended with."""
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return errors.splitlines()[-1]


# ------------------------------------------------------------------------------------------------------ disks


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of its own, for which the tests must be allowed to mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield path
    for place in (path, path.with_name("away")):
        while subprocess.run(["umount", "-l", place], capture_output=True).returncode == 0:
            pass  # whatever a test that failed left there


def fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError:
            pass


def run_commands(*lines: str) -> None:
    for line in lines:
        subprocess.run(line.split(), check=True)


DISKS = {
    "full": (fill, "No space left on device; free some space", lambda disk: (disk / "filler").unlink()),
    "read-only": (
        lambda disk: run_commands(f"mount --bind {disk} {disk}", f"mount -o remount,bind,ro {disk}"),
        "Read-only file system; see that it is there",
        lambda disk: run_commands(f"umount {disk}"),
    ),
    "gone": (  # to another place, as a network drive does that comes back later
        lambda disk: run_commands(f"mount --move {disk} {disk.with_name('away')}"),
        "No such file or directory; see that it is there",
        lambda disk: run_commands(f"mount --move {disk.with_name('away')} {disk}"),
    ),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts of Linux")
@pytest.mark.parametrize("fault", DISKS)
def test_a_disk_that_fails_is_named_and_the_run_goes_on_after_it(fault, disk, whole, monkeypatch, capsys):
    spoil, message, mend = DISKS[fault]
    disk.with_name("away").mkdir()
    monkeypatch.setattr(Fault, "act", lambda: spoil(disk))
    assert fit(disk / "run", trace="trace.txt") == 2
    error = last_error(capsys)
    assert error.startswith(f"tw-seg: error: {disk / 'run'}/") and message in error
    mend(disk)
    if fault != "gone":
        assert error.endswith(GOES_ON.format(disk / "run"))
    assert find_damage(disk / "run" / "checkpoints" / "last.ckpt") is None
    assert list(disk.rglob(".*.tmp")) == []
    monkeypatch.setattr(Fault, "act", lambda: None)
    assert fit(disk / "run", "--ckpt_path=last", trace="trace.txt") == 0
    lines = Path("trace.txt").read_text().splitlines()
    assert lines[-4:] == whole[2:] and set(lines) == set(whole)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_checkpoint_for_which_there_is_no_space_leaves_the_one_before(monkeypatch, capsys):
    """Without a mount: the draft of the next checkpoint is a device on which every write fails."""
    draft = Path(f"run/checkpoints/.last.ckpt.{os.getpid()}.tmp")
    monkeypatch.setattr(Fault, "act", lambda: draft.symlink_to("/dev/full"))
    assert fit("run") == 2
    error = last_error(capsys)
    assert error.startswith("tw-seg: error: ") and "run/checkpoints/last.ckpt: No space left on device" in error
    assert error.endswith(GOES_ON.format("run"))
    assert not draft.is_symlink() and torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_a_place_where_nobody_can_write_is_named(capsys):
    Path("file").touch()
    assert fit("file/run") == 2
    assert "file/run: Not a directory" in last_error(capsys)


# ------------------------------------------------------------------------------------------------- processes


def test_a_worker_that_is_killed_is_named(whole, monkeypatch, capsys):
    def kill() -> None:
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        time.sleep(0.5)

    monkeypatch.setattr(Fault, "act", kill)
    assert fit("run", "--data.num_workers=1", trace="trace.txt") == 2
    error = last_error(capsys)
    assert "DataLoader worker (pid" in error and "give fewer --data.num_workers" in error
    assert error.endswith(GOES_ON.format("run"))
    monkeypatch.setattr(Fault, "act", lambda: None)
    assert fit("run", "--ckpt_path=last", trace="trace.txt") == 0
    assert set(Path("trace.txt").read_text().splitlines()) == set(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_says_how_it_goes_on(number, whole, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Fault, "act", lambda: signal.raise_signal(number))
    assert fit("run", trace="trace.txt") == 130
    assert last_error(capsys) == "tw-seg: stopped; " + GOES_ON.format("run")
    assert signal.getsignal(signal.SIGTERM) == before
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored
    monkeypatch.setattr(Fault, "act", lambda: None)
    assert fit("run", "--ckpt_path=last", trace="trace.txt") == 0
    assert Path("trace.txt").read_text().splitlines() == whole


HOLDER = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_two_runs_do_not_share_a_directory(folder, monkeypatch, capsys):
    monkeypatch.setattr("tw_seg.locks.WAIT_SECONDS", 0.1)
    Path("run").mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, folder / "run" / LOCK], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    assert fit("run") == 2
    assert "run: another process is writing there at this moment" in last_error(capsys)
    assert [path.name for path in Path("run").iterdir()] == [LOCK]
    holder.kill()
    holder.communicate()
    with lock_folder(Path("run")):
        pass
    assert make_next_free(Path("runs/a")) != make_next_free(Path("runs/a"))


def test_a_clock_that_jumps_changes_nothing(whole, monkeypatch):
    now, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now() + 86400 * (next(jumps) % 3 - 1))
    assert fit("run", trace="trace.txt") == 0
    assert Path("trace.txt").read_text().splitlines() == whole


# --------------------------------------------------------------------------------------------------- memory


def test_too_little_memory_names_what_takes_less():
    with pytest.raises(FaultError, match=r"can't allocate memory.*batch_size.*memory_budget.*; and so on") as fault:
        with name_faults(lambda: "and so on"):
            torch.empty(2**60, dtype=torch.uint8)
    assert "\n" not in str(fault.value)
    with pytest.raises(FaultError, match=r"^CUDA out of memory. Tried to allocate; smaller batches"):
        with name_faults(str):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nand so on")
    with pytest.raises(RuntimeError, match="^shapes differ$"):
        with name_faults(str):
            raise RuntimeError("shapes differ")


# ---------------------------------------------------------------------------------------------- checkpoints


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Change one byte in the middle of the weights, which torch does not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)


@pytest.fixture
def two_epochs(monkeypatch) -> Path:
    with monkeypatch.context() as patch:
        patch.setattr(Fault, "act", lambda: signal.raise_signal(signal.SIGTERM))
        patch.setattr(Fault, "epoch", 2)
        assert fit("run", trace="trace.txt") == 130
    return Path("run/checkpoints")


@pytest.mark.parametrize("spoil", [cut, flip])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(spoil, two_epochs, whole):
    spoil(two_epochs / "last.ckpt")
    with pytest.warns(UserWarning, match="last.ckpt is damaged .*: going on from .*previous.ckpt"):
        assert fit("run", "--ckpt_path=last", trace="trace.txt") == 0
    lines = Path("trace.txt").read_text().splitlines()
    assert lines == whole[:4] + whole[2:]  # from the end of the first epoch
    assert all(find_damage(path) is None for path in two_epochs.iterdir())


def test_a_damaged_checkpoint_is_named_with_one_that_is_whole(two_epochs, capsys):
    Image.new("RGB", (20, 20)).save("a.png")
    best = two_epochs / "best.ckpt"
    content = best.read_bytes()

    def check(command: str, whole: str) -> None:
        assert main(command.split()) == 2
        error = last_error(capsys)
        assert error.startswith(f"tw-seg: error: {best}: the file is damaged")
        assert error.endswith(f"; give {two_epochs / whole}, which is whole") and not Path("out").exists()

    for spoil, command in (
        (cut, "test run --trust_code"),
        (cut, "predict run a.png --out out"),
        (flip, "test run --trust_code"),
    ):
        best.write_bytes(content)
        spoil(best)
        check(command, "last.ckpt")
    cut(two_epochs / "last.ckpt")
    check("predict run a.png --out out", "previous.ckpt")


def test_without_a_checkpoint_before_it_is_the_best_or_none(two_epochs):
    (two_epochs / "previous.ckpt").unlink()
    cut(two_epochs / "last.ckpt")
    with pytest.warns(UserWarning, match="going on from .*best.ckpt"):
        assert find_last_checkpoint(Path("run")) == two_epochs / "best.ckpt"
    flip(two_epochs / "best.ckpt")
    with pytest.raises(InputError, match="last.ckpt is damaged .*no whole checkpoint beside it: delete run"):
        find_last_checkpoint(Path("run"))
    with pytest.raises(
        InputError, match="best.ckpt: the file is damaged.*check sum.*no whole checkpoint beside it: copy it once more"
    ):
        load_run(two_epochs / "best.ckpt")
    (two_epochs / "last.ckpt").unlink()
    with pytest.raises(InputError, match="there is no .*last.ckpt.*delete that directory"):
        find_last_checkpoint(Path("run"))
