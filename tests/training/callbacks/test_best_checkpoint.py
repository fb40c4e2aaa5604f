from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tw_seg.training.callbacks import BestCheckpoint


class Scores(pl.LightningModule):
    """Logs one score after the other."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.scores = scores

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.weight * 1.0

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("score", self.scores[self.current_epoch], batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(root: Path, scores: list[float], **kwargs: object) -> tuple[BestCheckpoint, list[str]]:
    """The callback after a fit, and what it warned of."""
    best = BestCheckpoint(dirpath=root, monitor="score", mode="max", filename="{epoch}", **kwargs)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=len(scores),
        num_sanity_val_steps=0,
        callbacks=[best],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
    )
    loader = DataLoader(torch.zeros(1, 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(Scores(scores), loader, loader)
    said = [str(warning.message) for warning in caught]
    return best, [text for text in said if text.startswith("score is NaN")]


NAN = float("nan")


def test_no_epoch_without_a_score_is_saved(tmp_path):
    best, said = fit(tmp_path, [NAN, NAN, NAN])
    assert len(said) == 3 and all("none is saved as the best" in text and "val/cls/map" in text for text in said)
    assert best.best_model_path == "" and list(tmp_path.glob("*.ckpt")) == []


@pytest.mark.parametrize("keep", [1, 2, -1])
def test_the_best_of_the_others_is_kept(tmp_path, keep):
    best, said = fit(tmp_path, [NAN, 0.5, 0.25], save_top_k=keep)
    assert len(said) == 1 and said[0].startswith("score is NaN in epoch 0")
    assert Path(best.best_model_path).name == "epoch=1.ckpt"
    assert len(list(tmp_path.glob("*.ckpt"))) == (1 if keep == 1 else 2)


def test_scores_as_ever(tmp_path):
    best, said = fit(tmp_path, [0.1, 0.3, 0.2])
    assert Path(best.best_model_path).name == "epoch=1.ckpt" and said == []
