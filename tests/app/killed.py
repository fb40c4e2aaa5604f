"""Saves corrections and is killed at every file that it touches, in turn: what test_save.py looks at.

python -m tests.app.killed FOLDER prints how many times it was killed. Each try is a fork of this process.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np

from tests.app.pictures import MARKS, NAMES, WHOLE, make_picture
from tw_seg.app.save import CorrectionFolder, SavedPicture

_TOUCHES = {"open", "os.rename", "os.link", "os.mkdir", "os.remove"}  # as Python's audit events call them


def save(out: Path, at: int) -> None:
    """Save a picture, then another mask of it beside a second picture; end at a file of the second save."""
    folder = CorrectionFolder(out, NAMES)
    folder.add({"first": SavedPicture(make_picture(seed=1), WHOLE)})
    left = at

    def watch(event: str, _: object) -> None:
        nonlocal left
        if event in _TOUCHES:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    pictures = {"first": SavedPicture(make_picture(seed=1), MARKS)}
    folder.add({**pictures, "second": SavedPicture(make_picture(seed=2), np.flipud(WHOLE))})


def main() -> None:
    root = Path(sys.argv[1])
    for at in range(1, 1000):
        child = os.fork()
        if child == 0:
            save(root / str(at), at)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGKILL:
            print(at - 1 if status == 0 else f"status {status}")
            return


if __name__ == "__main__":
    main()
