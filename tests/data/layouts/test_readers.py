from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tw_seg.data.layouts.readers import (
    check_classes,
    check_unique,
    read_classes,
    read_image,
    read_label_table,
    read_mask,
    read_size,
)
from tw_seg.errors import DataError


def write(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    if mode == "P":
        image = image.convert("P") if array.ndim == 3 else image
        image.putpalette([value for i in range(256) for value in (i, 255 - i, 7 * i % 256)])
    image.save(path)
    return path


@pytest.fixture
def mask() -> np.ndarray:
    ids = np.zeros((6, 9), dtype=np.uint8)
    ids[2:4, 3:7] = 2
    ids[0] = 255
    return ids


def test_images_become_rgb(tmp_path):
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(write(tmp_path / "rgb.png", color)), color)
    alpha = np.dstack([color, np.full((5, 7), 255, dtype=np.uint8)])
    np.testing.assert_array_equal(read_image(write(tmp_path / "rgba.png", alpha)), color)
    grey = color[..., 0]
    np.testing.assert_array_equal(read_image(write(tmp_path / "grey.png", grey)), np.dstack([grey] * 3))
    bits = grey > 127
    np.testing.assert_array_equal(read_image(write(tmp_path / "bits.png", bits)), np.dstack([bits * 255] * 3))
    palette = Image.fromarray(grey)
    palette.putpalette([v for i in range(256) for v in (i, 0, 255 - i)])
    palette.save(tmp_path / "p.png", transparency=bytes([255] * 256))
    expected = np.dstack([grey, np.zeros_like(grey), 255 - grey])
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), expected)
    for name in ("rgb.png", "grey.png"):
        assert read_image(tmp_path / name).dtype == np.uint8 and read_image(tmp_path / name).flags.writeable


def test_what_rgb_leaves_out_is_reported(tmp_path):
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    hole = np.full((5, 7, 1), 255, dtype=np.uint8)
    hole[2, 3] = 254
    pictures = {
        "rgba.png": (Image.fromarray(np.dstack([color, hole])), {}),
        "la.png": (Image.fromarray(np.dstack([color[..., :1], hole])), {}),
        "p.png": (Image.fromarray(color[..., 0]).convert("P"), {"transparency": bytes(range(256))}),
        "rgb.png": (Image.fromarray(color), {"transparency": tuple(map(int, color[0, 0]))}),
        "rgba.webp": (Image.fromarray(np.dstack([color, hole])), {"lossless": True, "exact": True}),
        "rgba.tif": (Image.fromarray(np.dstack([color, hole])), {}),
    }
    for name, (picture, options) in pictures.items():
        path = tmp_path / name
        picture.save(path, **options)
        with Image.open(path) as opened:
            expected = np.array(opened.convert("RGBA"))[..., :3]
        with pytest.warns(UserWarning, match=rf"{path}: the image has transparent pixels; .* a background of your"):
            np.testing.assert_array_equal(read_image(path), expected)
        said: list[str] = []
        read_image(path, report=said.append)
        assert len(said) == 1
    four = Image.frombytes("RGBX", (7, 5), rng.bytes(4 * 35))
    four.save(tmp_path / "infrared.tif")
    with pytest.warns(UserWarning, match=r"infrared.tif: the image has 4 channels, of which the first 3 are read"):
        np.testing.assert_array_equal(read_image(tmp_path / "infrared.tif"), np.array(four.convert("RGB")))


def test_deep_images_are_refused(tmp_path):
    path = write(tmp_path / "deep.png", np.full((4, 4), 40000, dtype=np.uint16))
    with pytest.raises(DataError, match=rf"{path}: expected an 8-bit image, found mode I;16"):
        read_image(path)


def test_masks_of_all_kinds(tmp_path, mask):
    for name, array, mode in (("l", mask, None), ("p", mask, "P"), ("i16", mask.astype(np.uint16), None)):
        found = read_mask(write(tmp_path / f"{name}.png", array, mode), num_classes=3, shape=(6, 9))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, mask)
    overlay = Image.open(write(tmp_path / "overlay.png", mask, "P"))
    overlay.save(tmp_path / "overlay.png", transparency=0)  # only shown so: the indices count
    np.testing.assert_array_equal(read_mask(tmp_path / "overlay.png", num_classes=3), mask)
    bits = read_mask(write(tmp_path / "bits.png", mask == 2), num_classes=2)
    np.testing.assert_array_equal(bits, mask == 2)


