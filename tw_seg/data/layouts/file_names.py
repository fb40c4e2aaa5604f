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
    """The images of a folder by their names without suffix, in the Unicode form NFC.

    Hidden files (macOS writes ``._NAME.png``) are none.

    Raises:
        DataError: If the folder cannot be listed.
    """
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in list_files(folder):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            by_stem[normalize_name(path.stem)].append(path)
    return dict(by_stem)


class FileTree:
    """The images of a folder and of the folders in it, each listed once, when it is first asked for.

    Args:
        root: The folder; one that does not exist holds nothing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed: dict[Path, dict[str, list[Path]]] = {}

    def top(self) -> dict[str, list[Path]]:
        """Those in the folder itself, by name."""
        return self._list(self.root)

    def find(self, name: str) -> list[Path]:
        """The files of a name without suffix, which may begin with folders."""
        return self.beside(name).get(normalize_name(Path(name).name), [])

    def find_file(self, entry: str) -> list[Path]:
        """The files that an entry may mean: that very one, or else those with its suffix, if any, in another case."""
        name = normalize_name(Path(entry).name)
        if strip_suffix(name) == name:
            return self.find(entry)
        found = self.beside(entry).get(strip_suffix(name), [])
        exact = [path for path in found if normalize_name(path.name) == name]
        return exact or [path for path in found if path.suffix.lower() == Path(name).suffix.lower()]

    def beside(self, name: str) -> dict[str, list[Path]]:
        """All that is in the folder of a name, by name."""
        return self._list((self.root / name).parent)

    def _list(self, folder: Path) -> dict[str, list[Path]]:
        if folder not in self._listed:
            self._listed[folder] = list_by_stem(folder) if _is_folder(folder) else {}
        return self._listed[folder]


def is_file(path: Path) -> bool:
    """Whether there is such a file. What cannot be a name, as one that is too long, is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


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

    Examples:
        >>> show_names(["a", "b", "c", "d"])
        'a, b, c, ...'
    """
    return ", ".join([*map(str, names[:_SHOWN]), *(["..."] if len(names) > _SHOWN else [])])


def find_near_name(name: str, names: Iterable[str]) -> tuple[str, str] | None:
    """The first of ``names`` that differs from ``name`` in its spelling only, and how it does; ``None`` if none does.

    Examples:
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
    return _ZEROS.sub("", _strip_marks(strip_suffix(unicodedata.normalize("NFC", name)))).casefold()


def normalize_name(name: str) -> str:
    """A name in the Unicode form NFC: macOS writes accents as characters of their own (NFD), tables mostly do not."""
    return unicodedata.normalize("NFC", name)


def strip_suffix(name: str) -> str:
    """A name without the suffix of an image, in any case; other dots belong to the name.

    Examples:
        >>> strip_suffix("a.1.JPG"), strip_suffix("a.1")
        ('a.1', 'a.1')
    """
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
    stems = [strip_suffix(text) for text in (name, other)]
    if stems[0] == stems[1]:
        both = all(Path(text).suffix.lower() in IMAGE_SUFFIXES for text in (name, other))
        return "with another suffix" if both else "with a suffix or a space in its name"
    if stems[0].casefold() == stems[1].casefold():
        return "in another case"
    marks = [mark for text in (other, name) for mark in _MARK.findall(strip_suffix(text))]
    return f"with {marks[0]!r} in its name" if marks else "with other zeros in front of a number"
