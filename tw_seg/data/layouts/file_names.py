"""Image and mask files by name, and what a name that matches none was probably meant to be."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from tw_seg.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

_SHOWN = 3
_WORDS = r"(?:image|img|photo|mask|masks|label|labels|labelids|gt|seg|segmentation|groundtruth|annotation)"
_MARK = re.compile(rf"(?:[-_. ]+{_WORDS}$|^{_WORDS}[-_. ]+)", re.IGNORECASE)
_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")


def list_by_stem(folder: Path) -> dict[str, list[Path]]:
    """The images of a folder by their names without suffix; hidden files (macOS writes ``._NAME.png``) are none.

    Raises:
        DataError: If the folder cannot be listed.
    """
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in list_files(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            by_stem[path.stem].append(path)
    return dict(by_stem)


def list_other_pictures(folder: Path) -> list[str]:
    """Names of files in other formats of images, and of folders with images, which `list_by_stem` leaves out.

    Raises:
        DataError: If the folder cannot be listed.
    """
    formats = Image.registered_extensions().keys() - IMAGE_SUFFIXES
    paths = [path for path in list_files(folder) if not path.name.startswith(".")]
    return [path.name for path in paths if (list_by_stem(path) if path.is_dir() else path.suffix.lower() in formats)]


def list_files(folder: Path) -> list[Path]:
    """What is in a folder, sorted.

    Raises:
        DataError: If the folder cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot list the folder ({error.strerror}); check the path") from error


def choose_mask(found: Sequence[Path]) -> Path | None:
    """The mask among the files of an image's name; ``None`` if there is no file.

    Raises:
        DataError: If none is a PNG file, or several are (``a.png`` and ``a.PNG``).
    """
    masks = [path for path in found if path.suffix.lower() == ".png"]
    if found and not masks:
        raise DataError(f"{found[0]}: masks must be PNG files (others change class ids); convert it")
    if len(masks) > 1:
        raise DataError(f"{masks[0]}: expected one mask of this name, found {masks[1].name!r} too; remove one")
    return masks[0] if masks else None


def show_names(names: Sequence[object]) -> str:
    """The first few names, and whether there are more.

    Example:
        >>> show_names(["a", "b", "c", "d"])
        'a, b, c, ...'
    """
    return ", ".join([*map(str, names[:_SHOWN]), *(["..."] if len(names) > _SHOWN else [])])


def find_near_name(name: str, names: Iterable[str]) -> tuple[str, str] | None:
    """The first of ``names`` that differs from ``name`` in its spelling only, and how it does; ``None`` if none does.

    Example:
        >>> find_near_name("im0", ["im1_mask", "im0_mask"])
        ('im0_mask', "with '_mask' in its name")
        >>> find_near_name("IMG_1", ["img_1"])
        ('img_1', 'in another case')
    """
    return _find_in(name, _group_by_key(names))


def describe_strays(
    masks: Mapping[str, Sequence[Path]], images: Mapping[str, Sequence[Path]], listed: Collection[str] = ()
) -> str:
    """What is to be said about mask files that belong to no image, there or ``listed``, by name; empty if all do."""
    strays = [stem for stem in masks if stem not in images and stem not in listed]
    if not strays:
        return ""
    first = masks[strays[0]][0]
    total = sum(map(len, masks.values()))
    count = sum(len(masks[stem]) for stem in strays)
    shown = show_names([masks[stem][0].name for stem in strays])
    keys = _group_by_key(images)
    for stem in strays:
        near = _find_in(stem, keys)
        if near is not None:
            image, _ = near
            how = _compare(image, stem)
            hint = f"{masks[stem][0].name!r} is like the image {images[image][0].name!r}, but {how}: rename it"
            break
    else:
        known = next((paths[0].name for paths in images.values()), None)
        hint = "there is no image" if known is None else f"an image here is {known!r}: rename them, or add their images"
    return (
        f"{first.parent}: {count} of {total} mask files belong to no image by name and are not used ({shown}); a mask "
        f"has the name of its image and ends in .png; {hint}"
    )


def _find_in(name: str, by_key: Mapping[str, list[str]]) -> tuple[str, str] | None:
    near = [other for other in by_key.get(_make_key(name), []) if other != name]
    return (near[0], _compare(name, near[0])) if near else None


def _group_by_key(names: Iterable[str]) -> dict[str, list[str]]:
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_key[_make_key(name)].append(name)
    return by_key


def _make_key(name: str) -> str:
    """The name without what people and programs change without meaning it."""
    return _ZEROS.sub("", _strip_marks(_strip_suffix(unicodedata.normalize("NFC", name)))).casefold()


def _strip_suffix(name: str) -> str:
    name = name.strip()
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in IMAGE_SUFFIXES else name


def _strip_marks(name: str) -> str:
    return _MARK.sub("", name) or name


def _compare(name: str, other: str) -> str:
    """How ``other`` differs from ``name``, where both have the same key."""
    name, other = (unicodedata.normalize("NFC", text) for text in (name, other))
    if name == other:
        return "in another Unicode form (NFC, NFD)"
    if name.casefold() == other.casefold():
        return "in another case"
    stems = [_strip_suffix(text) for text in (name, other)]
    if stems[0] == stems[1]:
        both = all(Path(text).suffix.lower() in IMAGE_SUFFIXES for text in (name, other))
        return "with another suffix" if both else "with a suffix or a space in its name"
    if stems[0].casefold() == stems[1].casefold():
        return "in another case"
    marks = [mark for text in (other, name) for mark in _MARK.findall(_strip_suffix(text))]
    return f"with {marks[0]!r} in its name" if marks else "with other zeros in front of a number"
