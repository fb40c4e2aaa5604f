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
# # Why this mask, and can it be trusted?
#
# A segmentation model paints a mask. Which part of the picture did it need for that? **MiSuRe** answers by
# hiding pixels: it looks for a small region that, shown alone, makes the model return the same mask. This works
# for any function from images to mask logits.
#
# We train a small U-Net on pictures in which the right answer is known, look at what it needs for its masks, and
# then ask whether its masks can be trusted where nobody has checked them. No network, no GPU, under a minute.

# %%
import matplotlib.pyplot as plt
import torch

from tw_seg import create_model
from tw_seg.data import Triangles
from tw_seg.data.loading.collate import collate
from tw_seg.data.loading.items import EvalItems
from tw_seg.data.loading.transforms import EvalTransform
from tw_seg.explain.minimal import Optimisation
from tw_seg.explain.misure import explain_masks
from tw_seg.explain.reliability.features import FEATURE_SETS
from tw_seg.explain.reliability.judge import judge_predictions
from tw_seg.explain.reliability.measures import measure_detection, trace_risk
from tw_seg.explain.reliability.score import fit_score
from tw_seg.losses import SegmentationLoss

torch.manual_seed(0)
SIZE = 32


def load(split, length):
    """Pictures of a split as a list of batches."""
    data = Triangles(split, size=SIZE, length=length)
    items = EvalItems(data, EvalTransform(SIZE))
    rows = range(len(data))
    return data, [collate([items[i] for i in rows[start : start + 16]]) for start in rows[::16]]


train, batches = load("train", 320)
print("pictures", len(train), "classes", train.classes)

# %% [markdown]
# ## A model
#
# Three white dots are the corners of a triangle that is *not drawn*; a badge elsewhere, red or blue, says which
# class it is. Inside the triangle there is nothing to see. So an explanation that paints the triangle itself is
# wrong: the mask follows from dots and badge, the **cues**.

# %%
model = create_model(
    "unet",
    encoder_name="timm/resnet10t",
    classes=len(train.classes),
    encoder_kwargs={"channels": [16, 24, 32, 32], "output_stride": 8},
    decoder_channels=[32, 24, 16, 16, 16],
)
loss_function = SegmentationLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=160)
losses = []
for step in range(160):
    batch = batches[step % len(batches)]
    loss, _ = loss_function(model(batch.images, samples=batch.labelled), batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} -> {sum(losses[-20:]) / 20:.2f}")
assert sum(losses[-20:]) / 20 < 0.7 * losses[0]
model.eval()

# %% [markdown]
# ## What does it need for its masks?
#
# `explain_masks` first widens the predicted mask until the model, shown only that region, returns it again with a
# Dice of 0.9: the **sufficient region**. Then it looks for a smaller one inside: the **minimal region**. What hidden
# pixels become is a choice, and results depend on it: here the picture's mean colour.

# %%
pictures, (test_batch, *_) = load("test", 16)
found = explain_masks(model, test_batch.images[:6], fill="mean", optimisation=Optimisation(steps=60))
print(f"{len(found.pairs.samples)} masks explained with {found.images} images through the model")

_, axes = plt.subplots(4, 4, figsize=(8, 8.4), squeeze=False)
for row, pair in zip(axes, range(min(4, len(found.pairs.samples))), strict=False):
    index = int(found.pairs.samples[pair])
    tiles = {
        "picture": pictures[index].image,
        f"mask: {train.classes[int(found.pairs.classes[pair])]}": found.pairs.predictions[pair],
        "sufficient region": found.sufficient.regions[pair],
        "minimal region": found.minimal.regions[pair],
    }
    for axis, (title, tile) in zip(row, tiles.items(), strict=True):
        axis.imshow(tile, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
for axis in axes.flat:
    axis.axis("off")
plt.show()

# %% [markdown]
# Whether that is right can be measured here, since the cues are known. Of the picture's pixels few are cues; of
# the minimal region's most should be.

# %%
cues = torch.stack([torch.from_numpy(pictures.cues(int(n))) for n in found.pairs.samples])
for name, regions in {"sufficient": found.sufficient.regions, "minimal": found.minimal.regions}.items():
    inside = (regions & cues).sum() / regions.sum()
    print(f"{name} regions: {regions.float().mean():.0%} of the pictures, {inside:.0%} of it cues")
print(f"cues: {cues.float().mean():.0%} of the pictures")
assert found.minimal.regions.sum() <= found.sufficient.regions.sum()

# %% [markdown]
# ## Can a mask be trusted?
#
# A score is fitted on validation pictures, whose masks are known: from numbers that need no mask, such as the
# entropy, the compactness of the region or whether the mirrored picture gives the same mask, to the probability
# that the Dice is good enough. Then it is used where no mask is known. Test pictures are never seen by the fit.

# %%
_, val_batches = load("val", 128)
known = judge_predictions(model, val_batches, groups=FEATURE_SETS["cheap"])
min_dice = float(known.dice.median())
score = fit_score(known.features, known.dice, known.names, min_dice=min_dice)

_, test_batches = load("test", 128)
unseen = judge_predictions(model, test_batches, groups=FEATURE_SETS["cheap"])
score.check_unseen(unseen.names)
trust = score.rate(unseen.features).numpy()
dice = unseen.dice.numpy()
for name, values in {"trust": trust, "maximum softmax": unseen.features["max_probability"].numpy()}.items():
    print(f"{name}: AUROC of 'Dice below {min_dice:.2f}' {measure_detection(values, dice, min_dice).auroc:.2f}")

curve, best = trace_risk(trust, dice), trace_risk(dice, dice)
_, axes = plt.subplots(1, 2, figsize=(8, 3))
axes[0].scatter(trust, dice, s=8)
axes[0].axhline(min_dice, color="gray", linewidth=0.8)
axes[0].set_xlabel("trust")
axes[0].set_ylabel("Dice")
axes[1].plot(curve.coverages, curve.risks, label="by trust")
axes[1].plot(best.coverages, best.risks, label="by the Dice itself")
axes[1].set_xlabel("share of masks that is kept")
axes[1].set_ylabel("mean of 1 - Dice")
axes[1].legend()
plt.tight_layout()
plt.show()
assert ((trust >= 0) & (trust <= 1)).all()

# %% [markdown]
# `tw-seg explain` does the first for a folder of pictures, `tw-seg reliability fit` and `score` the second;
# `docs/explain.md` says more.
