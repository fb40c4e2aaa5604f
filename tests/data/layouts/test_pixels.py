from __future__ import annotations

import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tw_seg.data.layouts.pixels import PixelFormat
from tw_seg.data.layouts.readers import read_image
from tw_seg.errors import DataError, InputError

RNG = np.random.default_rng(0)
WIDE = (0, 65535)


def make(channels: int, dtype: type = np.uint8) -> np.ndarray:
    """Random pixels (6, 9, C)."""
    if dtype is np.float32:
        return RNG.random((6, 9, channels), dtype=np.float32)
    return RNG.integers(0, np.iinfo(dtype).max, (6, 9, channels), dtype=dtype, endpoint=True)


def read(path: Path, channels: int = 3, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Read without anything to report."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return PixelFormat(channels, value_range).read(path)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiffs_of_any_channels(tmp_path, channels, planar, compression):
    pixels = make(channels)
    stored = pixels if planar == "contig" else np.moveaxis(pixels, 2, 0)
    stored = stored[..., 0] if channels == 1 and planar == "contig" else stored
    photometric = "rgb" if channels in (3, 4) else "minisblack"
    extra = ["unspecified"] if channels == 4 else None
    options = {"planarconfig": planar} if channels > 1 else {}
    if channels == 1 and planar == "separate":
        stored = stored[0]
    path = tmp_path / "a.TIF"
    tifffile.imwrite(path, stored, photometric=photometric, extrasamples=extra, compression=compression, **options)
    np.testing.assert_array_equal(read(path, channels), pixels)
    assert PixelFormat(channels).read_size(path) == ((6, 9), False)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pngs_of_16_bits(tmp_path, channels):
    pixels = make(channels, np.uint16)
    order = [2, 1, 0, 3][:channels] if channels > 1 else [0]
    assert cv2.imwrite(str(tmp_path / "a.png"), pixels[..., order])
    expected = pixels.astype(np.float64) / 65535
    np.testing.assert_allclose(read(tmp_path / "a.png", channels, WIDE), expected, atol=1e-6)
    assert read(tmp_path / "a.png", channels, WIDE).dtype == np.float32


@pytest.mark.parametrize(
    ("dtype", "limits"), [(np.uint16, (100, 4000)), (np.float32, (-0.5, 0.75)), (np.uint8, (0, 255))]
)
def test_one_scale_for_all_values(tmp_path, dtype, limits):
    pixels = make(5, dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    expected = ((pixels.astype(np.float64) - limits[0]) / (limits[1] - limits[0])).clip(0, 1)
    np.testing.assert_allclose(read(tmp_path / "a.tif", 5, limits), expected, atol=1e-6)


def test_pillow_and_tifffile_read_the_same(tmp_path):
    """Written by Pillow: float and 16-bit grey, RGB with its compressions, palette and black and white."""
    grey = make(1)[..., 0]
    images = {
        "float": Image.fromarray(make(1, np.float32)[..., 0]),
        "deep": Image.fromarray(make(1, np.uint16)[..., 0]),
        "black": Image.fromarray(grey > 99),
        "palette": Image.fromarray(make(3)).quantize(7),
    }
    for name, image in images.items():
        image.save(tmp_path / f"{name}.tif")
    np.testing.assert_allclose(read(tmp_path / "float.tif", 1, (0, 1))[..., 0], np.array(images["float"]), atol=1e-6)
    np.testing.assert_allclose(
        read(tmp_path / "deep.tif", 1, WIDE)[..., 0], np.array(images["deep"]) / 65535, atol=1e-6
    )
    np.testing.assert_array_equal(read(tmp_path / "black.tif", 1)[..., 0], (grey > 99) * 255)
    colours = read(tmp_path / "palette.tif", 3, (0, 255))
    np.testing.assert_allclose(colours, np.array(images["palette"].convert("RGB")) / 255, atol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation):
    pixels = make(3)
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extratags=[tag])
    expected = read_image(tmp_path / "a.tif")  # Pillow's
    np.testing.assert_array_equal(np.round(255 * read(tmp_path / "a.tif", 3, (0, 255))), expected)
    tifffile.imwrite(tmp_path / "b.tif", make(5), photometric="minisblack", planarconfig="contig", extratags=[tag])
    sizes = [PixelFormat(5).read_size(tmp_path / "b.tif"), PixelFormat().read_size(tmp_path / "a.tif")]
    assert sizes[0] == sizes[1] and sizes[0][0] == read(tmp_path / "b.tif", 5).shape[:2]


def test_transparency_is_a_channel_where_four_are_read(tmp_path):
    pixels = make(4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.png", 4), pixels)
    with pytest.warns(UserWarning, match="a.png: the image has 4 channels, of which the first 3 are read"):
        assert PixelFormat(3, (0, 255)).read(tmp_path / "a.png").shape == (6, 9, 3)


def test_grey_and_colours(tmp_path):
    grey, colours = make(1)[..., 0], make(3)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(tmp_path / "same.png")
    Image.fromarray(colours).save(tmp_path / "colours.png")
    Image.fromarray(colours).convert("CMYK").save(tmp_path / "print.jpg")
    for name in ("grey", "same"):
        np.testing.assert_array_equal(read(tmp_path / f"{name}.png", 1)[..., 0], grey)
    np.testing.assert_allclose(
        read(tmp_path / "grey.png", 3, (0, 255)), np.repeat(grey[..., None] / 255, 3, 2), atol=1e-6
    )
    with pytest.warns(UserWarning, match="colours.png: the image has colours, which are read as grey"):
        found = PixelFormat(1).read(tmp_path / "colours.png")[..., 0].astype(int)
    assert abs(found - np.array(Image.fromarray(colours).convert("L"))).max() <= 1
    with pytest.raises(DataError, match=r"print.jpg: expected 4 channels, found 3"):
        read(tmp_path / "print.jpg", 4)


def test_files_that_do_not_fit(tmp_path):
    tifffile.imwrite(tmp_path / "deep.tif", make(5, np.uint16), photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "pages.tif", RNG.integers(0, 9, (3, 6, 9), dtype=np.uint8), photometric="minisblack")
    holes = make(1, np.float32)[..., 0]
    holes[2, 3] = np.nan
    tifffile.imwrite(tmp_path / "holes.tif", holes)
    (tmp_path / "empty.tif").touch()
    (tmp_path / "cut.tif").write_bytes((tmp_path / "deep.tif").read_bytes()[:300])
    (tmp_path / "text.png").write_text("x")
    Image.fromarray(make(1)[..., 0]).save(tmp_path / "named.jpg", format="PNG")
    for name, pixels, message in [
        (
            "deep.tif",
            PixelFormat(5),
            r"expected an 8-bit image, found uint16; give value_range= .* such as \[0, 65535\]",
        ),
        ("deep.tif", PixelFormat(4, WIDE), r"expected 4 channels, found 5; set channels=5 \(data.channels\) if all"),
        ("holes.tif", PixelFormat(1), r"found float32; give value_range= .* such as \[0.0, 1.0\]"),
        ("holes.tif", PixelFormat(1, (0, 1)), r"values that are no numbers \(NaN\)"),
        ("pages.tif", PixelFormat(1), r"expected one image in the file, found 3 pages"),
        ("empty.tif", PixelFormat(1), r"cannot read the image"),
        ("cut.tif", PixelFormat(5, WIDE), r"cannot read the image"),
        ("text.png", PixelFormat(3, WIDE), r"cannot read the image"),
        ("none.tif", PixelFormat(1), r"the image file is missing"),
        ("none.png", PixelFormat(1), r"the image file is missing"),
    ]:
        with pytest.raises(DataError, match=rf"{name}: .*{message}"):
            pixels.read(tmp_path / name)
    assert read(tmp_path / "named.jpg", 1).shape == (6, 9, 1)  # what it is counts, not its name


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0,), (0, 1, 2), ("a", "b"), (0, float("nan"))])
def test_ranges_that_are_none(value_range):
    with pytest.raises(InputError, match="value_range must be two numbers, the smaller first"):
        PixelFormat(3, value_range)
    with pytest.raises(InputError, match="channels must be a whole number >= 1, got 0"):
        PixelFormat(0)


