from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tw_seg.data.layouts.folder import FolderDataset
from tw_seg.errors import DataError


def ids(index: int) -> np.ndarray:
    mask = np.zeros((8, 10 + index), dtype=np.uint8)
    mask[2:5, 1:6] = 1 + index % 2
    mask[0] = 255
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images, grey and RGB, of different sizes; the last has no mask."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for index, name in enumerate(("a.jpg", "b.png", "c.d.png", "e.bmp")):
        image = np.full((8, 10 + index, 3), 40 * index, dtype=np.uint8)
        Image.fromarray(image[..., 0] if index == 1 else image).save(tmp_path / "images" / name)
        if index < 3:
            Image.fromarray(ids(index)).save(tmp_path / "masks" / f"{Path(name).stem}.png")
    (tmp_path / "image_labels.csv").write_text(
        "image,split,cat,dog\na,train,1,0\nb.png,train,0,1\nc.d,val,1,0\ne,train,1,1\n"
    )
    return tmp_path


def edit(root: Path, old: str, new: str) -> None:
    path = root / "image_labels.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_contents(root):
    data = FolderDataset(root)
    assert data.classes == ("background", "cat", "dog")
    assert data.names == ("a", "b", "c.d", "e") and len(data) == 4
    np.testing.assert_array_equal(data.labels, [[1, 1, 0], [1, 0, 1], [1, 1, 0], [1, 1, 1]])
    assert data.labels.dtype == np.float32
    assert data.has_mask.tolist() == [True, True, True, False]
    for index in range(4):
        sample = data[index]
        assert sample.image.shape == (8, 10 + index, 3) and sample.image.dtype == np.uint8
        assert abs(sample.image.astype(int) - 40 * index).max() <= 1
        assert sample.name == data.names[index]
        np.testing.assert_array_equal(sample.labels, data.labels[index])
        if index < 3:
            np.testing.assert_array_equal(sample.mask, ids(index))
        else:
            assert sample.mask is None
    with pytest.raises(IndexError):
        data[4]


def test_splits(root):
    assert FolderDataset(root, "train").names == ("a", "b", "e")
    assert FolderDataset(root, split="val").names == ("c.d",)
    np.testing.assert_array_equal(FolderDataset(root, "val").labels, [[1, 1, 0]])
    with pytest.raises(
        DataError, match=r"image_labels.csv: the split 'test' is empty; the file has: train, val; .*--test_share"
    ):
        FolderDataset(root, "test")
    (root / "image_labels.csv").write_text("image,cat,dog\na,1,0\n")
    assert FolderDataset(root).names == ("a",)
    with pytest.raises(DataError, match=r"no column 'split' .*\(tw-seg data split\)"):
        FolderDataset(root, "train")


def test_classes_from_a_file_or_an_argument(root):
    edit(root, "image,split,cat,dog", "image,split,cat,shots")
    (root / "classes.txt").write_text("background\ncat\n")
    assert FolderDataset(root).classes == ("background", "cat")
    assert FolderDataset(root, classes=["background", "shots", "cat"]).classes == (
        "background",
        "shots",
        "cat",
    )
    with pytest.raises(DataError, match="classes: the first class must be 'background'"):
        FolderDataset(root, classes=["cat"])
    with pytest.raises(DataError, match=r"image_labels.csv: no column for the classes dog"):
        FolderDataset(root, classes=["background", "cat", "dog"])


def test_without_any_mask(root):
    shutil.rmtree(root / "masks")
    data = FolderDataset(root)
    assert not data.has_mask.any() and data[0].mask is None


def test_missing_image(root):
    (root / "images" / "c.d.png").unlink()
    with pytest.raises(DataError, match=rf"{root / 'images' / 'c.d'}: .*image_labels.csv lists this image"):
        FolderDataset(root)
    assert FolderDataset(root, "train").names == ("a", "b", "e")  # it belongs to val


def test_image_listed_twice(root):
    edit(root, "e,train", "a.jpg,train")
    with pytest.raises(DataError, match=r"image_labels.csv: the image 'a' is listed twice"):
        FolderDataset(root)


