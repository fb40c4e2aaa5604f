"""RunConfig: what a command was called with, in its run directory."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.cli import SaveConfigCallback

from tw_seg.files import next_free, write_text
from tw_seg.training.run_directory import find_run_directory


class RunConfig(SaveConfigCallback):
    """Writes the command's whole configuration into the run's own directory, and never over another one.

    ``fit`` writes ``config.yaml``, any other command ``<command>_config.yaml``; a second time (a resumed run)
    the name gets a number.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.already_saved or not trainer.is_global_zero:
            return
        text = self.parser.dump(self.config, skip_none=False)
        command = trainer.state.fn.value if trainer.state.fn else stage
        stem = "config" if command == "fit" else f"{command}_config"
        path = next_free(find_run_directory(trainer) / f"{stem}.yaml")
        write_text(path, text)
        self.already_saved = True