@given(data=st.data())
def test_files_that_are_cut_or_changed(data, tmp_path_factory):
    """They are read, or refused by name."""
    path = tmp_path_factory.mktemp("changed") / data.draw(st.sampled_from(["a.tif", "a.png"]))
    if path.suffix == ".tif":
        compression = data.draw(st.sampled_from([None, "zlib"]))
        tifffile.imwrite(
            path, make(5, np.uint16), photometric="minisblack", planarconfig="contig", compression=compression
        )
    else:
        assert cv2.imwrite(str(path), make(3, np.uint16))
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    pixels = PixelFormat(5 if path.suffix == ".tif" else 3, WIDE)
    for use in (pixels.read, pixels.read_size):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                use(path)
        except DataError as error:
            assert str(path) in str(error)


def test_a_page_that_claims_more_than_it_holds(tmp_path):
    """A TIFF of a few hundred bytes whose page would fill 90 GiB."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4, 4, 5), np.float64), photometric="minisblack", planarconfig="contig")
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = file.pages.first.tags
        tags["ImageWidth"].overwrite(12_000)
        tags["ImageLength"].overwrite(12_000)
        tags["SamplesPerPixel"].overwrite(80)
        tags["BitsPerSample"].overwrite([64] * 80)
        tags["SampleFormat"].overwrite([3] * 80)
    with pytest.raises(DataError, match="a.tif: the image does not fit into the memory"):
        PixelFormat(80, (0.0, 1.0)).read(path)


@pytest.mark.parametrize("kind", [0, 1])
def test_pages_that_lead_back_to_each_other(kind, tmp_path):
    """The second page names the first as the next one; `kind` 1 says that each is a small version of another."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for _ in range(2):
            file.write(make(5), photometric="minisblack", planarconfig="contig", metadata=None, subfiletype=kind)
    with tifffile.TiffFile(path) as file:
        first, second = (page.offset for page in file.pages)
    content = bytearray(path.read_bytes())
    (tags,) = struct.unpack_from("<H", content, second)
    struct.pack_into("<I", content, second + 2 + 12 * tags, first)
    path.write_bytes(content)
    if kind == 0:
        for use in (PixelFormat(5).read, PixelFormat(5).read_size):
            with pytest.raises(DataError, match=r"a.tif: expected one image in the file, found 100 or more pages"):
                use(path)
    else:
        assert PixelFormat(5).read(path).shape == (6, 9, 5) and PixelFormat(5).read_size(path) == ((6, 9), False)