def test_ambiguous_name(root):
    shutil.copy(root / "images" / "a.jpg", root / "images" / "a.png")
    with pytest.raises(DataError, match=r"the image 'a' may be a.jpg, a.png.*with its suffix"):
        FolderDataset(root)
    edit(root, "\na,", "\na.jpg,")
    assert FolderDataset(root).names[0] == "a"


def test_masks_that_are_not_png(root):
    (root / "masks" / "a.png").rename(root / "masks" / "a.jpg")
    with pytest.raises(DataError, match=r"a.jpg: masks must be PNG files"):
        FolderDataset(root)


def test_missing_table_or_folder(root):
    shutil.rmtree(root / "images")
    with pytest.raises(DataError, match=rf"{root / 'images'}: cannot list the folder"):
        FolderDataset(root)
    with pytest.raises(DataError, match="nowhere/image_labels.csv: cannot read"):
        FolderDataset(root / "nowhere")


def test_magnetic_tile(shared_data):
    train, val = (FolderDataset(shared_data / "magnetic_tile", split) for split in ("train", "val"))
    assert train.classes == ("background", "defect")
    assert (len(train), len(val)) == (667, 129) and not set(train.names) & set(val.names)
    assert train.has_mask.all()
    for index in range(0, 129, 16):
        sample = val[index]
        assert sample.mask.shape == sample.image.shape[:2]
        assert (sample.mask == 1).any() == bool(sample.labels[1])


def test_masks_that_match_no_image(root):
    (root / "masks" / "a.png").rename(root / "masks" / "a_mask.png")
    with pytest.warns(
        UserWarning, match=r"masks: 1 of 3 mask files .*'a_mask.png' is like the image 'a.jpg', but with"
    ):
        data = FolderDataset(root, "train")
    assert data.has_mask.tolist() == [False, True, False]
    assert f"looked for {root / 'masks' / 'a'}.png and the like; {root / 'masks'}: 1 of 3" in data.mask_search
    shutil.rmtree(root / "masks")
    assert f"there is no folder {root / 'masks'}" in FolderDataset(root).mask_search
    (root / "masks").mkdir()
    assert "the folder is empty" in FolderDataset(root).mask_search
    (root / "masks" / "a.npy").touch()
    assert "there is a.npy" in FolderDataset(root).mask_search


@pytest.mark.parametrize(
    ("entry", "how"),
    [
        ("A", "'a.jpg' is like it, but in another case"),
        ("A.jpg", "'a.jpg' is like it, but in another case"),
        ("a.JPG", "'a.jpg' is like it, but in another case"),
        ("b.jpg", "'b.png' is like it, but with another suffix"),
        ("images/a.jpg", "write its name without folders"),
        ("a_img", "'a.jpg' is like it, but with '_img' in its name"),
    ],
)
def test_an_image_that_is_almost_there(root, entry, how):
    edit(root, "\na,", f"\n{entry},")
    with pytest.raises(DataError, match=f"there is no such file.*{how}"):
        FolderDataset(root)


@pytest.mark.parametrize("written", ["validation", "Val", "VALID", "dev"])
def test_other_spellings_of_a_split(root, written):
    edit(root, ",val,", f", {written} ,")
    assert FolderDataset(root, "val").names == ("c.d",) == FolderDataset(root, written).names
    assert FolderDataset(root, "train").names == ("a", "b", "e")


def test_two_spellings_of_one_split(root):
    edit(root, "b.png,train", "b.png,Train")
    with pytest.warns(
        UserWarning, match=r"1 rows have the split 'Train' and do not belong to 'train', which 2 rows have"
    ):
        assert FolderDataset(root, "train").names == ("a", "e")
    edit(root, "a,train", "a,TRAIN")
    edit(root, "e,train", "e,training")
    with pytest.raises(DataError, match=r"the split 'train' is empty; .*write one of 'TRAIN', 'Train', 'training'"):
        FolderDataset(root, "train")


def test_an_image_in_two_splits(root):
    edit(root, "c.d,val,1,0", "c.d,val,1,0\na.jpg,val,1,0")
    for split in ("train", "val"):
        with pytest.raises(
            DataError, match=r"image_labels.csv: the image '.*' is in two splits, '.*' and '.*'; remove"
        ):
            FolderDataset(root, split)