def test_mask_of_another_size(tmp_path, mask):
    path = write(tmp_path / "m.png", mask)
    with pytest.raises(DataError, match=rf"{path}: the mask has 6x9 pixels .* its image 9x6; .*export"):
        read_mask(path, num_classes=3, shape=(9, 6))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_class_ids_beyond_the_class_list(tmp_path, mask, dtype):
    path = write(tmp_path / "m.png", mask.astype(dtype))
    with pytest.raises(DataError, match=rf"{path}: the mask must hold class ids 0\.\.1 or 255 \(ignored\), found 2"):
        read_mask(path, num_classes=2)
    path = write(tmp_path / "many.png", np.arange(20, dtype=dtype).reshape(4, 5))
    with pytest.raises(DataError, match=r"0\.\.2 or 255 \(ignored\), found 3, 4, 5, 6, 7, \.\.\.: give"):
        read_mask(path, num_classes=3)


def test_ids_that_8_bits_would_wrap(tmp_path):
    path = write(tmp_path / "wrap.png", np.full((3, 3), 257, dtype=np.uint16))
    with pytest.raises(DataError, match="found 257"):
        read_mask(path, num_classes=3)


def test_color_masks_are_refused(tmp_path, mask):
    path = write(tmp_path / "m.png", np.dstack([mask] * 3))
    with pytest.raises(DataError, match=rf"{path}: expected a mask of class ids .* found mode RGB"):
        read_mask(path, num_classes=3)


@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")  # Pillow, before it raises
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
def test_truncated_files(tmp_path, suffix):
    rng = np.random.default_rng(0)
    whole = write(tmp_path / f"whole.{suffix}", rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for share in (0, 0.02, 0.3, 0.7):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=rf"{path}: cannot read the image"):
            read_image(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(8, 10**4), st.binary(min_size=1, max_size=8))
def test_damaged_files_give_an_array_or_a_data_error(tmp_path, position, garbage):
    ids = np.random.default_rng(0).integers(0, 3, (30, 30), dtype=np.uint8)
    whole = write(tmp_path / "whole.png", ids).read_bytes()
    position %= len(whole)
    path = tmp_path / "damaged.png"
    path.write_bytes(whole[:position] + garbage + whole[position + len(garbage) :])
    for read in (read_image, lambda path: read_mask(path, num_classes=3)):
        try:
            assert isinstance(read(path), np.ndarray)
        except DataError as error:
            assert str(path) in str(error)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path / 'a.png'}: the image file is missing"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"{tmp_path / 'a.png'}: the mask file is missing"):
        read_mask(tmp_path / "a.png", num_classes=2)
    with pytest.raises(DataError, match=rf"{tmp_path}: cannot read the image"):
        read_image(tmp_path)
    with pytest.raises(DataError, match=rf"{tmp_path / 'c.txt'}: cannot read the file"):
        read_classes(tmp_path / "c.txt")


def test_classes(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("background\n cat \n\ndog\n")
    assert read_classes(path) == ("background", "cat", "dog")


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "first class must be 'background', found nothing"),
        (["cat", "dog"], "first class must be 'background', found 'cat'"),
        (["background"], "expected 2 to 255 classes"),
        (["background", "cat", "cat"], "found twice: cat"),
        (["background", *map(str, range(255))], "expected 2 to 255 classes, background included, found 256"),
    ],
)
def test_bad_classes(classes, message):
    with pytest.raises(DataError, match=f"here: .*{message}"):
        check_classes(classes, "here")


CLASSES = ["background", "cat", "dog"]


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "image_labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_label_table(tmp_path):
    path = table(tmp_path, "\ufeffimage,split, cat ,note,dog\na.jpg,train,1,hm,0\n\nb,val,0,,1.0\n")
    found = read_label_table(path, ["background", "dog", "cat"])
    assert found.images == ("a.jpg", "b") and found.splits == ("train", "val")
    np.testing.assert_array_equal(found.labels, [[1, 0, 1], [1, 1, 0]])
    assert found.labels.dtype == np.float32


def test_label_table_names_the_classes_itself(tmp_path):
    found = read_label_table(table(tmp_path, "image,cat,background,dog\na,1,1,0\n"))
    assert found.classes == ("background", "cat", "dog") and found.splits is None
    np.testing.assert_array_equal(found.labels, [[1, 1, 0]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a column 'image'"),
        ("name,cat,dog\n", "expected a column 'image' in the first line, found .*'name'"),
        ("image,cat\na,1\n", "no column for the classes dog; found image, cat; add"),
        ("image,cat,dog\n", "no row below the header"),
        ("image,cat,dog\na,1,0\nb,1\n", "line 3: expected 3 columns, found 2"),
        ("image,cat,dog\na,1,yes\n", r"line 2: expected 0, 1 or \? \(unknown\) in .* 'dog', found 'yes'"),
        ("image,cat,dog\na,1,2\n", "found '2'"),
        ("image,cat,dog\na,1,nan\n", "found 'nan'"),
        ("image,annotated,shot\na,cat,3\n", "no column for the classes cat, dog"),
        ("image,cat,dog,annotated\na,1,1,cat|cow\n", r"line 2, column 'annotated': .*cat, dog with \|.*found 'cow'"),
    ],
)
def test_bad_label_tables(tmp_path, text, message):
    path = table(tmp_path, text)
    with pytest.raises(DataError, match=f"{path}.*{message}"):
        read_label_table(path, ["background", "cat", "dog"])


