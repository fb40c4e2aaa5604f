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
# # How many masks does it take?
#
# A mask takes minutes to draw, an image-level label ("a tomato, no leaf") a second. So: labels for all pictures, masks
# for a few, a *label budget*. Here a heatmap segmenter gets 2, 4 and 8 masks, once begun with a classifier that learned
# from the labels of 256 pictures, and once with random weights. No network, no GPU, about a minute.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from tw_seg import create_model
from tw_seg.data import select_budget
from tw_seg.data.loading.collate import collate
from tw_seg.data.loading.items import EvalItems
from tw_seg.data.loading.transforms import EvalTransform
from tw_seg.losses import SegmentationLoss
from tw_seg.metrics.confusion import confusion_matrix, mean_iou
from tw_seg.types import Sample

torch.manual_seed(0)
SIZE = 32
PALETTE = ListedColormap(["black", "tomato", "limegreen", "mediumpurple"])  # of masks

# %% [markdown]
# ## Pictures
#
# Tomatoes, leaves and plums over two photographs: easy, so that a minute is enough. (Real ones in
# [experiments/label_efficiency](../experiments/label_efficiency/README.md).) A data set of your own needs no more than
# this: `classes`, `names`, `labels` and samples.


# %%
class Fruit:
    """Pictures of up to three fruits; `classes[0]` is the background."""

    classes = ("background", "tomato", "leaf", "plum")
    colours = ((200, 50, 40), (50, 150, 40), (90, 50, 150))

    def __init__(self, length, seed):
        random = np.random.default_rng(seed)
        photos = [Image.fromarray(photo) for photo in load_sample_images().images]
        self.names = tuple(f"{seed}-{number:03d}" for number in range(length))
        self.labels = np.zeros((length, len(self.classes)), dtype=np.float32)
        self.labels[:, 0] = 1
        self.samples = []
        for row, name in enumerate(self.names):
            left, top = random.integers(0, 400), random.integers(0, 180)
            picture = photos[random.integers(2)].crop((left, top, left + 240, top + 240)).resize((SIZE, SIZE))
            mask = Image.new("L", picture.size)
            for kind in np.flatnonzero(random.random(3) < 0.5):
                self.draw(int(kind), picture, mask, random)
            seen = np.unique(np.array(mask))  # a fruit may lie on top of another
            self.labels[row, seen] = 1
            self.samples.append(Sample(np.array(picture), np.array(mask), self.labels[row], name))

    def draw(self, kind, picture, mask, random):
        x, y, side = (*random.integers(0, 20, 2), random.integers(10, 15))
        colour = tuple(int(c) for c in np.clip(random.integers(-35, 35, 3) + self.colours[kind], 0, 255))
        middle = side // 2
        diamond = [(x, y + middle), (x + middle, y), (x + side, y + middle), (x + middle, y + side)]
        for image, fill in ((picture, colour), (mask, kind + 1)):
            if kind == 1:
                ImageDraw.Draw(image).polygon(diamond, fill=fill)
            else:
                ImageDraw.Draw(image).ellipse((x, y, x + side, y + (side if kind == 0 else side * 2 // 3)), fill=fill)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        return self.samples[index]


train, test = Fruit(256, seed=0), Fruit(64, seed=1)


items = list(EvalItems(train, EvalTransform(SIZE)))  # as tensors
exam = collate(list(EvalItems(test, EvalTransform(SIZE))))
print(
    "pictures that show",
    *(f"a {name}: {n:.0f}" for name, n in zip(train.classes[1:], train.labels[:, 1:].sum(0), strict=True)),
)

# %% [markdown]
# ## Which pictures get a mask?
#
# `select_budget` chooses by the labels alone, so that few masks show every class. Budgets are nested: the 2 are among
# the 4, and these among the 8. What is compared is then the number of masks, and not also the luck of the choice.

# %%
BUDGETS = (2, 4, 8)
chosen = {}
for budget in BUDGETS:
    names = select_budget(train.labels, train.names, budget, split_seed=0).names
    chosen[budget] = [train.names.index(name) for name in names]
    shown = train.labels[chosen[budget], 1:].sum(0).astype(int)
    print(budget, "masks; they show", dict(zip(train.classes[1:], shown.tolist(), strict=True)))

_, axes = plt.subplots(2, 8, figsize=(12, 3.2))
for column, row in enumerate(chosen[8]):
    axes[0, column].imshow(train[row].image)
    axes[0, column].set_title(f"mask {column + 1}", fontsize=9)
    axes[1, column].imshow(train[row].mask, cmap=PALETTE, vmin=0, vmax=3)
for axis in axes.flat:
    axis.axis("off")
plt.show()

# %% [markdown]
# ## A classifier, from labels alone

# %%
encoder = {
    "encoder_name": "timm/resnet10t",
    "encoder_kwargs": {"channels": [16, 24, 32, 32], "output_stride": 8},
    "classes": len(train.classes),
}
loss_function = SegmentationLoss()


def optimise(model, batches, steps, lr):
    """Train on one batch after the other, of which only the rows `labelled` have a mask."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    model.train()
    for _ in range(steps):
        batch = next(batches)
        loss, _ = loss_function(model(batch.images, samples=batch.labelled), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def draw_batches(masked, *, masks, others, seed):
    """Endless batches: `masks` pictures of `masked` with their mask, and `others` of all with their labels alone."""
    random = np.random.default_rng(seed)
    while True:
        rows = [*random.choice(masked, masks), *random.choice(len(train), others)]
        batch = collate([items[row] for row in rows])
        yield batch._replace(labelled=batch.labelled[:masks], masks=batch.masks[:masks])


torch.manual_seed(0)
classifier = create_model("classifier", **encoder)
optimise(classifier, draw_batches([0], masks=0, others=32, seed=0), steps=160, lr=5e-3)
state = classifier.classifier.state_dict()
with torch.no_grad():
    right = ((classifier(exam.images).logits > 0) == (exam.labels > 0))[:, 1:].float().mean()
print(f"labels of new pictures that it gets right: {right:.0%}")

# %% [markdown]
# ## 2, 4 and 8 masks
#
# The heatmap segmenter is that classifier and its relevance, so that what the labels taught is where its masks begin.

# %%
scores = {"begun with the classifier": {}, "begun with random weights": {}}
drawn = {}
for budget in BUDGETS:
    for name, found in scores.items():
        torch.manual_seed(0)
        model = create_model(
            "heatmap",
            **encoder,
            decoder_kwargs={"read_out": ["layer1", "layer4"], "tie_weights": False},
            compress=2.0,
        )
        if name == "begun with the classifier":
            model.load_classifier_state(state)
        optimise(model, draw_batches(chosen[budget], masks=4, others=8, seed=budget), steps=50, lr=5e-3)
        with torch.no_grad():
            masks = model(exam.images).mask_logits.argmax(1)
        found[budget] = float(mean_iou(confusion_matrix(exam.masks, masks, len(train.classes))))
        drawn[name, budget] = masks
        print(f"{budget} masks, {name}: mIoU {found[budget]:.2f}")

# %%
plt.figure(figsize=(6, 3.5))
for name, found in scores.items():
    plt.plot(list(found), list(found.values()), marker="o", label=name)
plt.xscale("log", base=2)
plt.xticks(BUDGETS, BUDGETS)
plt.ylim(0, 1)
plt.xlabel("masks")
plt.ylabel("mIoU of 64 new pictures")
plt.legend()
plt.show()

# %% [markdown]
# What the eight masks taught, with and without the labels of the other pictures:

# %%
_, axes = plt.subplots(4, 6, figsize=(10, 7))
rows = {"picture": [sample.image for sample in test.samples], "mask": exam.masks}
rows |= {name: drawn[name, BUDGETS[-1]] for name in scores}
for line, (name, tiles) in zip(axes, rows.items(), strict=True):
    for index, axis in enumerate(line):
        axis.imshow(tiles[index], cmap=PALETTE, vmin=0, vmax=3)
        axis.axis("off")
    line[0].set_title(name, fontsize=9, loc="left")
plt.show()

# %% [markdown]
# More masks help, and labels stand in for some of them: the classifier knows what a tomato looks like before it sees
# the first mask. One choice of masks, one seed and fifty steps say no more than that. For your own pictures
# `tw-seg sweep` does the same with several choices of masks, means and 95 % intervals
# ([docs/sweeps.md](../docs/sweeps.md)).

# %%
begun, random_start = (np.mean(list(found.values())) for found in scores.values())
print(f"mean over the budgets: {begun:.2f} and {random_start:.2f}")
assert begun > random_start