def test_pictures_are_enough_to_predict(root):
    options = {"split": "val", "classes": ["background", "cat", "dog"], "need_labels": False}
    assert FolderDataset(root, **options).names == ("c.d",)
    (root / "masks" / "c.d.png").write_bytes(b"broken")
    sample = FolderDataset(root, **options)[0]
    assert sample.mask is None and np.array_equal(sample.labels, [1, np.nan, np.nan], equal_nan=True)
    (root / "image_labels.csv").write_text("image\nb\ne.bmp\n")
    assert FolderDataset(root, **options).names == ("b", "e")
    (root / "image_labels.csv").unlink()
    with pytest.raises(DataError, match="image_labels.csv: cannot read"):
        FolderDataset(root)
    data = FolderDataset(root, **options)
    assert data.names == ("a", "b", "c.d", "e") and data.labels.shape == (4, 3) and not data.has_mask.any()
    shutil.copy(root / "images" / "b.png", root / "images" / "a.png")
    assert FolderDataset(root, **options).names == ("a.jpg", "a.png", "b", "c.d", "e")
    assert FolderDataset(root / "images", need_labels=False).classes == ("background",)
    with pytest.raises(DataError, match=r"masks: there is no image \(files ending in .bmp, "):
        shutil.rmtree(root / "masks")
        (root / "masks").mkdir()
        FolderDataset(root / "masks", need_labels=False)


def test_pictures_that_are_not_read_are_named(root):
    pictures = root / "images"
    for name in ("x.gif", "y.JFIF", "notes.txt", ".hidden.gif"):
        (pictures / name).touch()
    shutil.copytree(root / "masks", pictures / "more")
    (pictures / "empty").mkdir()
    with pytest.warns(UserWarning, match=rf"{pictures}: more, x.gif, y.JFIF are not read: .*ending in .bmp") as caught:
        data = FolderDataset(pictures, need_labels=False)
    assert data.names == ("a", "b", "c.d", "e") and len(caught) == 1
    for path in pictures.iterdir():
        if path.suffix in (".jpg", ".png", ".bmp"):
            path.unlink()
    with pytest.raises(DataError, match=r"there is no image \(.*\), but more, x.gif, y.JFIF; check the path"):
        FolderDataset(pictures, need_labels=False)


def name_classes(root: Path, *names: str) -> None:
    """A table with a column of class names, and masks of 0, 1 and 255."""
    rows = [
        f"{image},{name},{10 * i}" for i, (image, name) in enumerate(zip(("a", "b", "c.d", "e"), names, strict=True))
    ]
    (root / "image_labels.csv").write_text("\n".join(["image,kind,weight", *rows]))
    for path in (root / "masks").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 255, 255, mask > 0).astype(np.uint8)).save(path)


NAMED = {"classes": ["background", "cat", "dog"], "class_column": "kind", "background_value": "free"}


def test_a_column_that_names_the_class_and_masks_of_one_class(root):
    name_classes(root, "cat", "dog", "cat", "free")
    data = FolderDataset(root, **NAMED, binary_masks=True)
    np.testing.assert_array_equal(data.labels, [[1, 1, 0], [1, 0, 1], [1, 1, 0], [1, 0, 0]])
    for index in range(3):
        np.testing.assert_array_equal(data[index].mask, ids(index))
        held, _ = data.read_mask_ids(index)
        assert np.flatnonzero(held).tolist() == [0, 1 + index % 2, 255]
    assert FolderDataset(root, **NAMED)[1].mask.max() == 255 and 2 not in FolderDataset(root, **NAMED)[1].mask
    labels = FolderDataset(root, need_labels=False, **NAMED).labels
    assert (labels[:, 0] == 1).all() and np.isnan(labels[:, 1:]).all()