def test_unknown_labels_and_classes_that_were_annotated(tmp_path):
    text = "image;cat;Annotated;dog\na;1;cat;\nb;?;cat | dog;0\nc;;;?\n"
    found = read_label_table(table(tmp_path, text))
    assert found.classes == ("background", "cat", "dog")
    np.testing.assert_array_equal(found.labels, [[1, 1, np.nan], [1, np.nan, 0], [1, np.nan, np.nan]])
    np.testing.assert_array_equal(found.annotated, [[True, True, False], [True] * 3, [True] * 3])
    found = read_label_table(table(tmp_path, "image,kind\na,cat\nb,\nc,?\n"), CLASSES, class_column="kind")
    np.testing.assert_array_equal(found.labels, [[1, 1, 0], *[[1, np.nan, np.nan]] * 2])
    assert found.annotated is None
    found = read_label_table(table(tmp_path, "image,kind\na,\n"), CLASSES, class_column="kind", background_value="")
    np.testing.assert_array_equal(found.labels, [[1, 0, 0]])


def test_a_table_without_labels_says_nothing_of_the_classes(tmp_path):
    found = read_label_table(table(tmp_path, "image,split,annotated\na,train,dog\nb,val,\n"), CLASSES)
    np.testing.assert_array_equal(found.labels, [[1, np.nan, np.nan]] * 2)
    np.testing.assert_array_equal(found.annotated, [[True, False, True], [True] * 3])
    with pytest.raises(DataError, match="no column 'kind'; found image; correct class_column"):
        read_label_table(table(tmp_path, "image\na\n"), CLASSES, class_column="kind")


def test_a_class_may_be_called_annotated(tmp_path):
    found = read_label_table(table(tmp_path, "image,annotated\na,1\n"), ["background", "annotated"])
    np.testing.assert_array_equal(found.labels, [[1, 1]])
    assert found.annotated is None


def test_label_table_with_other_columns_but_no_class_list(tmp_path):
    path = table(tmp_path, "image,cat,shot\na,1,15\n")
    with pytest.raises(DataError, match="class column 'shot', found '15'.*classes.txt"):
        read_label_table(path)


def test_label_table_in_another_encoding(tmp_path):
    path = tmp_path / "image_labels.csv"
    path.write_bytes("image,Kätzchen\na,1\n".encode("latin-1"))
    with pytest.raises(DataError, match=f"{path}: expected UTF-8 text"):
        read_label_table(path)


def test_unique(tmp_path):
    check_unique(["a", "b"], tmp_path)
    with pytest.raises(DataError, match=f"{tmp_path}: the image 'b' is listed twice"):
        check_unique(["a", "b", "b"], tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_images_and_masks_are_turned_as_viewers_turn_them(tmp_path, suffix, orientation):
    rng = np.random.default_rng(orientation)
    picture = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    exif = picture.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    picture.save(path, exif=exif)
    with Image.open(path) as opened:
        shown = np.array(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(read_image(path), shown)
    assert read_size(path) == (shown.shape[:2], orientation in (2, 3, 4))
    if suffix == "png":
        ids = Image.fromarray(rng.integers(0, 3, (6, 9), dtype=np.uint8))
        ids.save(path, exif=exif)
        with Image.open(path) as opened:
            shown = np.array(ImageOps.exif_transpose(opened))
        np.testing.assert_array_equal(read_mask(path, num_classes=3), shown)


def test_a_square_image_that_is_turned(tmp_path):
    picture = Image.new("RGB", (5, 5))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    assert read_size(tmp_path / "a.png") == ((5, 5), True)


def test_a_mask_whose_sides_are_swapped(tmp_path, mask):
    path = write(tmp_path / "m.png", mask)
    with pytest.raises(DataError, match=r"sides are swapped: .*EXIF tag 'orientation'"):
        read_mask(path, num_classes=3, shape=(9, 6))
    with pytest.raises(DataError) as caught:
        read_mask(path, num_classes=3, shape=(9, 7))
    assert "EXIF" not in str(caught.value)


@pytest.mark.parametrize("extra", [{"exif": b"Exif\x00\x00broken"}, {"icc_profile": b"no profile"}])
def test_broken_metadata_is_no_broken_image(tmp_path, extra):
    color = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for suffix in ("png", "webp"):
        Image.fromarray(color).save(tmp_path / f"a.{suffix}", lossless=True, **extra)
        np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), color)


