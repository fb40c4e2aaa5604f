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
# ## A sweep is a file
#
# It is a sweep file of Weights & Biases: `wandb sweep` takes it where there is a server; `tw-seg sweep` runs it
# without one. Every combination of `parameters` is a trial: one `tw-seg fit` with these options, and the test after
# it.

# %%
shared = {
    "encoder_name": "timm/resnet10t",
    "encoder_kwargs": {"channels": [16, 24, 32, 32], "output_stride": 8},
    "lr": 0.005,
}
models = {
    "heatmap": {"decoder_kwargs": {"read_out": ["layer1", "layer4"]}, "compress": 2.0},
    "multitask_unet": {"decoder_channels": [32, 24, 16, 16, 8]},
}
for name, own in models.items():
    own["class_prior"] = 1.0  # what the image as a whole shows, at every pixel
    Path(f"{name}.yaml").write_text(yaml.safe_dump({"model": {**shared, "model": name, "model_kwargs": own}}))

options = {
    "data.dataset": "digits",
    "data.dataset_kwargs": "{size: 32}",
    "data.split_kwargs": "{train: {length: 200}, val: {length: 40}, test: {length: 100}}",
    "data.size": 32,
    "data.batch_size": 16,
    "data.labelled_per_batch": 4,
    "data.steps_per_epoch": 40,
    "trainer.max_epochs": 1,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "examples.every_n_epochs": 0,
    "test_after_fit": "true",
}
sweep = {
    "program": "tw-seg",
    "command": ["${env}", "${program}", "fit", *(f"--{key}={value}" for key, value in options.items()), "${args}"],
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
# Forty steps and one choice of masks say nothing of the models; they show how it is done. With `data.split_seed:
# {values: [0, 1, 2, 3, 4]}` among the parameters the table has means over choices of masks, and paired differences
# with 95 % intervals.

# %%
(folder,) = Path("runs").glob("*budgets*")
print((folder / "results.md").read_text())

# %%
plt.figure(figsize=(8, 5))
plt.imshow(Image.open(folder / "score.png"))
plt.axis("off")
plt.show()

# %%
os.chdir(start)
home.cleanup()
