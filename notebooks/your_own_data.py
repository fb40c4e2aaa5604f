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
# # Your own pictures in, masks out
#
# You have a folder of pictures, a table that says what each shows, and masks for a few. Five commands lead from
# there to masks of all pictures, a report, and the list of pictures whose mask would help most
# ([docs/own_data.md](../docs/own_data.md)). They are commands of a terminal; a notebook calls them as below. No
# network, no GPU, about a minute.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from tw_seg.cli import main

home = tempfile.TemporaryDirectory()
start = os.getcwd()
os.chdir(home.name)  # the commands write beside the pictures


def tw_seg(command):
    """What `tw-seg COMMAND` does in a terminal."""
    assert main(command.split()) == 0


# %% [markdown]
# ## A folder of pictures
#
# Yours has photographs; this one gets tomatoes and leaves, drawn over two of scikit-learn's. `images/` holds the
# pictures, `masks/` one PNG of class ids for *some* of them (0 background, 1 tomato, 2 leaf), `image_labels.csv`
# says of *every* picture what it shows.

# %%
random = np.random.default_rng(0)
photos = [Image.fromarray(photo) for photo in load_sample_images().images]
for part in ("images", "masks"):
    Path("my_images", part).mkdir(parents=True)
rows = ["image,split,tomato,leaf"]
for number in range(72):
    left, top = random.integers(0, 400), random.integers(0, 180)
    picture = photos[number % 2].crop((left, top, left + 240, top + 240)).resize((96, 96))
    mask = Image.new("L", picture.size)
    shown = [number % 4 in (0, 2), number % 4 in (1, 2)]  # tomato, leaf, both, neither
    for kind in np.flatnonzero(shown):
        x, y, side = (*random.integers(8, 56, 2), random.integers(22, 34))
        red, green, blue = random.integers(0, 40, 3) + ([200, 40, 30], [40, 150, 40])[kind]
        for canvas, colour in ((picture, (red, green, blue)), (mask, int(kind) + 1)):
            corners = [(x, y + side // 2), (x + side // 2, y), (x + side, y + side // 2), (x + side // 2, y + side)]
            draw = ImageDraw.Draw(canvas)
            if kind == 0:
                draw.ellipse((x, y, x + side, y + side), fill=colour)
            else:
                draw.polygon(corners, fill=colour)
    split = "train" if number < 48 else "val" if number < 60 else "test"
    picture.save(f"my_images/images/{number:02d}.png")
    if split != "train" or number < 8:  # eight masks to learn from; those of val and test are for scores
        mask.save(f"my_images/masks/{number:02d}.png")
    rows.append(f"{number:02d},{split},{int(shown[0])},{int(shown[1])}")
Path("my_images/image_labels.csv").write_text("\n".join(rows) + "\n")
print("pictures", len(rows) - 1, "masks of training pictures", 8)

# %% [markdown]
# ## 1. Check
#
# Every file is read once. What is called an error would be refused later; the contact sheet shows whether masks
# fit. Some of these pictures are near-duplicates, as all are cut from two photographs: with yours that would flatter
# scores.

# %%
tw_seg("data check my_images --contact_sheet sheet.png")

# %%
plt.figure(figsize=(12, 10))
plt.imshow(Image.open("sheet.png"))
plt.axis("off")
plt.show()

# %% [markdown]
# ## 2. Train
#
# Pictures with a mask teach where things are, all pictures teach what they show. The options about the encoder keep
# this notebook short: it is a small one with random weights. Leave them out, and training starts from ImageNet
# weights.

# %%
tw_seg(
    "fit --data.dataset folder --data.dataset_kwargs.root my_images --data.budget all --data.size 64"
    " --run_dir runs/mine"
    " --model.encoder_name timm/resnet10t --model.encoder_kwargs.channels [24,32,48,48]"
    " --model.encoder_kwargs.output_stride 8 --model.model_kwargs.decoder_kwargs.read_out [layer1,layer4]"
    " --model.model_kwargs.compress 2 --model.lr 0.005"
    " --data.batch_size 12 --data.labelled_per_batch 4 --data.steps_per_epoch 30 --trainer.max_epochs 4"
    " --trainer.accelerator cpu --trainer.enable_progress_bar false --trainer.enable_model_summary false"
)

# %% [markdown]
# ## 3. Test
#
# Scores on pictures that nothing was chosen on, with intervals, and `runs/mine/report/report.html` to show to
# others.

# %%
tw_seg("test runs/mine --trainer.enable_progress_bar false")

# %% [markdown]
# ## 4. Predict
#
# Masks of every picture, at its own size: `masks/` to compute with, `overlays/` to look at.

# %%
tw_seg("predict runs/mine my_images --out masks_out")
figure, grid = plt.subplots(2, 6, figsize=(12, 4.2))
for column, number in enumerate((60, 61, 62, 64, 65, 66)):  # test pictures
    for axis, path in zip(grid[:, column], ("my_images/images", "masks_out/overlays"), strict=True):
        axis.imshow(Image.open(f"{path}/{number}.png"))
        axis.axis("off")
plt.show()

# %% [markdown]
# ## 5. Next
#
# Which pictures would teach most if they had a mask? The list comes with the model's own masks as a task for an
# annotation tool, to be corrected there rather than drawn from nothing.

# %%
tw_seg("next runs/mine --count 4 --out next_4")
print(Path("next_4/next.csv").read_text())

# %%
os.chdir(start)
home.cleanup()
