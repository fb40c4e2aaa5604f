"""JSON and XML files of annotation tools: read whole, and looked into with errors that name file and place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from xml.etree.ElementTree import Element, ParseError

import defusedxml
import defusedxml.ElementTree

from tw_seg.arguments import is_number
from tw_seg.errors import DataError

LIMIT = 2**31
"""Numbers of annotations lie below: no image has more pixels on a side."""

_REQUIRED: Any = object()


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: If the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # -sig: some programs write a byte order mark
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror}); check the path") from error
    except (ValueError, RecursionError, MemoryError) as error:  # also numbers of thousands of digits
        raise DataError(f"{path}: expected JSON ({error}); it is no JSON file or truncated, export it again") from error


def read_xml(path: Path) -> Element:
    """The root of an XML file. Entities are refused: a few lines of them can fill the memory.

    Raises:
        DataError: If the file is missing, no XML, or declares entities.
    """
    try:
        root = defusedxml.ElementTree.parse(path).getroot()
        assert root is not None  # of a file, not of an empty tree
        return root
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror}); check the path") from error
    except defusedxml.DefusedXmlException as error:
        raise DataError(f"{path}: XML with entities or references is not read ({error}); take them out") from error
    except (ParseError, ValueError, LookupError, MemoryError) as error:  # LookupError: of an unknown encoding
        raise DataError(f"{path}: expected XML ({error}); it is no XML file or truncated, export it again") from error


class Record:
    """A mapping of a JSON file, or the attributes of an XML element, that says what is wrong with it and where.

    Args:
        value: What should be a mapping.
        path: The file.
        place: Where in the file it stands, for messages.

    Raises:
        DataError: If it is none.
    """

    __slots__ = ("path", "place", "value")

    def __init__(self, value: Any, path: Path, place: str = "") -> None:
        self.path, self.place = path, place
        if not isinstance(value, dict):
            self.refuse(f"expected a mapping, found {_describe(value)}")
        self.value: dict[str, Any] = value

    def refuse(self, what: str) -> NoReturn:
        """Raise a `DataError` that names the file and the place."""
        raise DataError(f"{self.path}{self.place and ', '}{self.place}: {what}")

    def text(self, key: str, default: Any = _REQUIRED) -> Any:
        """A text; ``default`` where there is none."""
        value = self._find(key, default)
        return value if value is default or isinstance(value, str) else self._refuse(key, "text", value)

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """A finite number, in XML as text."""
        value = self._find(key, default)
        return value if value is default else self.check_number(value, key)

    def whole(self, key: str, default: Any = _REQUIRED) -> Any:
        """A whole number, in XML as text."""
        value = self.number(key, default)
        if value is default or value == int(value):
            return value if value is default else int(value)
        self._refuse(key, "a whole number", value)

    def entries(self, key: str, default: Any = _REQUIRED) -> Any:
        """A list of anything."""
        value = self._find(key, default)
        return value if value is default or isinstance(value, list) else self._refuse(key, "a list", value)

    def record(self, key: str) -> Record:
        """A mapping."""
        return Record(self._find(key, _REQUIRED), self.path, f"{self.place}{self.place and '.'}{key}")

    def records(self, key: str, default: Any = _REQUIRED) -> Iterator[Record]:
        """A list of mappings."""
        return list_records(self.entries(key, default), self.path, f"{self.place}{self.place and '.'}{key}")

    def numbers(self, values: Any, key: str) -> list[float]:
        """A list of finite numbers."""
        if not isinstance(values, list):
            self._refuse(key, "a list of numbers", values)
        return [self.check_number(value, key) for value in values]

    def check_number(self, value: Any, key: str) -> float:
        """A finite number of a size that an image may have; a text that is one is read."""
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                self._refuse(key, "a number", value)
        if not is_number(value) or not -LIMIT < value < LIMIT:
            self._refuse(key, f"a number between -2^31 and 2^31 in {key!r}", value)
        return float(value)

    def _find(self, key: str, default: Any) -> Any:
        value = self.value.get(key)
        if value is None and default is _REQUIRED:
            self.refuse(f"expected {key!r}, found {', '.join(sorted(map(repr, self.value))[:12]) or 'nothing'}")
        return default if value is None else value

    def _refuse(self, key: str, expected: str, value: Any) -> NoReturn:
        self.refuse(f"expected {expected} in {key!r}, found {_describe(value)}")


def list_records(values: Any, path: Path, place: str = "") -> Iterator[Record]:
    """The mappings in a list.

    Raises:
        DataError: If it is no list, or holds something else.
    """
    if not isinstance(values, list):
        raise DataError(f"{path}{place and ', '}{place}: expected a list, found {_describe(values)}")
    for index, value in enumerate(values):
        yield Record(value, path, f"{place}[{index}]")


def _describe(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{type(value).__name__} {text[:40]}..."
