"""A folder in which much is wrong, made on purpose, and one in which nothing is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

CLASSES = ("background", "cat", "dog")
PHOTOS = load_sample_images().images


def picture(index: int, side: int = 48) -> np.ndarray:
    """A photograph's square that no other index has."""
    x, y = 90 * (index % 7), 90 * (index // 7 % 4)
    return np.array(Image.fromarray(PHOTOS[index // 28][y : y + 90, x : x + 90]).resize((side, side)))


def mask_of(shown: str, side: int = 48) -> np.ndarray:
    """A mask with a square of a cat (c) or a dog (d), or with both."""
    mask = np.zeros((side, side), dtype=np.uint8)
    if "c" in shown:
        mask[4:20, 4:20] = 1
    if "d" in shown:
        mask[24:40, 24:40] = 2
    return mask


def write(root: Path, rows: dict[str, tuple[str, str]]) -> None:
    """Write a folder data set: names with their split and what they show; every image has its mask."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    lines = ["image,split,patient,cat,dog"]
    for index, (name, (split, shown)) in enumerate(rows.items()):
        Image.fromarray(picture(index)).save(root / "images" / f"{name}.png")
        Image.fromarray(mask_of(shown)).save(root / "masks" / f"{name}.png")
        lines.append(f"{name},{split},p{index // 2},{int('c' in shown)},{int('d' in shown)}")
    (root / "image_labels.csv").write_text("\n".join(lines) + "\n")


def write_good(root: Path) -> None:
    """Twelve images of which nothing is wrong."""
    kinds = ("c", "d", "cd", "")
    write(root, {f"im{i}": ("train" if i < 8 else "val", kinds[i % 4]) for i in range(12)})


def write_messy(root: Path) -> None:
    """The same with one fault of each kind; names say which."""
    kinds = ("c", "d", "cd", "")
    names = "good broken empty large wrongid nomaskdata denied missing twin alone x y".split()
    write(root, {name: ("train" if i < 8 else "val", kinds[i % 4]) for i, name in enumerate(names)})
    images, masks = root / "images", root / "masks"
    data = (images / "broken.png").read_bytes()
    (images / "broken.png").write_bytes(data[: len(data) // 2])
    (images / "empty.png").write_bytes(b"")
    Image.fromarray(mask_of("d", 50)).save(masks / "large.png")
    Image.fromarray(mask_of("c") * 7).save(masks / "wrongid.png")
    (masks / "nomaskdata.png").write_bytes(b"no picture")
    Image.fromarray(mask_of("cd")).save(masks / "denied.png")  # the labels know both; see below
    Image.fromarray(mask_of("")).save(masks / "x.png")
    Image.fromarray(np.rot90(picture(0))).save(images / "twin.png")
    (masks / "alone.png").rename(masks / "alone_mask.png")
    text = (root / "image_labels.csv").read_text()
    text = text.replace("denied,train,p3,1,1", "denied,train,p3,1,0").replace("x,val,p5,1,1", "x,val,p5,0,1")
    (root / "image_labels.csv").write_text(text + "absent,train,p9,1,0\ny,val,p9,0,0\n")
