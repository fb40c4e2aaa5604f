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
# # From a classifier to a segmentation model
#
# An image classifier answers *what* is in an image with one number per class, its **logit**. It also knows
# something about *where*: each logit is a sum of what the pixels contributed on their way through the net.
# **Layer-wise relevance propagation** (LRP) follows that way back. It starts with one logit and hands it
# from layer to layer, each neuron dividing its share among its inputs in proportion to what they put in.
# What arrives at the pixels is a **heatmap** for that class: red (positive) spoke for it, blue (negative)
# against it.
#
# In tw_seg the way back is made of ordinary differentiable operations on the classifier's own weights, so a
# heatmap can be trained like any output. This notebook decodes a classifier, checks the numbers, and then
# trains one to segment. It needs no network and no GPU, and runs in well under a minute on one core.

# %%
import matplotlib.pyplot as plt
import torch
import torchvision

from tw_seg import HeatmapDecoder, HeatmapSegmenter
from tw_seg.data import DigitScenes
from tw_seg.data.loading.collate import collate
from tw_seg.data.loading.items import EvalItems
from tw_seg.data.loading.transforms import EvalTransform
from tw_seg.losses import SegmentationLoss
from tw_seg.lrp.conservation.diagnose import completeness

torch.manual_seed(0)

scenes = DigitScenes("train", size=64, length=16)  # handwritten digits over photographs; class 0: background
items = EvalItems(scenes, EvalTransform(64))
batch = collate([items[i] for i in range(len(items))])
print("images", tuple(batch.images.shape), "masks", tuple(batch.masks.shape), "classes", len(scenes.classes))


def show(pictures):
    """RGB images as they are, signed maps from blue (negative) over white (0) to red (positive)."""
    _, axes = plt.subplots(1, len(pictures), figsize=(2.3 * len(pictures), 2.6), squeeze=False)
    for axis, (title, picture) in zip(axes[0], pictures.items(), strict=True):
        limit = float(abs(picture).max())
        axis.imshow(picture, cmap="bwr", vmin=-limit, vmax=limit)  # for RGB, only the picture counts
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    plt.show()


# %% [markdown]
# ## Decode any classifier
#
# Any `torch.nn.Module` that maps images (N, C, H, W) to logits (N, K) will do, if `torch.fx` can trace it.
# Here it is a ResNet-18 with random weights, so its heatmaps mean nothing yet; with
# `torchvision.models.resnet18(weights="DEFAULT")`, which downloads pretrained weights once, or with your own
# trained net the rest of the cell stays the same. All images are classified; `classes` and `samples` pick
# the heatmaps, and no others are computed.

# %%
classifier = torchvision.models.resnet18(num_classes=len(scenes.classes))
with torch.no_grad():
    classifier(batch.images)  # once in training mode: BatchNorm has now seen our images, as in a trained net
classifier.eval()

decoder = HeatmapDecoder(classifier)
with torch.no_grad():
    logits, heatmaps, _ = decoder(batch.images, classes=[3, 7], samples=torch.tensor([0]))
print("logits", tuple(logits.shape), "heatmaps", tuple(heatmaps.shape))

pictures = {"image": scenes[0].image}
for column, k in enumerate([3, 7]):
    pictures[f"{scenes.classes[k]!r}, logit {logits[0, k]:.2f}"] = heatmaps[0, column].numpy()
show(pictures)

# %% [markdown]
# Two facts make heatmaps trustworthy, and both can be checked. With the default rule (`"epsilon"` with
# epsilon 0) and ReLUs, the heatmap is exactly *input times gradient*, summed over the colour channels. And
# nothing gets lost: a heatmap **sums to its logit, less the part that biases put in**, because that part
# came from no pixel. (In double precision, so that rounding cannot hide a mistake.)

# %%
exact = HeatmapDecoder(classifier.double())
images = batch.images[:2].double().requires_grad_()
logits, heatmaps, _ = exact(images, classes=[3])
(gradient,) = torch.autograd.grad(logits[:, 3].sum(), images)
input_x_gradient = (images * gradient).sum(1)
difference = (heatmaps[:, 0] - input_x_gradient).abs().max() / input_x_gradient.abs().max()
print(f"largest relative difference to input x gradient: {difference.item():.0e}")
assert difference < 1e-10

