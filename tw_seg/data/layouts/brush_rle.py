"""Label Studio's code for brush masks: run lengths of the pixels of an RGBA image, packed into bits.

Published as the package rle-pack of thi.ng/umbrella
(https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack). A header of 32 bits says how many values follow,
one of 5 bits how many bits a value has, less one, and four of 4 bits how many bits the length of a run has, less one,
in each of four sizes. Then come chunks: one bit that says whether a value is repeated, two bits for the size of the
length, the length less one, and the value, or all values of the chunk.
"""

from __future__ import annotations

import numpy as np

from tw_seg.errors import DataError

_CHANNELS = 4
_OPAQUE = 255
_HEADER = 32 + 5 + 4 * 4
_LENGTHS = (3, 4, 8, 16)  # bits that Label Studio itself writes


def decode_brush(code: bytes, size: tuple[int, int]) -> np.ndarray:
    """The opacity of each pixel.

    Args:
        code: The packed bits.
        size: Height and width of the image.

    Returns:
        Uint8, shape (H, W); 0 where nothing was painted.

    Raises:
        DataError: If the code is broken, or that of an image of another size.

    Examples:
        >>> mask = np.array([[0, 255, 255], [0, 0, 255]], dtype=np.uint8)
        >>> bool((decode_brush(encode_brush(mask > 0), (2, 3)) == mask).all())
        True
    """
    bits = np.unpackbits(np.frombuffer(code, dtype=np.uint8))
    if len(bits) < _HEADER:
        raise DataError(f"the code of a brush has {len(code)} bytes, which is too short; export it again")
    total, width = _read(bits, 0, 32), _read(bits, 32, 5) + 1
    lengths = [_read(bits, 37 + 4 * i, 4) + 1 for i in range(4)]
    expected = size[0] * size[1] * _CHANNELS
    if total != expected or width != 8:
        raise DataError(
            f"the code of a brush holds {total} values of {width} bits, expected {expected} of 8 for {size[0]}x"
            f"{size[1]} pixels (height x width) of 4 channels; it belongs to another image"
        )
    values = np.empty(total, dtype=np.uint8)
    filled, place = 0, _HEADER
    while filled < total:
        if place + 3 > len(bits):
            raise DataError(f"the code of a brush ends after {filled} of {total} values; export it again")
        repeats, length = bits[place], lengths[_read(bits, place + 1, 2)]
        count = _read(bits, place + 3, length) + 1
        place += 3 + length
        end = place + width * (1 if repeats else count)
        if end > len(bits) or filled + count > total:
            raise DataError(f"the code of a brush is broken after {filled} of {total} values; export it again")
        values[filled : filled + count] = np.packbits(bits[place:end])
        filled, place = filled + count, end
    return values.reshape(*size, _CHANNELS)[..., -1]


def encode_brush(mask: np.ndarray) -> bytes:
    """The code of a mask: opaque where it is true, in all four channels.

    Args:
        mask: Bool, shape (H, W).
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    counts = np.diff(starts, append=flat.size) * _CHANNELS
    pieces = [_to_bits(flat.size * _CHANNELS, 32), _to_bits(7, 5), *(_to_bits(length - 1, 4) for length in _LENGTHS)]
    for value, count in zip(flat[starts], counts.tolist(), strict=True):
        while count:
            piece = min(count, 2 ** _LENGTHS[-1])
            size = next(i for i, length in enumerate(_LENGTHS) if piece <= 2**length)
            pieces += [f"1{size:02b}", _to_bits(piece - 1, _LENGTHS[size]), _to_bits(_OPAQUE * int(value), 8)]
            count -= piece
    return np.packbits(np.frombuffer("".join(pieces).encode(), dtype=np.uint8) - ord("0")).tobytes()


def _to_bits(number: int, count: int) -> str:
    return f"{number:0{count}b}"


def _read(bits: np.ndarray, place: int, count: int) -> int:
    """A number of ``count`` bits, the highest first; bits beyond the end are 0."""
    number = 0
    for bit in bits[place : place + count].tolist():
        number = 2 * number + bit
    return number