def test_an_image_that_is_too_large_for_pillow(tmp_path, monkeypatch):
    path = write(tmp_path / "huge.png", np.zeros((40, 40), dtype=np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    for read in (read_image, read_size, lambda path: read_mask(path, num_classes=2)):
        with pytest.raises(DataError, match=rf"{path}: .*more pixels than Pillow reads.*into tiles.*MAX_IMAGE_PIXELS"):
            read(path)


@pytest.mark.parametrize("error", [RuntimeError("x"), ZeroDivisionError("x"), AttributeError("x"), MemoryError("x")])
def test_any_error_of_pillow_names_the_file(tmp_path, monkeypatch, error):
    def fail(*args: object) -> None:
        raise error

    path = write(tmp_path / "a.png", np.zeros((4, 4), dtype=np.uint8))
    monkeypatch.setattr(Image.Image, "convert", fail)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(DataError, match=f"{path}: .*image"):
        read_image(path)


def test_other_modes(tmp_path):
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(color).convert("CMYK").save(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "cmyk.tif"), color)
    Image.fromarray(color).convert("LA").save(tmp_path / "la.png")
    grey = np.asarray(Image.fromarray(color).convert("L"))
    np.testing.assert_array_equal(read_image(tmp_path / "la.png"), np.dstack([grey] * 3))
    for mode in ("I", "F"):
        Image.fromarray(color).convert(mode).save(tmp_path / "deep.tif")
        with pytest.raises(
            DataError, match=rf"deep.tif: expected an 8-bit image, found mode {mode}; give a value_range"
        ):
            read_image(tmp_path / "deep.tif")
    for mode in ("RGBA", "LA", "F"):
        Image.fromarray(color).convert(mode).save(tmp_path / "mask.tif")
        with pytest.raises(DataError, match=rf"mask.tif: expected a mask of class ids .* found mode {mode}; write"):
            read_mask(tmp_path / "mask.tif", num_classes=3)


def test_16_bit_colors_lose_their_lower_bits(tmp_path):
    color = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), color[..., ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), color >> 8)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_label_tables_with_other_separators(tmp_path, separator, mark):
    rows = [["Image", "Split", "cat", "dog"], ["a,b", "train", "1", "0"], ["c", " val", "0", "1"]]
    if separator == ",":
        rows[1][0] = '"a,b"'
    found = read_label_table(table(tmp_path, mark + "\n".join(separator.join(row) for row in rows)))
    assert found.images == ("a,b", "c") and found.splits == ("train", "val")
    assert found.classes == ("background", "cat", "dog")
    np.testing.assert_array_equal(found.labels, [[1, 1, 0], [1, 0, 1]])


def test_a_column_that_is_there_twice(tmp_path):
    path = table(tmp_path, "image,cat,cat,note,note\na,1,0,x,y\n")
    with pytest.raises(DataError, match=rf"{path}: the column 'cat' is there twice; remove one"):
        read_label_table(path, ["background", "cat"])
    path = table(tmp_path, "image,cat,note,note\na,1,x,y\n")
    assert read_label_table(path, ["background", "cat"]).images == ("a",)


def test_a_table_of_names(tmp_path):
    path = table(tmp_path, "image,shot\na,yes\nb,no\n")
    found = read_label_table(path, ["background", "cat"], need_labels=False)
    assert found.images == ("a", "b") and found.classes == ("background", "cat")
    np.testing.assert_array_equal(found.labels, [[1, np.nan], [1, np.nan]])
    path = table(tmp_path, "image\na\n")
    assert read_label_table(path, need_labels=False).classes == ("background",)
    with pytest.raises(DataError, match="expected 2 to 255 classes"):
        read_label_table(path)


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\x00", "a\u202eb", "a\u2028b"])
def test_class_names_with_control_characters(name, tmp_path):
    with pytest.raises(DataError, match="classes.txt: .*(control characters|first class)") as error:
        (tmp_path / "classes.txt").write_text(f"background\n{name}\n", encoding="utf-8")
        check_classes(["background", name], "classes.txt")
    assert str(error.value).isprintable()
