"""``tw-seg data check``: what is in a data set, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from tw_seg.cli.data import SUBCOMMANDS
from tw_seg.cli.data.arguments import add_data_arguments, find_pixels, find_source, show_progress
from tw_seg.data.check.contact_sheet import draw_contact_sheet
from tw_seg.data.check.report import check_data
from tw_seg.errors import InputError
from tw_seg.files import write_text

_DESCRIPTION = f"""tw-seg data check: {SUBCOMMANDS["check"].summary}. Every image and mask is read once; what
cannot be read is listed, all of it. Masks are compared with labels and images with each other, in eight orientations.
Channels, their mean and their standard deviation are printed as lines of a config. The exit status is 1 if there are
errors, which tw-seg fit would refuse, or a group in two splits, and 0 otherwise; warnings are for you to judge, with
--contact_sheet. Example: tw-seg data check my_images --json check.json --contact_sheet sheet.png"""


def run_check(args: Sequence[str]) -> int:
    """Run the command.

    Args:
        args: The arguments.

    Returns:
        Exit status: 0, or 1 if there are errors in the data.

    Raises:
        TwSegError: For a wrong argument, a folder that is none, or a report that cannot be written.
        SystemExit: After ``--help``, and for arguments that do not parse.
    """
    given = create_parser().parse_args(list(args))
    root, layout, kwargs = find_source(given)
    result = check_data(
        root,
        layout,
        kwargs,
        pixels=find_pixels(given),
        group_column=given.group_column,
        table=None if given.table is None else Path(given.table),
        track=show_progress,
    )
    print(result.report.format_text())
    try:
        if given.json is not None:
            write_text(Path(given.json), result.report.to_json() + "\n")
        if given.contact_sheet is not None:
            draw_contact_sheet(result, Path(given.contact_sheet))
    except OSError as error:
        raise InputError(f"{error.filename} cannot be written ({error.strerror}); give another path") from error
    return 1 if result.report.count("error") else 0


def create_parser() -> ArgumentParser:
    """The parser of the command's arguments."""
    result = ArgumentParser("tw-seg data check", description=_DESCRIPTION)
    add_data_arguments(result)
    result.add_argument("--json", metavar="FILE", help="write the whole report there, too")
    result.add_argument("--contact_sheet", metavar="FILE", help="draw images with their masks there, as PNG")
    return result
