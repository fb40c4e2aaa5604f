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
# # Masks from image-level labels alone
#
# Somebody has said *what* each picture shows, and nobody has drawn a mask. A classifier learns from the labels, its
# decision is followed back to the picture by LRP, and the **relevance** that arrives there is cut: a mask. Nothing of
# the second part is trained (after Seibold et al. 2022). No network, no GPU, under a minute.

# %%
import matplotlib.pyplot as plt
import torch

from tw_seg import create_model
from tw_seg.data import DigitScenes
from tw_seg.data.loading.collate import collate
from tw_seg.data.loading.items import EvalItems
from tw_seg.data.loading.transforms import EvalTransform
from tw_seg.losses import SegmentationLoss

torch.manual_seed(0)
SIZE = 32

scenes = DigitScenes("train", size=SIZE, length=256)  # handwritten digits over photographs
items = EvalItems(scenes, EvalTransform(SIZE))
batches = [collate([items[i] for i in range(start, start + 32)]) for start in range(0, len(items), 32)]
batches = [batch._replace(labelled=batch.labelled[:0], masks=batch.masks[:0]) for batch in batches]  # no mask at all
print("pictures", len(scenes), "masks", sum(len(batch.masks) for batch in batches))

# %% [markdown]
# ## A classifier, from the labels

# %%
encoder = {
    "encoder_name": "timm/resnet10t",
    "encoder_kwargs": {"channels": [32, 48, 64, 64], "output_stride": 8},
}
classifier = create_model("classifier", **encoder, classes=len(scenes.classes))
loss_function = SegmentationLoss()
optimizer = torch.optim.AdamW(classifier.parameters(), lr=4e-3, weight_decay=0.01)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=240)
losses = []
for step in range(240):
    batch = batches[step % len(batches)]
    loss, _ = loss_function(classifier(batch.images), batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
assert losses[-1] < 0.7 * losses[0]

# %% [markdown]
# ## From its decision to masks
#
# `lrp_mask` takes the classifier as it is. Each step has a name and a number: the rule by which relevance is divided
# (`composite`), the depths at which it is read, smoothing, and where the map is cut. Here the read-outs are layers
# inside, of 8 x 8 and 4 x 4 cells, so that masks are coarse; at the input maps are finer and noisier.

# %%
state = classifier.classifier.state_dict()


def make_masks(**steps):
    model = create_model("lrp_mask", **encoder, classes=len(scenes.classes), **steps)
    model.load_classifier_state(state)
    return model.eval()


test = EvalItems(DigitScenes("train", size=SIZE, length=12), EvalTransform(SIZE))
batch = collate([test[i] for i in range(12)])
steps = {
    "share of the maximum": {"threshold_rule": "share", "threshold_value": 0.4},
    "Otsu": {"threshold_rule": "otsu"},
    "half of the relevance": {"threshold_rule": "mass", "threshold_value": 0.5},
    "two groups": {"threshold_rule": "mixture"},
}
decoder = {"composite": "epsilon_plus", "read_out": ["layer1", "layer2"]}
masks = {}
with torch.no_grad():
    for name, rule in steps.items():
        masks[name] = make_masks(decoder_kwargs=decoder, smooth=0.7, **rule)(batch.images).mask_logits.argmax(1)

_, axes = plt.subplots(5, 2 + len(masks), figsize=(10, 8.6))
for index, row in enumerate(axes):
    tiles = {"picture": scenes[index].image, "mask (not used)": batch.masks[index]}
    tiles |= {name: found[index] for name, found in masks.items()}
    for axis, (title, tile) in zip(row, tiles.items(), strict=True):
        axis.imshow(tile, cmap="tab20", vmin=0, vmax=19)
        axis.set_title(title if index == 0 else "", fontsize=8)
        axis.axis("off")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## How good are they?
#
# The true masks are for scoring only. Which rule is best depends on the data and the classifier; with a few masks
# `threshold_rule="calibrated"` chooses the threshold by their mean IoU.

# %%
truth = batch.masks > 0
for name, found in masks.items():
    painted = found > 0
    overlap = (painted & truth).sum() / (painted | truth).sum()
    print(f"{name:22} {painted.float().mean():4.0%} painted, IoU of digits against the rest {overlap:.2f}")
share = truth.float().mean()
print(f"{'all pixels':22} 100% painted, IoU {share:.2f}")
best = max(float(((f > 0) & truth).sum() / ((f > 0) | truth).sum()) for f in masks.values())
assert best > share

# %% [markdown]
# These pictures were also used to train the classifier, with their labels. The same from the command line, for a folder
# with labels: `docs/lrp_mask.md`.
