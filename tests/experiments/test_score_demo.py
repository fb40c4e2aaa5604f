"""Scores of the demo's masks, on two photographs in the layout of Pascal VOC."""

from __future__ import annotations

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image
from sklearn.metrics import jaccard_score
from timm.data import ImageNetInfo

from experiments.score_demo import IMAGENET_IDS, main, paint_objects
from tw_seg.models.posthoc.photograph import ObjectFinder


def test_the_table_of_classes_is_right():
    info = ImageNetInfo()
    ids = [index for group in IMAGENET_IDS.values() for index in group]
    assert len(ids) == len(set(ids))
    words = {"cow": "ox|buffalo", "aeroplane": "airliner|warplane", "sheep": "ram,|bighorn", "bicycle": "bicycle|bike"}
    for name, choices in words.items():
        described = [info.index_to_description(index) for index in IMAGENET_IDS[name]]
        assert all(any(word in one for word in choices.split("|")) for one in described), described
    for name, (first, last) in {"dog": ("Chihuahua", "Mexican hairless"), "cat": ("tabby", "Egyptian cat")}.items():
        group = IMAGENET_IDS[name]
        assert info.index_to_description(group[0]).startswith(first)
        assert info.index_to_description(group[-1]).startswith(last)


def test_scores_are_scikit_learns(tmp_path, capsys):
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    classes, photos = ("background", "cat", "flower"), {"c": data.cat(), "f": load_sample_image("flower.jpg")}
    (tmp_path / "classes.txt").write_text("\n".join(classes))
    truths, painted, finder = [], [], ObjectFinder()
    for number, (name, photo) in enumerate(photos.items(), start=1):
        Image.fromarray(photo).save(tmp_path / "JPEGImages" / f"{name}.png")
        mask = np.zeros(photo.shape[:2], dtype=np.uint8)
        mask[50:200, 100:300], mask[:20] = number, 255
        Image.fromarray(mask).save(tmp_path / "SegmentationClass" / f"{name}.png")
        truths.append(mask[mask != 255])
        painted.append(paint_objects(finder.find_objects(photo), classes, mask.shape)[mask != 255])
    for split, names in {"train": "c", "val": "f"}.items():
        (tmp_path / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(names)
    main([str(tmp_path)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = jaccard_score(np.concatenate(truths), np.concatenate(painted), average=None)
    assert [row[:3] for row in rows[2:4]] == [["cat", "1", "1.00"], ["flower", "1", "1.00"]]
    assert [float(row[-2]) for row in rows[1:4]] == [round(value, 3) for value in expected]
    assert rows[4][0] == "mean" and float(rows[4][1]) == round(expected[1:].mean(), 3)
