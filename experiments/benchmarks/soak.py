"""20,000 steps of a tiny heatmap segmenter by `tw-seg fit`, and whether they leave memory as it was.

    python -m experiments.benchmarks.soak

Everything that a long run does happens many times: batches, steps, an epoch every 500 steps with validation, metrics in
a file, checkpoints. Memory is read every 500 steps; the exit status is 1 if the last fifth of these numbers is on
average more than 8 MiB above the second fifth, 0.7 KiB a step in between.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml

from experiments.benchmarks.memory import CpuMemory
from tw_seg.cli.lightning import run_command

MIB = 2**20
LIMIT = 8 * MIB
EPOCH = 500
CONFIG = {
    "model": {
        "model": "heatmap",
        "encoder_name": "timm/resnet10t",
        "encoder_kwargs": {"channels": [4, 4, 8, 8], "stem_width": 4},
        "model_kwargs": {"decoder_kwargs": {"read_out": "layer3"}},
        "scheduler": "none",
    },
    "data": {
        "dataset_kwargs": {"size": 16},
        "split_kwargs": {"train": {"length": 64}, "val": {"length": 2}},
        "size": 16,
        "budget": 12,
        "batch_size": 2,
        "labelled_per_batch": 1,
    },
    "trainer": {
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    },
    "examples": {"every_n_epochs": 0},
}


class MemoryTrace(pl.Callback):
    """Reads the memory of the process every so many steps, and prints it."""

    every = EPOCH
    found: list[int]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        MemoryTrace.found = []
        self._memory, self._start = CpuMemory(), time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every == 0:
            MemoryTrace.found.append(self._memory.now())
            seconds = time.monotonic() - self._start
            print(f"step {trainer.global_step:6}  {self.found[-1] / MIB:8.2f} MiB  {seconds:7.0f} s", flush=True)


def measure_growth(found: Sequence[int]) -> float:
    """Bytes by which the last fifth is above the second one, on average: in the first, caches are filled."""
    fifth = max(len(found) // 5, 1)
    return statistics.mean(found[-fifth:]) - statistics.mean(found[fifth : 2 * fifth])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; returns 1 if memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=EPOCH, help="steps between two readings, and of an epoch")
    given = parser.parse_args(arguments)
    MemoryTrace.every = given.every
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(yaml.safe_dump(CONFIG), encoding="utf-8")
        run_command(
            [
                "fit",
                f"--config={config}",
                f"--run_dir={folder}/run",
                f"--data.steps_per_epoch={given.every}",
                f"--trainer.max_steps={given.steps}",
                "--trainer.callbacks=experiments.benchmarks.soak.MemoryTrace",
            ]
        )
    growth = measure_growth(MemoryTrace.found)
    print(f"{given.steps} steps, memory grew by {growth / MIB:.2f} MiB; allowed are {LIMIT / MIB:.0f}")
    return int(growth > LIMIT)


if __name__ == "__main__":
    from experiments.benchmarks import soak  # the module that the command line imports, too

    sys.exit(soak.main())
