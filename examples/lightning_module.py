"""The decoder as a part of your own LightningModule: it is a module, so it is saved, moved and trained with the rest.

python examples/lightning_module.py
"""

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from tw_seg import HeatmapDecoder


class Segmenter(pl.LightningModule):
    """Classifies all images and compares heatmaps with masks."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        classifier = torchvision.models.resnet18(num_classes=classes)
        self.decoder = HeatmapDecoder(classifier, read_out="layer2", tie_weights=False)
        self.scale = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Image-level logits (N, K) and mask logits (N, K, h, w)."""
        logits, heatmaps, _ = self.decoder(images)
        return logits, heatmaps * heatmaps[0, 0].numel() * self.scale

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, masks = batch
        logits, mask_logits = self(images)
        labels = F.one_hot(masks, logits.shape[1]).amax((1, 2)).float()  # which classes each mask shows
        mask_loss = F.cross_entropy(F.interpolate(mask_logits, masks.shape[1:], mode="bilinear"), masks)
        loss = mask_loss + F.binary_cross_entropy_with_logits(logits, labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


if __name__ == "__main__":
    pl.seed_everything(0)
    masks = torch.randint(0, 3, (16, 2, 2)).repeat_interleave(32, 1).repeat_interleave(32, 2)
    images = F.one_hot(masks, 3).permute(0, 3, 1, 2) + 0.3 * torch.rand(16, 3, 64, 64)  # a class is a colour
    trainer = pl.Trainer(max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False)
    segmenter = Segmenter()
    trainer.fit(segmenter, DataLoader(TensorDataset(images, masks), batch_size=4, shuffle=True))

    with torch.inference_mode():
        mask_logits = F.interpolate(segmenter.eval()(images)[1], (64, 64), mode="bilinear")
    print(f"share of pixels that are right {(mask_logits.argmax(1) == masks).float().mean():.2f}, by chance 0.33")
