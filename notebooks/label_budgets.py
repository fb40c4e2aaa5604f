# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # How many masks do you need?
#
# A *sweep* trains the same models with more and more masks and draws the curves
# ([docs/sweeps.md](../docs/sweeps.md)). This one is small enough for a notebook: two models, two budgets, on
# generated scenes. The numbers of real runs are in
# [experiments/label_efficiency](../experiments/label_efficiency/README.md). No network, no GPU, a few minutes.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import yaml
from PIL import Image

from tw_seg.cli import main

home = tempfile.TemporaryDirectory()
start = os.getcwd()
os.chdir(home.name)

# %% [markdown]
# ## First a classifier
#
# All images have image-level labels, so all trials begin with one classifier that learned from these. DigitScenes are
# handwritten digits over photographs, ten classes and the background.

# %%
shared = [
    "--model.encoder_name=timm/resnet10t",
    "--model.encoder_kwargs={channels: [32, 48, 64, 64], output_stride: 8}",
    "--data.dataset=digits",
    "--data.dataset_kwargs={size: 32}",
    "--data.split_kwargs={train: {length: 256}, val: {length: 40}, test: {length: 60}}",
    "--data.size=32",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--examples.every_n_epochs=0",
]
pretrain = [
    "--model.model=classifier",
    "--model.lr=0.004",
    "--model.scheduler=onecycle",
    "--model.warmup_steps=40",
    "--data.batch_size=32",
    "--data.labelled_per_batch=0",
    "--data.steps_per_epoch=200",
    "--best.monitor=val/cls/map",
]
assert main(["fit", *shared, *pretrain, "--run_dir=runs/pretrain"]) == 0

# %% [markdown]
# ## A sweep is a file
#
# It is a sweep file of Weights & Biases: `wandb sweep` takes it where there is a server; `tw-seg sweep` runs it without
# one. Every combination of `parameters` is a trial: one `tw-seg fit` with these options, and the test after it.

# %%
models = {
    "heatmap": {"decoder_kwargs": {"read_out": ["layer1", "layer4"], "tie_weights": False}, "compress": 2.0},
    "multitask_unet": {"decoder_channels": [64, 48, 32, 16, 16]},
}
for name, own in models.items():
    own["class_prior"] = 1.0  # what the image as a whole shows, at every pixel
    Path(f"{name}.yaml").write_text(yaml.safe_dump({"model": {"model": name, "model_kwargs": own}}))

train = [
    "--model.warm_start=runs/pretrain/classifier.safetensors",
    "--model.lr=0.003",
    "--data.batch_size=12",
    "--data.labelled_per_batch=4",
    "--data.steps_per_epoch=50",
    "--test_after_fit=true",
]
sweep = {
    "program": "tw-seg",
    "command": ["${env}", "${program}", "fit", *shared, *train, "${args}"],
    "method": "grid",
    "metric": {"name": "test/miou", "goal": "maximize"},
    "parameters": {
        "data.budget": {"values": [4, 40]},
        "config": {"values": [f"{name}.yaml" for name in models]},
    },
}
Path("budgets.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
print(Path("budgets.yaml").read_text())

# %% [markdown]
# ## Run it
#
# One process a trial. Stopped and started again it goes on where it was; several machines may share one storage.

# %%
assert main(["sweep", "budgets.yaml"]) == 0

# %% [markdown]
# ## Look at it
#
# Fifty steps and one choice of masks say nothing of the models; they show how it is done. With `data.split_seed:
# {values: [0, 1, 2, 3, 4]}` among the parameters the table has means over choices of masks, and paired differences
# with 95 % intervals.

# %%
folder = Path("sweeps/budgets")
print((folder / "results.md").read_text())

# %%
plt.figure(figsize=(8, 5))
plt.imshow(Image.open(folder / "score.png"))
plt.axis("off")
plt.show()

# %%
os.chdir(start)
home.cleanup()
