"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tw_seg.printable import make_printable


def format_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as columns, the first to the left and the others to the right.

    Examples:
        >>> print(format_table([["", "train"], ["images", "20"]]))
                train
        images     20
    """
    lines = [[make_printable(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