account = completeness(exact, images.detach(), classes=[3])
for logit, pixels, biases in zip(account.logits, account.heatmap, account.bias, strict=True):
    print(f"logit {logit.item():+.6f} = heatmap {pixels.item():+.6f} + biases {biases.item():+.6f}")
assert account.missing.abs().max() < 1e-10

# %% [markdown]
# A heatmap can be read anywhere on the way back. At the input it is as fine as the image and as noisy as a
# gradient; deeper inside it is coarser and smoother, and fewer layers have been crossed. Name a module, or
# several.

# %%
depths = ("input", "layer1", "layer2", "layer3")
decoder = HeatmapDecoder(classifier.float(), read_out=depths)
with torch.no_grad():
    decoded = decoder(batch.images[:1], classes=[3])
maps = {depth: heatmap[0, 0].numpy() for depth, heatmap in zip(depths, decoded.readouts, strict=True)}
show({"image": scenes[0].image, **maps})

# %% [markdown]
# ## Train the heatmaps
#
# `HeatmapSegmenter` puts a scale and an offset on the heatmaps and calls them mask logits: their argmax is
# the mask. The loss has two ends. All 16 scenes tell which digits they show, so the logits of all of them
# are trained; only the first 8 have masks here, and `samples` decodes no others. There is one set of
# weights, the classifier's, and both ends train it (`tie_weights=False` would give the way back weights of
# its own). A small net is enough for digits.

# %%
few_masks = batch._replace(labelled=torch.arange(8), masks=batch.masks[:8])
model = HeatmapSegmenter(
    "timm/resnet10t",
    classes=len(scenes.classes),
    encoder_kwargs={"channels": [16, 32, 64, 128]},
    decoder_kwargs={"read_out": "layer1"},
)
loss_function = SegmentationLoss()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

losses = []
for step in range(60):
    loss, parts = loss_function(model(few_masks.images, samples=few_masks.labelled), few_masks)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if step % 10 == 9:
        shown = ", ".join(f"{name} {part.item():.2f}" for name, part in parts.items())
        print(f"step {step + 1}: loss {loss.item():.2f} ({shown})")
assert losses[-1] < 0.5 * losses[0]

plt.figure(figsize=(5, 2.5))
plt.plot(losses)
plt.xlabel("step")
plt.ylabel("loss")
plt.show()

# %% [markdown]
# Now the masks. The first three scenes had a mask in training and the model has learned them; the last one
# never had. Sixteen scenes are learned by heart and teach little about others: the main job in the README
# does the same with 2,000 scenes, 20 masks and a few minutes, and `tw-seg fit` with your own images.

# %%
model.eval()
with torch.no_grad():
    output = model(batch.images)
masks = output.mask_logits.argmax(1)

_, axes = plt.subplots(4, 4, figsize=(8, 8.6))
for row, index in zip(axes, (0, 1, 2, 12), strict=True):
    digit = int(batch.labels[index, 1:].argmax()) + 1
    heatmap = output.mask_logits[index, digit]
    limit = heatmap.abs().max()
    row[0].imshow(scenes[index].image)
    row[1].imshow(batch.masks[index], cmap="tab20", vmin=0, vmax=19)
    row[2].imshow(masks[index], cmap="tab20", vmin=0, vmax=19)
    row[3].imshow(heatmap, cmap="bwr", vmin=-limit, vmax=limit)
    mask_title = "mask" if index in few_masks.labelled else "mask (kept from it)"
    titles = ("image", mask_title, "predicted", f"mask logits of {scenes.classes[digit]!r}")
    for axis, title in zip(row, titles, strict=True):
        axis.set_title(title, fontsize=9)
        axis.axis("off")
plt.show()

digits = batch.masks[:8] > 0
hits = (masks[:8] == batch.masks[:8])[digits].float().mean().item()
print(f"pixels of digits in the 8 learned scenes that got the right class: {hits:.0%}")
assert hits > 0.5
