from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tw_seg.data.layouts.brush_rle import decode_brush, encode_brush
from tw_seg.errors import DataError


def pack(values: list[int], chunks: list[tuple[bool, int]], lengths: tuple[int, ...] = (3, 4, 8, 16)) -> bytes:
    """The published description, bit by bit: ``chunks`` says what is written as a run, and how many values each has."""
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in lengths)
    place = 0
    for repeats, count in chunks:
        size = next(i for i, length in enumerate(lengths) if count - 1 < 2**length)
        bits += f"{int(repeats)}{size:02b}{count - 1:0{lengths[size]}b}"
        bits += "".join(
            f"{value:08b}" for value in (values[place : place + 1] if repeats else values[place : place + count])
        )
        place += count
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def unpack(code: bytes) -> list[int]:
    """The same, read back."""
    bits = "".join(f"{byte:08b}" for byte in code)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, width, values = read(32), read(5) + 1, []
    lengths = [read(4) + 1 for _ in range(4)]
    while len(values) < total:
        repeats = read(1)
        count = read(lengths[read(2)]) + 1
        values += [read(width)] * count if repeats else [read(width) for _ in range(count)]
    return values


@given(arrays(np.uint8, (7, 9), elements=st.sampled_from([0, 3, 255])), st.data())
def test_any_way_to_write_an_image_is_read(opacity, data):
    values = np.stack([opacity // 2, opacity // 3, opacity, opacity], axis=-1).ravel().tolist()
    chunks, place = [], 0
    while place < len(values):
        run = next((i for i in range(place, len(values)) if values[i] != values[place]), len(values)) - place
        repeats = data.draw(st.booleans())
        count = data.draw(st.integers(1, run if repeats else min(20, len(values) - place)))
        chunks.append((repeats, count))
        place += count
    lengths = data.draw(st.sampled_from([(3, 4, 8, 16), (1, 2, 5, 9)]))
    np.testing.assert_array_equal(decode_brush(pack(values, chunks, lengths), (7, 9)), opacity)


@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_what_is_written_is_read_by_the_description(mask):
    code = encode_brush(mask)
    expected = np.repeat(mask.ravel() * 255, 4)
    np.testing.assert_array_equal(unpack(code), expected)
    np.testing.assert_array_equal(decode_brush(code, mask.shape), mask * 255)


def test_long_runs():
    mask = np.zeros((300, 400), dtype=bool)
    mask[100:, 7] = True
    assert decode_brush(encode_brush(mask), mask.shape).astype(bool).tolist() == mask.tolist()
    assert len(encode_brush(np.ones((300, 400), dtype=bool))) < 60


CODE = encode_brush(np.eye(5, dtype=bool))


@pytest.mark.parametrize(
    ("code", "size", "message"),
    [
        (b"", (5, 5), r"has 0 bytes, which is too short"),
        (CODE[:6], (5, 5), r"has 6 bytes, which is too short"),
        (CODE[:-4], (5, 5), r"(ends|is broken) after \d+ of 100 values"),
        (CODE, (5, 6), r"holds 100 values of 8 bits, expected 120 of 8 for 5x6 pixels"),
        (b"\xff" * 40, (5, 5), r"holds 4294967295 values of 32 bits"),
        (CODE[:7] + b"\xff" * 60, (5, 5), r"is broken after \d+ of 100 values"),
    ],
)
def test_broken_codes(code, size, message):
    with pytest.raises(DataError, match=message):
        decode_brush(code, size)


@given(st.binary(max_size=60), st.integers(0, len(CODE)))
def test_changed_codes_are_read_or_refused(noise, place):
    changed = CODE[:place] + noise
    try:
        assert decode_brush(changed, (5, 5)).shape == (5, 5)
    except DataError:
        pass
