from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from lxml import etree
from PIL import Image

from tw_seg.data.layouts.voc import VOC_CLASSES, VOCDataset
from tw_seg.errors import DataError

MASKS = {"2007_1": [0, 15, 255], "2007_2": [0, 2, 20], "2007_3": [0]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    for name, ids in MASKS.items():
        mask = np.resize(np.array(ids, dtype=np.uint8), (9, 12))
        palette = Image.fromarray(mask)
        palette.putpalette([v for i in range(256) for v in (255 - i, i, 3 * i % 256)])
        palette.save(tmp_path / "SegmentationClass" / f"{name}.png")
        Image.fromarray(np.full((9, 12, 3), 100, dtype=np.uint8)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("2007_1\n2007_2 \n\n")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("2007_3\n")
    return tmp_path


def test_labels_from_masks(root):
    data = VOCDataset(root, "train")
    assert data.classes == VOC_CLASSES and len(VOC_CLASSES) == 21
    assert data.names == ("2007_1", "2007_2") and len(data) == 2
    assert [tuple(np.flatnonzero(row)) for row in data.labels] == [(0, 15), (0, 2, 20)]
    assert data.labels.dtype == np.float32 and data.has_mask.all()
    for index, name in enumerate(data.names):
        sample = data[index]
        assert sample.image.shape == (9, 12, 3) and sample.name == name
        np.testing.assert_array_equal(sample.mask, np.resize(MASKS[name], (9, 12)))
    assert data.load(0, mask=False).mask is None


def test_a_table_with_unknown_labels_and_classes_that_were_annotated(root):
    header = "image,annotated,cat,dog"
    (root / "classes.txt").write_text("background\ncat\ndog")
    (root / "image_labels.csv").write_text(f"{header}\n2007_2,,1,?\n2007_1,cat,1,\n")
    data = VOCDataset(root, split="train")
    assert data.names == ("2007_1", "2007_2")
    np.testing.assert_array_equal(data.labels, [[1, 1, np.nan]] * 2)
    assert data.annotated.tolist() == [[True, True, False], [True] * 3]


def test_own_classes_and_table(root):
    (root / "classes.txt").write_text("\n".join(["background", *(f"c{i}" for i in range(1, 21))]))
    header = ",".join(f"c{i}" for i in range(20, 0, -1))
    (root / "image_labels.csv").write_text(
        f"image,{header}\n2007_2,{','.join('1' * 20)}\n2007_1,{','.join('0' * 19)},1\n"
    )
    (root / "SegmentationClass" / "2007_2.png").unlink()
    data = VOCDataset(root, split="train")
    assert data.classes[3] == "c3"
    np.testing.assert_array_equal(data.labels[0], [1, 1, *[0] * 19])
    np.testing.assert_array_equal(data.labels[1], np.ones(21))
    assert data.has_mask.tolist() == [True, False] and data[1].mask is None
    with pytest.raises(DataError, match=r"image_labels.csv: no row for 1 images of the split, first '2007_3'"):
        VOCDataset(root, "val")


def test_table_that_lacks_a_class(root):
    (root / "image_labels.csv").write_text("image,cat\n2007_1,0\n2007_2,0\n")
    with pytest.raises(DataError, match=r"image_labels.csv: no column for the classes aeroplane, bicycle"):
        VOCDataset(root, "train")


def test_table_that_lists_an_image_twice(root):
    (root / "classes.txt").write_text("background\ncat\n")
    (root / "image_labels.csv").write_text("image,cat\n2007_1,0\n2007_2,0\n2007_1,1\n")
    with pytest.raises(DataError, match=r"image_labels.csv: the image '2007_1' is listed twice"):
        VOCDataset(root, "train")


def test_unknown_and_empty_splits(root):
    with pytest.raises(DataError, match=r"test.txt: there is no split 'test'; found: train, val"):
        VOCDataset(root, "test")
    (root / "ImageSets/Segmentation/val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val.txt: the split 'val' is empty"):
        VOCDataset(root, "val")


def test_image_listed_twice(root):
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_3\n2007_3\n")
    with pytest.raises(DataError, match=r"val.txt: the image '2007_3' is listed twice"):
        VOCDataset(root, "val")


@pytest.mark.parametrize("line", ["2007_1", "2007_1.jpg", "JPEGImages/2007_1.jpg SegmentationClass/2007_1.png"])
def test_image_in_two_splits(root, line):
    (root / "ImageSets/Segmentation/val.txt").write_text(f"2007_3\n{line}\n")
    for split in ("train", "val"):
        with pytest.raises(DataError, match="Segmentation: the image '2007_1' is in two splits, 'train' and 'val'"):
            VOCDataset(root, split)
    assert len(VOCDataset(root, "train", need_labels=False)) == 2


def test_a_list_that_joins_two_splits(root):
    (root / "ImageSets/Segmentation/trainval.txt").write_text("2007_1\n2007_2\n2007_3\n")
    assert [len(VOCDataset(root, split)) for split in ("train", "val", "trainval")] == [2, 1, 3]


def test_missing_files(root):
    (root / "JPEGImages" / "2007_3.jpg").unlink()
    with pytest.raises(DataError, match=r"2007_3.jpg: .*val.txt lists this image, but there is no such file"):
        VOCDataset(root, "val")
    (root / "SegmentationClass" / "2007_3.png").unlink()
    (root / "SegmentationClass" / "2007_1.png").unlink()
    with pytest.raises(DataError, match=r"2007_1.png: the mask file is missing and there is no .*image_labels.csv"):
        VOCDataset(root, "train")


def test_bad_masks(root):
    path = root / "SegmentationClass" / "2007_1.png"
    data = VOCDataset(root, "train")
    Image.fromarray(np.zeros((12, 9), dtype=np.uint8)).save(path)
    with pytest.raises(DataError, match=r"2007_1.png: the mask has 12x9 pixels"):
        data[0]
    Image.fromarray(np.full((9, 12), 21, dtype=np.uint8)).save(path)
    with pytest.raises(
        DataError, match=r"2007_1.png: the mask must hold class ids 0\.\.20 or 255 \(ignored\), found 21"
    ):
        data[0]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"2007_1.png: cannot read the mask"):
        data[0]
    with pytest.raises(DataError, match=r"2007_1.png: cannot read the mask"):
        VOCDataset(root, "train")  # the labels come from the masks


def test_msrc_objects(shared_data):
    train, val = (VOCDataset(shared_data / "msrc_objects", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (276, 58) and not set(train.names) & set(val.names)
    assert len(train.classes) == 16 and train.has_mask.all()
    seen = np.zeros(256, dtype=int)
    for index in range(0, 276, 20):
        sample = train[index]
        assert sample.mask.shape == sample.image.shape[:2]
        present = np.unique(sample.mask)
        assert set(present[(present > 0) & (present < 255)]) <= set(np.flatnonzero(sample.labels))
        seen += np.bincount(sample.mask.ravel(), minlength=256)
    assert seen[255] > 0 and seen[1:16].any() and not seen[16:255].any()


@pytest.mark.parametrize(
    "line",
    [
        "2007_3.jpg",
        "JPEGImages/2007_3.jpg",
        "JPEGImages/2007_3.jpg SegmentationClass/2007_3.png",
        "/JPEGImages/2007_3.jpg\t/SegmentationClass/2007_3.png",
        "2007_3.jpg 2007_3.png",
    ],
)
def test_lists_of_files(root, line):
    (root / "ImageSets/Segmentation/val.txt").write_text(f"{line}\n")
    data = VOCDataset(root, "val")
    assert data.names == ("2007_3",) and data.has_mask.all()


def test_names_with_dots_spaces_and_folders(root):
    (root / "JPEGImages" / "street").mkdir()
    (root / "SegmentationClass" / "street").mkdir()
    for name in ("a b.jpg.v2", "street/c"):
        (root / "JPEGImages" / f"{name}.JPG").write_bytes((root / "JPEGImages" / "2007_3.jpg").read_bytes())
        (root / "SegmentationClass" / f"{name}.PNG").write_bytes(
            (root / "SegmentationClass" / "2007_3.png").read_bytes()
        )
    (root / "ImageSets/Segmentation/val.txt").write_text("a b.jpg.v2\nstreet/c\n")
    data = VOCDataset(root, "val")
    assert data.names == ("a b.jpg.v2", "street/c") and data.has_mask.all()
    assert data[1].mask.shape == (9, 12)


@pytest.mark.parametrize(
    "line", ["2007_3 1", "2007_3.jpg SegmentationClassAug/2007_3.png", "2007_3 2007_1.png", "2007_3 2007_3.png 1"]
)
def test_lists_of_something_else(root, line):
    (root / "ImageSets/Segmentation/val.txt").write_text(f"{line}\n")
    with pytest.raises(
        DataError, match=r"val.txt: expected a name alone, or the files of an image and of its mask .*found"
    ):
        VOCDataset(root, "val")


def test_a_mask_that_the_list_names_but_is_not_there(root):
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_3.jpg 2007_3.png\n")
    (root / "SegmentationClass" / "2007_3.png").unlink()
    with pytest.raises(DataError, match=r"2007_3.png: .*val.txt lists this mask, but there is no such file"):
        VOCDataset(root, "val")


def test_an_image_that_is_almost_there(root):
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_03\n")
    with pytest.raises(DataError, match=r"'2007_3' is like it, but with other zeros in front of a number"):
        VOCDataset(root, "val")
    (root / "ImageSets/Segmentation/val.txt").write_text("x\n")
    with pytest.raises(DataError, match=r"\(there is 2007_1.jpg, 2007_2.jpg, 2007_3.jpg\)"):
        VOCDataset(root, "val")


def test_masks_that_match_no_image(root):
    (root / "SegmentationClass" / "2007_4.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"SegmentationClass: 1 of 4 mask files belong to no image by name"):
        assert "2007_4.png" in VOCDataset(root, "train").mask_search
    (root / "SegmentationClass" / "2007_4.png").rename(root / "SegmentationClass" / "2007_3.bmp")
    (root / "SegmentationClass" / "2007_3.png").unlink()
    with pytest.raises(DataError, match=r"2007_3.bmp: masks must be PNG files"):
        VOCDataset(root, "val")


def test_a_list_is_enough_to_predict(root):
    for path in (root / "SegmentationClass").iterdir():
        path.unlink()
    data = VOCDataset(root, "train", classes=["background", "cat"], need_labels=False)
    assert data.classes == ("background", "cat")
    np.testing.assert_array_equal(data.labels, [[1, np.nan], [1, np.nan]])
    assert data[0].mask is None and not data.has_mask.any()


def test_two_images_of_one_name(root):
    picture = Image.open(root / "JPEGImages" / "2007_1.jpg")
    picture.save(root / "JPEGImages" / "2007_1.png")
    for line in ("2007_1", "2007_1.png"):
        (root / "ImageSets/Segmentation/train.txt").write_text(f"{line}\n")
        with pytest.raises(DataError, match=r"2007_1: .* may be 2007_1.jpg, 2007_1.png; leave one of them"):
            VOCDataset(root, "train")


def test_all_errors_of_single_images_are_told_and_the_rest_is_read(root):
    lists = root / "ImageSets/Segmentation"
    (lists / "train.txt").write_text("2007_1\nno such\n2007_2\n2007_1\n2007_3\n")
    (root / "SegmentationClass" / "2007_2.png").write_bytes(b"broken")
    errors: list[DataError] = []
    data = VOCDataset(root, "train", on_error=errors.append)
    assert data.names == ("2007_1", "2007_2", "2007_3")
    assert [tuple(np.flatnonzero(row)) for row in data.labels] == [(0, 15), (0,), (0,)]
    for error, part in zip(
        errors, ("listed twice", "no such", "in two splits", "2007_2.png: cannot read"), strict=True
    ):
        assert part in str(error)


def test_splits_and_no_split(root):
    assert VOCDataset.list_splits(root) == ("train", "val")
    (root / "ImageSets/Segmentation/trainval.txt").write_text("2007_1\n")
    assert VOCDataset.list_splits(root) == ("train", "val")
    for name in ("train", "val"):
        (root / f"ImageSets/Segmentation/{name}.txt").unlink()
    assert VOCDataset.list_splits(root) == ("trainval",)
    (root / "ImageSets/Segmentation/trainval.txt").unlink()
    assert VOCDataset.list_splits(root) == (None,)
    assert VOCDataset(root, None).names == ("2007_1", "2007_2", "2007_3")


def test_names_in_another_unicode_form(root):
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (root / folder / f"2007_3.{suffix}").rename(root / folder / f"cafe\u0301.{suffix}")
    (root / "ImageSets/Segmentation/val.txt").write_text("caf\u00e9\n", encoding="utf-8")
    data = VOCDataset(root, "val")
    assert data.names == ("caf\u00e9",) and data[0].mask is not None


def write_objects(path: Path, *names: str) -> None:
    """As the annotation files of Pascal VOC, with what else they hold."""
    path.parent.mkdir(exist_ok=True)
    root = etree.Element("annotation")
    etree.SubElement(root, "filename").text = f"{path.stem}.jpg"
    for name in names:
        found = etree.SubElement(root, "object")
        etree.SubElement(found, "name").text = name
        etree.SubElement(etree.SubElement(found, "part"), "name").text = "head"
    etree.ElementTree(root).write(str(path))


def test_labels_from_annotation_files(root):
    write_objects(root / "Annotations" / "2007_1.xml", "cat", "person", "cat")
    (root / "SegmentationClass" / "2007_1.png").unlink()
    data = VOCDataset(root, "train")
    assert [tuple(np.flatnonzero(row)) for row in data.labels] == [(0, 8, 15), (0, 2, 20)]
    assert data.has_mask.tolist() == [False, True]
    write_objects(root / "Annotations" / "2007_1.xml", "unicorn")
    with pytest.raises(DataError, match=r"2007_1.xml: the class 'unicorn' is not in the class list \(background, aero"):
        VOCDataset(root, "train")
    (root / "Annotations" / "2007_1.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>')
    with pytest.raises(DataError, match=r"2007_1.xml: XML with entities or references is not read"):
        VOCDataset(root, "train")


def test_masks_in_colours(root):
    colors = {"cat": [1, 2, 3], "dog": [30, 20, 10]}
    rgb = np.zeros((9, 12, 3), dtype=np.uint8)
    rgb[2:4], rgb[5], rgb[7] = colors["cat"], colors["dog"], (224, 224, 192)
    for name in MASKS:
        Image.fromarray(rgb).save(root / "SegmentationClass" / f"{name}.png")
    expected = np.zeros((9, 12), dtype=np.uint8)
    expected[2:4], expected[5], expected[7] = 1, 2, 255
    (root / "labelmap.txt").write_text("cat:1,2,3::\ndog:30,20,10::\n")
    for data in (VOCDataset(root, "train"), VOCDataset(root, "train", colors=colors)):
        assert data.classes == ("background", "cat", "dog")
        np.testing.assert_array_equal(data[0].mask, expected)
        np.testing.assert_array_equal(data.labels, np.ones((2, 3)))
    turned = VOCDataset(root, "train", classes=["background", "dog", "cat"])
    assert turned[0].mask[2, 0] == 2


def test_other_splits_of_all_lists(root):
    shares = {"split_by": {"shares": {"a": 0.5, "b": 0.5}}}
    assert sorted(VOCDataset(root, "a", **shares).names + VOCDataset(root, "b", **shares).names) == sorted(MASKS)


def test_download(tmp_path, monkeypatch):
    """torchvision is called as it unpacks to the root; the network is not asked."""
    calls = []

    def download(root, *, year, image_set, download):
        calls.append((root, year, image_set, download))
        if year == "2008":
            raise RuntimeError("no route to host")
        write_small(root / "VOCdevkit" / f"VOC{year}")

    def write_small(folder):
        for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (folder / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(folder / "JPEGImages" / "a.jpg")
        Image.fromarray(np.ones((4, 4), dtype=np.uint8)).save(folder / "SegmentationClass" / "a.png")
        (folder / "ImageSets/Segmentation/train.txt").write_text("a\n")

    monkeypatch.setattr("torchvision.datasets.VOCSegmentation", download)
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for _ in range(2):
        assert VOCDataset(root, "train", download=True).labels[0, 1] == 1
    assert calls == [(tmp_path, "2012", "train", True)]
    with pytest.raises(DataError, match=r"expected a path that ends with VOCdevkit/VOC2012 .*2007\) to download"):
        VOCDataset(tmp_path / "nothing", "train", download=True)
    with pytest.raises(DataError, match=r"could not download Pascal VOC 2008 \(no route to host\); try again"):
        VOCDataset(tmp_path / "VOCdevkit" / "VOC2008", "train", download=True)
    with pytest.raises(DataError, match=r"there is no split 'train'"):
        VOCDataset(tmp_path / "VOCdevkit" / "VOC2010", "train")


def test_the_arguments_of_the_download_are_those_that_torchvision_takes(tmp_path):
    from torchvision.datasets import VOCSegmentation

    inspect.signature(VOCSegmentation).bind(tmp_path, year="2012", image_set="train", download=True)
