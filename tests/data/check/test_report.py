"""The check against data in which is known what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from PIL import ExifTags, Image

from tests.data.check.messy import CLASSES, mask_of, picture, write, write_good, write_messy
from tw_seg.data.check.findings import KINDS
from tw_seg.data.check.report import check_data
from tw_seg.data.layouts.pixels import PixelFormat
from tw_seg.errors import InputError


def find(report, kind: str) -> list[str]:
    return [finding.text for finding in report.findings if finding.kind == kind]


def names(report, kind: str) -> list[set[str]]:
    return [{name for _, name in finding.images} for finding in report.findings if finding.kind == kind]


@pytest.fixture
def messy(tmp_path: Path):
    write_messy(tmp_path)
    return check_data(tmp_path, "folder").report


def test_nothing_is_wrong_with_good_data(tmp_path):
    write_good(tmp_path)
    report = check_data(tmp_path, "folder").report
    assert report.findings == [] and report.groups == []
    assert report.classes == CLASSES and list(report.splits) == ["train", "val"]
    assert "0 errors, 0 warnings" in report.format_text()


def test_it_goes_on_past_every_broken_file_and_names_it(messy):
    assert names(messy, "image") == [{"broken"}, {"empty"}]
    assert names(messy, "mask") == [{"nomaskdata"}]
    assert names(messy, "size") == [{"large"}]
    assert names(messy, "id") == [{"wrongid"}]
    assert "found 7" in find(messy, "id")[0] and "50x50 pixels" in find(messy, "size")[0]
    (twice, absent) = find(messy, "list")
    assert "images/absent: " in absent and "'y' is listed twice" in twice
    text = messy.format_text()
    for name in ("broken.png", "empty.png", "nomaskdata.png", "large.png", "wrongid.png", "absent", "denied.png"):
        assert name in text
    assert messy.count("error") == 8
    assert messy.splits["train"].images == 6 and messy.splits["train"].masks == 3


def test_masks_are_compared_with_labels(messy):
    assert names(messy, "denied") == [{"denied"}]
    assert find(messy, "denied")[0].endswith("the mask shows dog, which the labels say is not there")
    assert names(messy, "missing") == [{"x"}] and "the labels name dog" in find(messy, "missing")[0]


def test_a_mask_whose_name_nearly_fits(messy):
    (said,) = find(messy, "files")
    assert "'alone_mask.png' is like the image 'alone.png'" in said


def test_near_duplicates_are_groups_across_splits(messy):
    assert messy.groups == [(("train", "good"), ("val", "twin"))]
    assert names(messy, "duplicates") == [{"good", "twin"}]
    assert messy.suggestions[0] == "correct the errors, and check again"
    assert any("tw-seg data split" in text and text.endswith("--force") for text in messy.suggestions)


def test_groups_are_named_once_however_many_pairs_they_have(tmp_path):
    write_good(tmp_path)
    for k, name in enumerate(("im1", "im2", "im9", "im10")):
        Image.fromarray(np.rot90(picture(0), k)).save(tmp_path / "images" / f"{name}.png")
    report = check_data(tmp_path, "folder").report
    assert names(report, "duplicates") == [{"im0", "im1", "im2", "im9", "im10"}]
    assert find(report, "repeated") == []


def test_a_column_groups_images(tmp_path):
    write_good(tmp_path)
    assert check_data(tmp_path, "folder", group_column="patient").report.findings == []
    table = tmp_path / "image_labels.csv"
    table.write_text(table.read_text().replace("im9,val,p4", "im9,val,p0"))
    report = check_data(tmp_path, "folder", group_column="patient").report
    assert names(report, "group") == [{"im0", "im1", "im9"}] and report.count("error") == 1
    report = check_data(tmp_path, "folder", group_column="nobody").report
    assert "no column 'nobody'; found image, split, patient, cat, dog" in find(report, "list")[0]


def test_images_that_are_turned_at_the_same_size(tmp_path):
    write_good(tmp_path)
    for name, orientation in (("im1", 3), ("im2", 1), ("im9", 6)):
        tag = Image.Exif()
        tag[ExifTags.Base.Orientation] = orientation
        path = tmp_path / "images" / f"{name}.png"
        Image.open(path).save(path, exif=tag)
    report = check_data(tmp_path, "folder").report
    assert names(report, "turned") == [{"im1"}, {"im9"}] and report.count("error") == 0
    assert "1 images of train are turned by their EXIF tag 'orientation'" in find(report, "turned")[0]


def test_masks_of_0_and_255_are_an_error_of_all(tmp_path):
    write_good(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)).save(path)
    report = check_data(tmp_path, "folder").report
    assert len(find(report, "refused")) == 2  # one for each split
    for split, said in zip(("train", "val"), find(report, "refused"), strict=True):
        assert f"masks of {split}: the labels of" in said and "only values 0 and 255" in said
    assert names(report, "refused")[1] == {"im8", "im9", "im10"} and report.count("error") == 2


def test_one_mask_that_ignores_its_object_is_a_note(tmp_path):
    write_good(tmp_path)
    path = tmp_path / "masks" / "im0.png"
    Image.fromarray(np.where(np.array(Image.open(path)) > 0, 255, 0).astype(np.uint8)).save(path)
    report = check_data(tmp_path, "folder").report
    (said,) = find(report, "ignored")
    assert str(path) in said and "1 of 8 masks of train" in said and names(report, "ignored") == [{"im0"}]
    assert report.count("error") == report.count("warning") == 0


def test_counts_equal_those_by_hand(tmp_path):
    write_good(tmp_path)
    for name, kind in (("im0", 255), ("im1", 2)):
        mask = mask_of("c" if name == "im0" else "d")
        mask[:, 30:] = kind if name == "im0" else mask[:, 30:]
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    scribble = np.full((48, 48), 255, dtype=np.uint8)
    scribble[0], scribble[1] = 1, 2
    Image.fromarray(scribble).save(tmp_path / "masks" / "im2.png")
    (tmp_path / "masks" / "im3.png").unlink()
    train = check_data(tmp_path, "folder").report.splits["train"]
    assert (train.images, train.masks) == (8, 7)
    assert train.supervision == {"full": 5, "most": 1, "few": 1, "labels": 1}
    masks = [np.array(Image.open(tmp_path / "masks" / f"im{i}.png")) for i in (0, 1, 2, 4, 5, 6, 7)]
    known = sum((mask != 255).sum() for mask in masks)
    for k, name in enumerate(CLASSES):
        found = train.classes[name]
        assert found.masks == sum((mask == k).any() for mask in masks)
        assert found.share == pytest.approx(sum((mask == k).sum() for mask in masks) / known)
    assert (train.classes["cat"].positive, train.classes["dog"].positive) == (4, 4)


def test_mean_and_standard_deviation_are_those_of_all_training_pixels(tmp_path):
    write_good(tmp_path)
    report = check_data(tmp_path, "folder").report
    pixels = np.stack([np.array(Image.open(tmp_path / "images" / f"im{i}.png")) for i in range(8)]) / 255
    np.testing.assert_allclose(report.mean, pixels.mean(axis=(0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(report.std, pixels.std(axis=(0, 1, 2)), atol=1e-9)
    assert f"{report.mean[0]:.4f}" in report.format_config()


@pytest.mark.parametrize(("dtype", "value_range"), [(np.uint8, None), (np.uint16, (0.0, 65535.0))])
def test_images_of_four_channels(tmp_path, dtype, value_range):
    write_good(tmp_path)
    stack = []
    for path in sorted((tmp_path / "images").iterdir()):
        rgb = np.array(Image.open(path))
        stack.append(np.dstack([rgb, 255 - rgb[..., :1]]).astype(dtype) * (1 if dtype == np.uint8 else 257))
        path.unlink()
        tifffile.imwrite(path.with_suffix(".tif"), stack[-1], photometric="rgb", extrasamples=["unspecified"])
        stack[-1] = (path.stem, stack[-1])
    report = check_data(tmp_path, "folder", pixels=PixelFormat(4, value_range)).report
    assert report.count("error") == 0 and report.channels == {4: 12}
    scale = np.iinfo(dtype).max
    pixels = np.stack([image for name, image in stack if int(name[2:]) < 8]) / scale
    np.testing.assert_allclose(report.mean, pixels.mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(report.std, pixels.std(axis=(0, 1, 2)), atol=1e-6)
    config = yaml.safe_load(report.format_config())["data"]
    assert config["channels"] == 4 and config.get("value_range") == (value_range and list(value_range))
    assert report.suggestions[0].count("--channels 4") == 1


def test_grey_among_colour_is_told(tmp_path):
    write_good(tmp_path)
    path = tmp_path / "images" / "im3.png"
    Image.open(path).convert("L").save(path)
    report = check_data(tmp_path, "folder").report
    assert report.channels == {1: 1, 3: 11}
    (said,) = find(report, "channels")
    assert said == "1 images with 1 channel (grey), 11 images with 3 channels; 1 channel (grey): train/im3"


def test_classes_that_a_split_lacks(tmp_path):
    write(tmp_path, {f"im{i}": ("train" if i < 25 else "val", "c" if i != 0 else "cd") for i in range(27)})
    report = check_data(tmp_path, "folder").report
    said = find(report, "balance")
    assert said == ["cat is in 25 images of train, dog in 1", "no image of val shows dog (1 classes)"]


def test_what_next_without_a_split(tmp_path):
    write_good(tmp_path)
    table = tmp_path / "image_labels.csv"
    table.write_text(table.read_text().replace(",split,", ",fold,"))
    report = check_data(tmp_path, "folder", {"classes": list(CLASSES)}).report
    assert list(report.splits) == ["all"]
    (suggested,) = report.suggestions
    assert suggested.startswith("the data set is not divided: tw-seg data split ") and "--force" not in suggested
    assert "'{classes: [background, cat, dog]}'" in suggested and suggested.endswith("--val_share 0.2 --test_share 0.2")


def test_what_the_suggested_budget_promises(tmp_path):
    write_good(tmp_path)
    (suggested,) = check_data(tmp_path, "folder").report.suggestions
    assert "--budget 4 " in suggested  # cat and dog are in 4 of 8 each: half of that, by an image of both and one each


def test_json_has_all_of_it(messy):
    content = json.loads(messy.to_json())
    assert [(row["kind"], row["text"]) for row in content["findings"]] == [(f.kind, f.text) for f in messy.findings]
    assert all(KINDS[row["kind"]].severity == row["severity"] for row in content["findings"])
    assert content["splits"]["train"]["classes"]["cat"]["positive"] == messy.splits["train"].classes["cat"].positive
    severities = [row["severity"] for row in content["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_a_table_that_cannot_be_read_is_a_finding(tmp_path):
    write_good(tmp_path)
    (tmp_path / "image_labels.csv").write_text("name,cat\n")
    report = check_data(tmp_path, "folder").report
    assert report.splits == {} and "expected a column 'image'" in find(report, "list")[0]
    assert "1 errors" in report.format_text()
    with pytest.raises(InputError, match="layout: expected one of digits, "):
        check_data(tmp_path, "floder")
    with pytest.raises(InputError, match="dataset_kwargs for 'folder'"):
        check_data(tmp_path, "folder", {"colour": 1})


def test_real_tiles(shared_data):
    root = shared_data / "magnetic_tile"
    report = check_data(root, "folder", group_column="shot_group").report
    assert report.count("error") == 0 and report.splits["train"].images == 667
    rows = [line.split(",") for line in (root / "image_labels.csv").read_text().splitlines()[1:]]
    shot = {row[0]: row[3] for row in rows}
    found = {name: number for number, group in enumerate(report.groups) for _, name in group}
    images = list(shot)
    same = [(a, b) for i, a in enumerate(images) for b in images[:i] if shot[a] == shot[b]]
    joined = [(a, b) for group in report.groups for i, (_, a) in enumerate(group) for _, b in group[:i]]
    assert np.mean([a in found and found[a] == found.get(b) for a, b in same]) > 0.85
    assert np.mean([shot[a] == shot[b] for a, b in joined]) > 0.85  # others are of one tile too, by eye


def test_real_photographs(shared_data):
    report = check_data(shared_data / "msrc_objects", "voc").report
    assert report.count("error") == 0 and report.splits["val"].images == 58
    assert [{name for _, name in group} for group in report.groups] == [{"12_26_s", "12_28_s"}, {"9_10_s", "1_26_s"}]
