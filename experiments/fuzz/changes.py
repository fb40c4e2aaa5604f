"""Changed bytes of real files."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

WORDS = (
    *(
        word.encode()
        for word in ("", "\0", '"', "'", "[", "]", "{", "}", "<", "&", ",", ";", ":", "\n", "\r", "*a", "%s")
    ),
    *(
        word.encode()
        for word in ("null", "NaN", "-1", "0", "1e308", "-1e308", "9" * 20, "4294967295", "2147483648", "0x10")
    ),
    *(word.encode() for word in ("\x1b[31m", "../..", "é木\u202e", "!!python/name:os.system", "<!ENTITY a 'b'>")),
    *(b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"[" * 3000, b"a" * 3000, b"\xff" * 64, b"\0" * 64),
)
ODD = (
    None,
    True,
    0,
    -1,
    0.5,
    10**30,
    1e308,
    float("nan"),
    "",
    "x",
    "\0",
    "../..",
    "\x1b[31m",
    "a" * 3000,
    [],
    [[]],
    {},
)
"""Values of JSON in the place of any other."""


def change(content: bytes, other: bytes, random: Random) -> bytes:
    """A few changes of a file's bytes: cut, turned over, repeated, replaced by words that mean something to a parser.

    Args:
        content: The file.
        other: Another file, pieces of which may be put into it.
        random: Where the changes come from.
    """
    if random.random() < 0.4:
        try:
            return json.dumps(_change_value(json.loads(content), random)).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):
            pass
    result = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        start = random.randrange(len(result) + 1)
        end = min(len(result), start + random.choice((0, 1, 1, 2, 4, 8, 100)))
        match random.randrange(8):
            case 0:
                del result[start:]
            case 1:
                result[start:end] = bytes(random.randrange(256) for _ in range(end - start))
            case 2:
                result[start:end] = random.choice(WORDS)
            case 3:
                result[start:end] = b""
            case 4:
                result[start:start] = result[start:end] * random.choice((1, 2, 50))
            case 5:
                place = random.randrange(len(other) + 1)
                result[start:end] = other[place : place + random.choice((4, 64, 1000))]
            case 6 if start < end:
                result[start] ^= 1 << random.randrange(8)
            case _:
                numbers = list(re.finditer(rb"\d+", result))[:1000]
                if numbers:
                    found = random.choice(numbers)
                    result[found.start() : found.end()] = random.choice(WORDS)
    return bytes(result)


def _change_value(value: Any, random: Random) -> Any:
    """JSON in which one value is another, or is left out."""
    places = []
    waiting: list[tuple[Any, Any]] = [(None, None)]
    inner: Any = value
    while waiting and len(places) < 2000:
        parent, key = waiting.pop()
        inner = value if parent is None else parent[key]
        places.append((parent, key))
        if isinstance(inner, dict):
            waiting += [(inner, entry) for entry in inner]
        elif isinstance(inner, list):
            waiting += [(inner, entry) for entry in range(len(inner))]
    parent, key = random.choice(places)
    if parent is None:
        return random.choice(ODD)
    if random.random() < 0.2:
        del parent[key]
    else:
        parent[key] = random.choice(ODD)
    return value
