"""How good are the masks of ``tw-seg demo``, for which nothing was trained? IoU against a folder's masks.

    python -m experiments.score_demo data/msrc_objects

The folder has the layout of Pascal VOC and the classes of MSRC v2. A fixed table says which ImageNet classes mean which
of its classes; classes without any (face, body) are left out. Two columns of IoU: ``found``, the objects that the demo
sees by itself, an object counting for the class that its likeliest name means; ``named``, told which classes an image
shows, the likeliest ImageNet class of each being followed. Pixels of all images are counted together; 255 is ignored.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tw_seg.data import VOCDataset
from tw_seg.data.loading.transforms import EvalTransform
from tw_seg.metrics import confusion_matrix, iou_per_class
from tw_seg.models.posthoc.photograph import FoundObject, ObjectFinder, choose_size
from tw_seg.types import IGNORE_INDEX, SYMMETRIC, Sample

IMAGENET_IDS: dict[str, tuple[int, ...]] = {
    "cow": (345, 346),
    "sheep": (348, 349),
    "aeroplane": (404, 895),
    "car": (407, 436, 468, 511, 609, 627, 656, 661, 717, 751, 817, 864),
    "bicycle": (444, 671),
    "flower": (985, 986),
    "sign": (919,),
    "bird": (*range(7, 25), *range(80, 101), *range(127, 147)),
    "book": (917, 921),
    "chair": (423, 559, 765, 857),
    "cat": (*range(281, 286),),
    "dog": (*range(151, 269),),
    "boat": (472, 484, 510, 554, 576, 625, 628, 780, 814, 871, 914),
}
"""Class of MSRC v2 -> the ImageNet classes that are one."""


def paint_objects(found: Sequence[FoundObject], classes: Sequence[str], shape: Sequence[int]) -> np.ndarray:
    """A mask of the folder's class ids; objects that are none of its classes are background."""
    meaning = {index: classes.index(name) for name, ids in IMAGENET_IDS.items() if name in classes for index in ids}
    mask = np.zeros(shape, dtype=np.int64)
    for one in found:
        mask[one.mask] = meaning.get(one.indices[0], 0)
    return mask


def name_objects(finder: ObjectFinder, sample: Sample, classes: Sequence[str]) -> list[FoundObject]:
    """What the demo finds where it is told which classes to look for."""
    shape = sample.image.shape[:2]
    images = EvalTransform(choose_size(shape), **SYMMETRIC._asdict())(sample.image, None)[0][None]
    probabilities = finder.classify(images)
    names = [name for name, label in zip(classes, sample.labels, strict=True) if label]
    shown = [IMAGENET_IDS[name] for name in names if name in IMAGENET_IDS]
    best = [max(ids, key=lambda index: float(probabilities[index])) for ids in shown]
    return finder.locate_classes(images, best, probabilities, shape) if best else []


def main(args: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("experiments.score_demo", description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, help="folder in the layout of Pascal VOC")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th image of train and val")
    given = parser.parse_args(args)
    splits = [VOCDataset(root=str(given.root), split=split) for split in ("train", "val")]
    classes = splits[0].classes
    known = torch.tensor([0] + [k for k, name in enumerate(classes) if name in IMAGENET_IDS])
    finder, told = ObjectFinder(), ObjectFinder(same=1.01)
    counts = torch.zeros(2, len(classes), len(classes), dtype=torch.int64)
    images, seen = np.zeros(len(classes), dtype=int), np.zeros(len(classes), dtype=int)
    for sample in [data[row] for data in splits for row in range(len(data))][:: given.every]:
        if sample.mask is None:
            continue
        truth = torch.from_numpy(sample.mask.astype(np.int64))
        found = finder.find_objects(sample.image)
        for row, objects in enumerate((found, name_objects(told, sample, classes))):
            mask = torch.from_numpy(paint_objects(objects, classes, truth.shape))
            kept = (truth != IGNORE_INDEX) & torch.isin(truth, known)
            counts[row] += confusion_matrix(truth[kept], mask[kept], len(classes))
        names = {index for one in found for index in one.indices}
        for k in (k for k in known.tolist()[1:] if sample.labels[k]):
            images[k] += 1
            seen[k] += not names.isdisjoint(IMAGENET_IDS[classes[k]])
    scores = torch.stack([iou_per_class(one) for one in counts])
    print(f"{'class':10} {'images':>6} {'seen':>5} {'found':>6} {'named':>6}")
    for k in known.tolist():
        rates = f"{images[k]:6d} {seen[k] / max(images[k], 1):5.2f}" if k else f"{'':6} {'':5}"
        print(f"{classes[k]:10} {rates} {scores[0, k]:6.3f} {scores[1, k]:6.3f}")
    objects = known[1:][torch.from_numpy(images)[known[1:]] > 0]
    means = scores[:, objects].mean(1)
    print(f"{'mean':10} {'':6} {'':5} {means[0]:6.3f} {means[1]:6.3f}")


if __name__ == "__main__":
    main()
