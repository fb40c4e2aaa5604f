"""``python -m tw_seg`` is ``tw-seg``."""

import sys

from tw_seg.cli import main

if __name__ == "__main__":
    sys.exit(main())