def test_bad_class_columns_and_binary_masks(root):
    name_classes(root, "cat", "dog", "bird", "free")
    with pytest.raises(
        DataError, match=r"line 4, column 'kind': expected .*cat, dog, or 'free' .*'bird'.*background_value"
    ):
        FolderDataset(root, **NAMED)
    with pytest.raises(DataError, match="no column 'sort'; found image, kind, weight; correct class_column"):
        FolderDataset(root, **{**NAMED, "class_column": "sort"})
    with pytest.raises(DataError, match="class_column='kind' needs the class list"):
        FolderDataset(root, classes=None, class_column="kind")
    with pytest.raises(DataError, match="background_value must be text, as in the table, got 0; put it in quotes"):
        FolderDataset(root, **{**NAMED, "background_value": 0})
    with pytest.raises(DataError, match="background_value='dog' is a class as well"):
        FolderDataset(root, **{**NAMED, "background_value": "dog"})
    name_classes(root, "cat", "free", "cat", "free")
    data = FolderDataset(root, **NAMED, binary_masks=True)
    with pytest.raises(DataError, match=r"b.png: with binary_masks 1 is the one class .* they name none; correct"):
        data[1]
    Image.fromarray(np.full((8, 10), 2, dtype=np.uint8)).save(root / "masks" / "a.png")
    with pytest.raises(DataError, match=r"class ids 0..1 or 255"):
        data[0]


def test_all_errors_of_single_images_are_told_and_the_rest_is_read(root):
    edit(root, "c.d,val,1,0", "c.d,val,1,0\nno,train,1,0\nalso_no,train,1,0\nb,train,0,1\na.jpg,val,1,0")
    shutil.move(root / "masks" / "a.png", root / "masks" / "a.jpg")
    errors: list[DataError] = []
    data = FolderDataset(root, "train", on_error=errors.append)
    assert data.names == ("a", "b", "e") and data.has_mask.tolist() == [False, True, False]
    np.testing.assert_array_equal(data.labels[:, 1:], [[1, 0], [0, 1], [1, 1]])
    parts = ("images/no:", "also_no", "listed twice", "in two splits", "must be PNG")
    for error, part in zip(errors, parts, strict=True):
        assert part in str(error)


def test_the_splits_of_the_table_are_listed(root):
    assert FolderDataset.list_splits(root) == ("train", "val")
    edit(root, ",split,", ",fold,")
    assert FolderDataset.list_splits(root) == (None,)


def test_names_in_another_unicode_form(tmp_path):
    """Files from macOS (NFD), a table from a spreadsheet (NFC, a byte order mark, semicolons)."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    image = Image.fromarray(np.full((4, 6, 3), 9, dtype=np.uint8))
    image.save(tmp_path / "images" / "cafe\u0301 1.JPG")
    image.convert("L").point(lambda _: 1).save(tmp_path / "masks" / "caf\u00e9 1.png")
    (tmp_path / "image_labels.csv").write_text("image;a|b\ncaf\u00e9 1;1\n", encoding="utf-8-sig")
    data = FolderDataset(tmp_path)
    assert data.names == ("caf\u00e9 1",) and data.classes == ("background", "a|b") and data[0].mask.all()
    assert FolderDataset(tmp_path / "images", need_labels=False).names == ("caf\u00e9 1",)


def test_masks_in_colours_and_splits_by_shares(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    rgb = np.zeros((4, 6, 3), dtype=np.uint8)
    rgb[1] = (1, 2, 3)
    names = [f"i{i}" for i in range(12)]
    for name in names:
        Image.fromarray(rgb).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(rgb).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "image_labels.csv").write_text("\n".join(["image,dog,cat,split", *(f"{name},0,1,x" for name in names)]))
    colors = {"cat": [1, 2, 3], "dog": [3, 2, 1]}
    data = FolderDataset(tmp_path, colors=colors)
    assert data.classes == ("background", "cat", "dog") and data.labels[0].tolist() == [1, 1, 0]
    np.testing.assert_array_equal(data[0].mask, np.repeat([[0], [1], [0], [0]], 6, axis=1))
    shares = {"colors": colors, "split_by": {"shares": {"train": 0.5, "val": 0.5}}}
    parts = [FolderDataset(tmp_path, split, **shares).names for split in ("train", "val")]
    assert sorted(parts[0] + parts[1]) == sorted(names) and all(parts)
    with pytest.raises(DataError, match="colors: binary_masks are masks of 0 and 1, not of colours; leave out one"):
        FolderDataset(tmp_path, colors=colors, binary_masks=True)
