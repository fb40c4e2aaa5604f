"""Heatmaps of a vision transformer of timm, by AttnLRP, read at the images and at two depths.

python examples/vision_transformer.py
"""

import timm
import torch

from tw_seg import HeatmapDecoder

torch.manual_seed(0)
classifier = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5).eval()
decoder = HeatmapDecoder(classifier, read_out=["input", "blocks.1", "blocks.2"])
decoded = decoder(torch.rand(2, 3, 64, 64), classes=[0, 3])
for place, maps in zip(decoder.read_out, decoded.readouts, strict=True):
    print(f"{place}: {tuple(maps.shape)}")
decoded.heatmaps.square().sum().backward()
gradient = classifier.patch_embed.proj.weight.grad
print(f"the patch embedding has a gradient of {gradient.norm():.1e} from a loss of heatmaps")
